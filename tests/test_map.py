"""The map of GPT-2: its shapes are those of a model, its parts lead where they say."""

import json
import re
import sys

import pytest
import torch
from conftest import ROOT

from gpt2lib.config import GPT2Config
from gpt2lib.figures import _PARTS
from gpt2lib.language_model import GPT2LMHeadModel, next_token_loss
from gpt2lib.sampling import generate
from gpt2lib.tokenizer import BPETokenizer
from gpt2lib.training_loop import fit

sys.path.insert(0, str(ROOT / "book" / "_ext"))
from gpt2book.drawing import cells_of_library, parts_of_page

PHASES = sorted((ROOT / "notebooks").glob("phase*.ipynb"))
B, T, C, V = 2, 5, 12, 31  # no two alike, nor T + 1
LETTERS = {B: "B", T: "T", C: "C", V: "V", T + 1: "T + 1"}
MODULES = {
    "token_embedding": "token_embedding",
    "position_embedding": "position_embedding",
    "dropout": "dropout",
    "residual": "transformer.blocks.1",
    "block": "transformer.blocks.0",
    "norm1": "transformer.blocks.0.norm1",
    "attention": "transformer.blocks.0.attention",
    "norm2": "transformer.blocks.0.norm2",
    "feedforward": "transformer.blocks.0.feedforward",
    "final_norm": "transformer.norm",
    "lm_head": "lm_head",
}


def said(*tensors):
    """Return shapes as the page writes them."""
    shapes = ([LETTERS[size] for size in tensor.shape] for tensor in tensors)
    return ", ".join(
        f"({', '.join(shape)}{',' * (len(shape) == 1)})" if shape else "a number"
        for shape in shapes
    )


def shapes_of_modules(model, tokens):
    """Return what goes into the modules of one pass and comes out, and its logits."""
    found = {}

    def keep(part):
        def hook(module, args, output):
            found[part] = f"{said(*args)} -> {said(output)}"

        return hook

    hooks = [
        model.get_submodule(name).register_forward_hook(keep(part))
        for part, name in MODULES.items()
    ]
    logits = model(tokens)
    for hook in hooks:
        hook.remove()
    return found, logits


def measured():
    """Return the shapes of each part, as a small model has them."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(2, 3, C, vocab_size=V, block_size=8))
    tokens = torch.randint(V, (B, T))
    found, logits = shapes_of_modules(model, tokens)
    loss = next_token_loss(logits, tokens)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = [parameter.shape for parameter in model.parameters()]
    fit([tokens], lambda x: next_token_loss(model(x), x), optimizer, n_steps=1)
    same = before == [parameter.shape for parameter in model.parameters()]
    ids = torch.tensor(BPETokenizer.gpt2().encode("To be or not to"))
    return found | {
        "tokens": f"text -> {said(ids)}",
        "loss": f"{said(logits, tokens)} -> {said(loss)}",
        "sampling": f"{said(tokens)} -> {said(generate(model.eval(), tokens, 1))}",
        "training": f"parameters -> parameters of {'the same' if same else 'new'} "
        "shapes",
    }


def test_the_page_states_the_shapes_that_a_model_has():
    assert {
        p: shapes for p, (_, shapes, _) in parts_of_page(ROOT).items()
    } == measured()


def test_the_page_lists_the_parts_of_the_drawing_and_who_builds_them():
    parts = parts_of_page(ROOT)
    assert sorted(parts) == sorted(_PARTS)
    known = cells_of_library(ROOT)
    assert [name for name, _, _ in parts.values() if name not in known] == []
    assert [part for part, (_, _, text) in parts.items() if not text] == []


def opening(path):
    """Return the first cell of a notebook that computes, and its output's HTML."""
    cells = json.loads(path.read_text("utf-8"))["cells"]
    cell = next(c for c in cells if c["cell_type"] == "code" and c["id"] != "setup")
    shown = ["".join(o.get("data", {}).get("text/html", "")) for o in cell["outputs"]]
    return cell["id"], "".join(shown)


# What a phase lights beside the parts that it builds.
ALSO = {
    "phase0": {"training"},
    "phase3": {"training"},
    "phase5": {"attention", "residual", "lm_head"},
    "phase6": {"tokens", "position_embedding", "attention", "sampling", "training"},
}


@pytest.mark.parametrize("path", PHASES, ids=lambda path: path.stem)
def test_a_phase_opens_with_the_map_its_own_part_lit(path):
    name, shown = opening(path)
    assert name == "map"
    lit = set(re.findall(r'<g class="lit" data-part="(\w+)"', shown))
    cells = cells_of_library(ROOT)
    own = {
        part
        for part, (name, _, _) in parts_of_page(ROOT).items()
        if cells[name][0].notebook == f"notebooks/{path.stem}"
    }
    own |= ALSO.get(path.stem[:6], set())
    assert lit == own - {"dropout"}  # dropout is PyTorch's


def test_all_phases_are_looked_at():
    assert [path.stem[:6] for path in PHASES] == [f"phase{n}" for n in range(7)]


# In the built book ----------------------------------------------------------


def leads_to(tab):
    """Return where each part of the map leads that can be seen: {part: address}."""
    return tab.locator(".gpt2-map a:visible").evaluate_all(
        "links => Object.fromEntries(links.map(link => ["
        "link.querySelector('g').dataset.part, link.href.baseVal]))"
    )


@pytest.fixture
def open_page(site, browser):
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    tab = context.new_page()

    def opened(page):
        tab.goto(f"{site.as_uri()}/{page}.html")
        return tab

    yield opened
    context.close()


def test_parts_lead_to_cell_code_and_shapes_by_keyboard(open_page):
    tab = open_page("book/map")
    parts, cells = parts_of_page(ROOT), cells_of_library(ROOT)
    wanted = {"cell": {}, "code": {}, "shapes": {}}
    for part, (name, _, _) in parts.items():
        module, found = cells[name]
        wanted["cell"][part] = f"../{module.notebook}.html#{found.cell}"
        wanted["code"][part] = f"../gpt2lib/{module.name}.html#{found.cell}"
        wanted["shapes"][part] = f"#part-{part}"
    assert leads_to(tab) == wanted["cell"]
    tab.get_by_role("radio", name="the cell").focus()
    for way in ("code", "shapes"):
        tab.keyboard.press("ArrowRight")
        assert leads_to(tab) == wanted[way]
    tab.keyboard.press("Tab")
    name = tab.evaluate("document.activeElement.querySelector('title').textContent")
    first = tab.evaluate("document.activeElement.querySelector('g').dataset.part")
    assert name == f"{first}: its shapes, {parts[first][1].replace('->', 'to')}"
    tab.keyboard.press("Enter")
    assert tab.evaluate("document.querySelector(':target').id") == f"part-{first}"


@pytest.mark.parametrize("path", PHASES, ids=lambda path: path.stem)
def test_in_a_phase_the_map_leads_on_and_what_is_lit_stands_out(path, open_page):
    tab = open_page(f"notebooks/{path.stem}")
    found = leads_to(tab)
    assert sorted(found) == sorted(_PARTS)
    colours = tab.locator(".gpt2-map .box").evaluate_all(
        "boxes => boxes.map("
        "box => [box.closest('.lit') !== null, getComputedStyle(box).stroke])"
    )
    lit, unlit = (
        {c for is_lit, c in colours if is_lit is kind} for kind in (True, False)
    )
    assert len(unlit) == 1
    assert not lit & unlit
