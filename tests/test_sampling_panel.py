"""The sampling panel: what it stores, and what its script makes of it in a browser."""

import json
import re
import time
from xml.etree import ElementTree

import pytest
import torch
import traitlets
from axe_playwright_python.base import AXE_SCRIPT
from conftest import HOSTILE, NOTEBOOKS
from in_browser import (
    ASTRAY,
    MODEL,
    PHONE,
    STATIC,
    UNFOLD,
    html,
    shown_in,
    tab_in_the_book,
    until_equal,
)

from gpt2lib.figures import _element_script
from gpt2lib.sampling import next_token_probabilities
from gpt2lib.sampling_panel import SamplingPanel, _readable

MODULE = (STATIC / "sampling-panel.js").read_text("utf-8")
CHARACTERS = [chr(32 + i) for i in range(64)]


def random_logits(size, seed=0, spread=2.0):
    generator = torch.Generator().manual_seed(seed)
    return spread * torch.randn(size, generator=generator, dtype=torch.float64)


def three_contexts():
    return SamplingPanel(
        {f"text {seed}\n": random_logits(64, seed) for seed in range(3)}, CHARACTERS
    )


# What is stored --------------------------------------------------------------


def test_output_repeats_and_names_itself(book):
    assert html(three_contexts()) == html(three_contexts())
    assert repr(three_contexts()) == "SamplingPanel: 3 texts, 64 tokens"
    assert list(three_contexts()._repr_mimebundle_()) == ["text/plain", "text/html"]


def test_a_list_a_tensor_and_a_parameter_are_the_same(book):
    numbers = [0.5, -1.0, 2.25]
    forms = [numbers, torch.tensor(numbers), torch.nn.Parameter(torch.tensor(numbers))]
    pages = {html(SamplingPanel({"a": logits}, "xyz")) for logits in forms}
    assert len(pages) == 1


def test_noise_of_float64_does_not_show(book):
    """Another machine sums in another order; the rounded output must not tell."""
    noisy = {
        f"text {seed}\n": random_logits(64, seed) * (1 + 4e-16) for seed in range(3)
    }
    assert html(SamplingPanel(noisy, CHARACTERS)) == html(three_contexts())


def test_size(book):
    assert len(html(three_contexts()).encode()) < 15_000
    large = {str(seed): random_logits(50_257, seed) for seed in range(3)}
    page = html(SamplingPanel(large, [f"token{i}" for i in range(50_257)]))
    assert len(page.encode()) < 15_000


def test_in_the_book_no_markup_from_data_and_no_script(book):
    page = html(SamplingPanel({HOSTILE: [1, 0]}, [HOSTILE, "b"]))
    assert "<script" not in page.lower()
    assert "<img" not in page
    element = ElementTree.fromstring(page)
    [context] = json.loads(element.get("data-state"))["contexts"]
    assert context["text"] == context["tokens"][0] == HOSTILE


def test_elsewhere_brings_the_script_once(elsewhere):
    page = html(three_contexts())
    assert page.lower().count("<script") == page.lower().count("</script") == 1


def test_fallback_table_holds_the_ten_largest(book):
    logits = random_logits(64, 0)
    table = ElementTree.fromstring(html(three_contexts())).find(".//table")
    assert table.find("caption").text == "The 10 likeliest of 64 tokens after “text 0↵”"
    assert [th.get("scope") for th in table.findall("thead//th")] == ["col", "col"]
    rows = [
        (row.find("th").text, float(row.find("td/span").text))
        for row in table.findall("tbody/tr")
    ]
    p, ids = logits.softmax(-1).topk(10)
    assert [name for name, _ in rows] == [_readable(CHARACTERS[i]) for i in ids]
    assert [number for _, number in rows] == pytest.approx(p.tolist(), abs=5.1e-4)


@pytest.mark.parametrize("size", [64, 65, 3000])
def test_every_token_is_counted_once(book, size):
    logits = random_logits(size)
    [context] = SamplingPanel({"a": logits}, map(str, range(size))).contexts
    shown = len(context["logps"])
    assert shown == (64 if size == 64 else 50)
    assert shown + sum(count for count, *_ in context["rest"]) == size
    mass = torch.tensor(context["logps"]).exp().sum()
    mass += sum(count * torch.tensor(logp).exp() for count, logp, _ in context["rest"])
    assert mass.item() == pytest.approx(1, abs=1e-5)


def test_equal_logits_stay_in_the_order_of_ids(book):
    [context] = SamplingPanel({"a": [0, 1, 0, 1, 1]}, "abcde").contexts
    assert "".join(context["tokens"]) == "bdeac"
    near = [0.0, 1e-9, 0.0]  # equal once rounded: the larger is first all the same
    [context] = SamplingPanel({"a": near}, "abc").contexts
    assert "".join(context["tokens"]) == "bac"


@pytest.mark.parametrize(
    ("token", "name"),
    [
        (" the", "␣the"),
        ("  ", "␣␣"),
        ("a b ", "a b␣"),
        ("\n", "↵"),
        ("\t", r"\t"),
        ("\r\n", r"\r↵"),
        ("\0\x1b", r"\x00\x1b"),
        ("\u200b", r"\u200b"),
        ("\u200d\ufeff", r"\u200d\ufeff"),
        ("\u202e", r"\u202e"),
        ("\u2028", r"\u2028"),
        ("\xa0\xad", r"\xa0\xad"),
        ("\ufe0f", r"\ufe0f"),
        ("\u3164", r"\u3164"),
        ("\ud800", r"\ud800"),
        ("\u0301", "◌\u0301"),
        ("e\u0301", "e\u0301"),
        ("שלום", "שלום"),
        ("👍🏽", "👍🏽"),
        ("\ufffd", "\ufffd"),
        ("", "(empty)"),
    ],
)
def test_names_can_be_read(token, name):
    assert _readable(token) == name
    assert name.isprintable()


@pytest.mark.parametrize(
    ("contexts", "tokens", "message"),
    [
        ({}, "ab", "give it texts"),
        ({"a": []}, [], "give it texts"),
        ({"a": [1.0]}, "ab", r"'a' needs a logit for each of 2 tokens.*\(1,\)"),
        ({"a": [[1.0, 2.0]]}, "ab", r"\(1, 2\)"),
        ({"a": [1.0, float("nan")]}, "ab", "'a' has a logit that is not finite"),
        ({"a": [1.0, float("-inf")]}, "ab", "not finite"),
    ],
)
def test_refuses(contexts, tokens, message):
    with pytest.raises(ValueError, match=message):
        SamplingPanel(contexts, tokens)


def test_widget_hears_and_keeps_its_bounds():
    widget, heard = three_contexts().widget(), {}
    assert widget._esm == MODULE
    asked = {"temperature": 0.5, "top_k": 3, "top_p": 0.9, "context": 2}
    widget.observe(lambda change: heard.update({change["name"]: change["new"]}), asked)
    widget.set_state(asked)  # as the page does
    assert heard == asked
    for name, value in {"temperature": 0, "top_k": 0, "top_p": 2, "context": 3}.items():
        with pytest.raises(traitlets.TraitError, match=name):
            setattr(widget, name, value)


def test_the_script_is_one_module_that_can_be_inlined():
    assert MODULE.count("export ") == 1
    assert MODULE.rstrip().endswith("export default { render };")
    for wrong in ("import ", "</", "innerHTML", "insertAdjacent", "http:", "https:"):
        assert wrong not in MODULE, wrong
    plain = _element_script("sampling-panel")
    assert "export" not in plain
    assert plain.count('customElements.define("gpt2-sampling-panel"') == 1


# In a browser ----------------------------------------------------------------


@pytest.fixture
def show(browser, tmp_path):
    with shown_in(browser, tmp_path, "sampling-panel") as show:
        yield show


# For each setting of the sliders: the rows (name, probability) and the summary.
SWEEP = """settings => {
  const root = document.querySelector("gpt2-sampling-panel").shadowRoot;
  return settings.map((setting) => {
    for (const [name, value] of Object.entries(setting)) {
      const input = root.getElementById(name);
      input.value = value ?? input.max;
      input.dispatchEvent(new Event("input"));
    }
    return {
      rows: [...root.querySelectorAll("tbody tr")].map((row) => [
        row.querySelector("th").textContent,
        row.classList.contains("cut"),
        Number(row.querySelector(".track").style.getPropertyValue("--after")),
      ]),
      summary: root.querySelector(".summary").textContent,
    };
  });
}"""
GRID = [
    {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    for temperature in (0.1, 0.25, 0.5, 1, 1.7, 3)
    for top_k in (None, 1, 2, 5, 8)
    for top_p in (1, 0.05, 0.3, 0.5, 0.85, 0.99)
]
DISTRIBUTIONS = {
    "9 tokens": random_logits(9, 1),
    "64 tokens": random_logits(64, 2),
    "a flat one": random_logits(64, 3, 0.1),
    "a peaked one": random_logits(64, 4, 8.0),
    "all equal": torch.zeros(10, dtype=torch.float64),
    "ties": random_logits(64, 5).round(),
    "halves": torch.tensor([0.15, 0.5, 0.05, 0.3]).double().log(),
    "300 tokens": random_logits(300, 6),
    "5,000 tokens": random_logits(5000, 7, 3.0),
    "300 flat": random_logits(300, 8, 0.1),
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_probabilities_are_those_of_python(book, show, name):
    logits = DISTRIBUTIONS[name]
    size = len(logits)
    tab = show(SamplingPanel({"a": logits}, map(str, range(size))))
    tab.get_by_role("button", name=re.compile("^Show")).evaluate_all(
        "buttons => buttons.forEach((button) => button.hidden || button.click())"
    )
    for knobs, found in zip(GRID, tab.evaluate(SWEEP, GRID), strict=True):
        p = next_token_probabilities(logits, **knobs)
        *rows, others = found["rows"]
        shown = [int(row) for row, _, _ in rows]
        assert (
            shown
            == logits.sort(descending=True, stable=True)
            .indices[:64]
            .tolist()[: len(shown)]
        )
        after = torch.tensor([value for *_, value in rows], dtype=torch.float64)
        assert (after - p[shown]).abs().max() < 1e-3, knobs
        hidden = p.index_fill(0, torch.tensor(shown), 0)
        one = hidden.max()  # in a group, the nucleus may end one token off
        assert abs(others[2] - hidden.sum()) < 1e-3 + one or len(rows) == size, knobs
        cut = torch.tensor([cut for _, cut, _ in rows])
        if knobs["top_k"] or knobs["top_p"] < 1:  # else only underflow gives a zero
            assert torch.equal(cut, p[shown] == 0), knobs
        entropy = -(p * p.log()).nansum().item()
        said = re.match(r"entropy (\S+) nats .*, (\S+) of", found["summary"])
        nats, kept = said.groups()
        exact = len(rows) == size
        assert float(nats) == pytest.approx(entropy, abs=0.0051 if exact else 0.02)
        if size <= 64 and not cut.all() and cut.any():
            assert int(kept) == (p > 0).sum(), knobs


def numbers(tab, column):
    """Return a column of the table as it is read, the heading left out."""
    cells = tab.locator(f"tbody tr:visible > :nth-child({column})")
    return cells.all_inner_texts()


def three_tokens():
    logits = torch.tensor([[0.7, 0.2, 0.1], [0.2, 0.5, 0.3]]).log().double()
    return SamplingPanel({"one": logits[0], "two": logits[1]}, [" a", "\n", "c"])


def test_by_keyboard(book, show):
    tab = show(three_tokens())
    press = tab.keyboard.press
    status = tab.locator(".said")
    assert status.inner_text() == "", "quiet until it is used"
    assert numbers(tab, 1) == ["␣a", "↵", "c"]
    assert numbers(tab, 3) == ["0.700", "0.200", "0.100"]
    bar = tab.locator(".panel tbody tr").first.locator(".after")
    before = bar.bounding_box()["width"]

    press("Tab")
    press("Tab")
    start = time.monotonic()
    press("ArrowLeft")
    temperature = tab.get_by_role("slider", name="temperature")
    assert temperature.get_attribute("aria-valuetext") == "0.95"
    press("Home")
    quiet = status.inner_text() == "" or time.monotonic() - start > 0.4
    assert quiet, "not at every step"
    assert numbers(tab, 3) == ["1.000", "<0.001", "<0.001"]
    tab.wait_for_function(
        "([before, bar]) => bar.getBoundingClientRect().width > 1.3 * before",
        arg=[before, bar.element_handle()],
    )
    said = "entropy 0.00 nats (0.80 before), 3 of 3"
    until_equal(tab, lambda: status.inner_text()[: len(said)], said)

    press("Tab")
    press("ArrowLeft")
    press("ArrowLeft")
    top_k = tab.get_by_role("slider", name="top-k")
    assert top_k.get_attribute("aria-valuetext") == "2"
    assert numbers(tab, 3)[2] == "cut"
    press("Tab")
    press("Home")
    assert tab.locator("output").all_inner_texts() == ["0.10", "2", "0.05"]
    assert numbers(tab, 3) == ["1.000", "cut", "cut"]

    for _ in range(3):  # Draw, Draw 100, Reset
        press("Tab")
    press("Enter")
    assert tab.locator("output").all_inner_texts() == ["1.00", "off", "off"]
    assert numbers(tab, 3) == ["0.700", "0.200", "0.100"]
    tab.get_by_role("combobox", name="text so far").focus()
    press("ArrowDown")
    assert numbers(tab, 1) == ["↵", "c", "␣a"]
    assert numbers(tab, 2) == ["0.500", "0.300", "0.200"]


def test_draws_stand_beside_the_probabilities(book, show):
    tab = show(three_tokens())
    draws = iter([0.0, 0.69, 0.71, 0.95])
    for number in draws:
        tab.evaluate(f"Math.random = () => {number}")
        tab.get_by_role("button", name="Draw", exact=True).click()
    strip = tab.get_by_role("list", name="drawn tokens")
    assert strip.locator("li").all_inner_texts() == ["␣a", "␣a", "↵", "c"]
    assert numbers(tab, 4) == ["0.500", "0.250", "0.250"]
    ticks = tab.locator(".track").evaluate_all(
        "tracks => tracks.map((t) => t.style.getPropertyValue('--drawn'))"
    )
    assert ticks[:3] == ["0.5", "0.25", "0.25"]
    assert tab.get_by_text("4 drawn:").is_visible()
    until_equal(tab, tab.locator(".said").inner_text, "drawn: c")

    tab.get_by_role("slider", name="top-k").fill("1")
    assert strip.locator("li").count() == 0, "another distribution, another count"
    assert numbers(tab, 4) == ["", "", ""]
    tab.get_by_role("button", name="Draw 100").click()
    assert numbers(tab, 4) == ["1.000", "0.000", "0.000"]
    assert tab.get_by_text("100 drawn, the last:").is_visible()
    assert strip.locator("li").count() == 40
    tab.get_by_role("button", name="Reset").click()
    assert tab.get_by_text("0 drawn").is_visible()


def test_draws_follow_the_knobs(book, show):
    logits = random_logits(64, 2)
    tab = show(SamplingPanel({"a": logits}, map(str, range(64))))
    tab.evaluate("""() => { let seed = 1; Math.random = () => {
        seed = (seed * 48271) % 2147483647; return seed / 2147483647; } }""")
    tab.get_by_role("slider", name="temperature").fill("1.5")
    tab.get_by_role("slider", name="top-p").fill("0.8")
    tab.get_by_role("button", name="Show all 64").click()
    for _ in range(40):
        tab.get_by_role("button", name="Draw 100").click()
    p = next_token_probabilities(logits, temperature=1.5, top_p=0.8)
    ids = list(map(int, numbers(tab, 1)))
    share = torch.tensor(list(map(float, numbers(tab, 4))), dtype=torch.float64)
    kept = p[ids] > 0
    assert not share[~kept].any()
    expected = 4000 * p[ids][kept]
    chi_square = ((4000 * share[kept] - expected) ** 2 / expected).sum() / kept.sum()
    assert chi_square < 2


def test_rows_beyond_the_first_can_be_shown(book, show):
    tab = show(SamplingPanel({"a": random_logits(3000)}, map(str, range(3000))))
    assert numbers(tab, 1)[12:] == ["2,988 others"]
    tab.get_by_role("slider", name="top-k").fill("20")
    assert numbers(tab, 1)[12:] == ["2,988 others, 8 kept"]
    button = tab.get_by_role("button", name="Show 50")
    button.focus()
    tab.keyboard.press("Enter")
    assert len(numbers(tab, 1)) == 51
    assert numbers(tab, 3)[19:].count("cut") == 31
    tab.keyboard.press("Enter")
    assert len(numbers(tab, 1)) == 13


@pytest.mark.parametrize("alone", [False, True], ids=["site", "alone"])
def test_hostile_text_stays_text(show, monkeypatch, alone):
    monkeypatch.delenv("GPT2LIB_BOOK", raising=False)
    if not alone:
        monkeypatch.setenv("GPT2LIB_BOOK", "1")
    panel = SamplingPanel({HOSTILE: [3, 0], "b": [0, 1]}, [HOSTILE, "c"])
    tab = show(panel, alone=alone)
    tab.get_by_role("button", name="Draw 100").click()
    tab.get_by_role("slider", name="temperature").fill("2")
    tab.get_by_role("button", name="Draw", exact=True).click()
    assert numbers(tab, 1) == [HOSTILE, "c"]
    assert tab.locator("option").all_inner_texts() == [HOSTILE, "b"]
    assert tab.locator("gpt2-sampling-panel :is(img, script)").count() == 0
    assert tab.evaluate("window.hit") is None


def test_alone_two_panels_share_a_page(elsewhere, show):
    tab = show(three_tokens(), three_contexts(), alone=True)
    assert tab.get_by_role("slider").count() == 6
    tab.get_by_role("slider", name="top-k").first.fill("1")
    assert tab.locator("output").all_inner_texts()[:3] == ["1.00", "1", "off"]
    assert tab.locator("output").all_inner_texts()[3:] == ["1.00", "off", "off"]


def test_moved_within_the_page_it_goes_on(book, show):
    tab = show(three_tokens())
    tab.get_by_role("slider", name="top-k").fill("2")
    tab.evaluate("document.body.append(document.querySelector('gpt2-sampling-panel'))")
    assert numbers(tab, 3) == ["0.778", "0.222", "cut"]
    tab.get_by_role("slider", name="top-k").fill("1")
    assert numbers(tab, 3) == ["1.000", "cut", "cut"]


STRANGE = ["שלום", "مرحبا", "👍🏽", "\U0001f469\u200d\U0001f467", "\u200b", "\u202eabc"]
STRANGE += ["\u0301", "x" * 300, "長い" * 50]


@pytest.mark.parametrize("width", [390, 1600])
def test_tokens_of_any_script_stay_in_their_place(book, show, width):
    logits = torch.arange(len(STRANGE), 0, -1).double()
    tab = show(SamplingPanel({"שלום " * 40: logits}, STRANGE), width=width)
    for _ in range(2):
        tab.get_by_role("button", name="Draw 100").click()
    assert numbers(tab, 1) == [_readable(token) for token in STRANGE]
    assert tab.evaluate("document.documentElement.scrollWidth") == width
    edges = tab.evaluate("""() => {
      const root = document.querySelector("gpt2-sampling-panel").shadowRoot;
      const panel = root.querySelector(".panel").getBoundingClientRect();
      return [...root.querySelectorAll("td, th, .track, li, select, button")]
        .filter((e) => e.checkVisibility())
        .map((e) => e.getBoundingClientRect())
        .filter((box) => box.left < panel.left || box.right > panel.right).length;
    }""")
    assert edges == 0
    assert tab.locator("gpt2-sampling-panel").evaluate(ASTRAY) == []
    cells = tab.locator(".panel tbody th").evaluate_all(
        "ths => ths.filter(e => e.checkVisibility())"
        ".map((e) => e.nextSibling.getBoundingClientRect().left)"
    )
    assert len(set(cells)) == 1, "the numbers stand in one column"


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_accessible(book, show, theme):
    tab = show(three_contexts(), theme=theme)
    tab.get_by_role("slider", name="top-p").fill("0.7")
    tab.get_by_role("button", name="Draw 100").click()
    tab.wait_for_timeout(300)
    tab.evaluate(AXE_SCRIPT)
    found = tab.evaluate("axe.run().then((found) => found.violations)")
    assert found == []
    ink = tab.locator("body").evaluate("body => getComputedStyle(body).color")
    inks = tab.locator(".panel :is(th, td, button, select, output)").evaluate_all(
        "all => all.map((e) => getComputedStyle(e).color)"
    )
    assert set(inks) == {ink}
    table = tab.get_by_role("table")
    caption = "What may follow “text 0↵”: probabilities before and after the knobs"
    assert table.locator("caption").inner_text() == caption
    heads = table.get_by_role("columnheader").all_inner_texts()
    assert [head.split()[0] for head in heads] == ["token", "before", "after", "drawn"]
    assert table.get_by_role("rowheader").count() == 13


def test_without_motion_where_it_is_not_wanted(book, show):
    for wanted, motion in (("no-preference", "0.12s"), ("reduce", "0s")):
        tab = show(three_tokens(), reduced_motion=wanted)
        bar = tab.locator(".track .after").first
        style = "bar => getComputedStyle(bar).transitionDuration"
        assert bar.evaluate(style) == motion


def test_without_a_script_the_table_is_there(book, show):
    tab = show(three_tokens(), scripts=False)
    table = tab.get_by_role("table", name="The 3 likeliest of 3 tokens after “one”")
    assert table.is_visible()
    assert table.locator("td").all_inner_texts() == ["0.700", "0.200", "0.100"]


def test_as_a_widget_it_tells_and_listens(book, show):
    tab = show()
    contexts = three_tokens().contexts
    knobs = {"context": 0, "temperature": 1, "top_k": None, "top_p": 1}
    tab.evaluate(MODEL, [MODULE, {"contexts": contexts, **knobs}])
    tab.get_by_role("slider", name="top-p").fill("0.75")
    assert tab.evaluate("saved.at(-1)") == {"contexts": 0, **knobs, "top_p": 0.75}
    tab.evaluate("model.set('top_k', 1)")
    tab.evaluate("model.set('temperature', 0.5)")
    tab.evaluate("model.set('context', 1)")
    assert tab.locator("output").all_inner_texts() == ["0.50", "1", "0.75"]
    assert numbers(tab, 3) == ["1.000", "cut", "cut"]
    assert numbers(tab, 1)[0] == "↵"
    tab.evaluate("leave()")
    assert tab.evaluate("heard.size") == 0


# In the built book -------------------------------------------------------------


@pytest.fixture(scope="module")
def pages(site):
    """Return the pages that hold a panel."""
    return [
        f"notebooks/{path.name}"
        for path in sorted((site / "notebooks").glob("*.html"))
        if "<gpt2-sampling-panel" in path.read_text("utf-8")
    ]


def test_the_book_has_the_panels_of_its_notebooks(pages):
    """That of the appendix is one; the others are wherever a notebook shows one."""
    wanted = {
        f"notebooks/{path.stem}.html"
        for path in NOTEBOOKS
        if "<gpt2-sampling-panel data-state" in path.read_text("utf-8")
    }
    assert "notebooks/appendix_figures.html" in wanted
    assert wanted <= set(pages)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("over", ["http", "file"])
def test_in_the_book_sliders_move_bars(pages, browser, over, scheme):
    with tab_in_the_book(browser, over, scheme) as (tab, base):
        for page in pages:
            tab.goto(base + page)
            tab.evaluate(UNFOLD)
            for panel in tab.locator("gpt2-sampling-panel").all():
                use(tab, panel)
            tab.set_viewport_size(PHONE)
            assert tab.evaluate("document.documentElement.scrollWidth") == 390


def use(tab, panel):
    """Move each slider by keyboard; the first token's number must change."""
    first = panel.locator(".panel tbody tr").first.locator("td").nth(1)
    for name, key in (("temperature", "End"), ("top-k", "Home"), ("top-p", "Home")):
        before = first.inner_text()
        panel.get_by_role("slider", name=name).focus()
        tab.keyboard.press(key)
        assert first.inner_text() != before, name
        panel.get_by_role("button", name="Reset").press("Enter")
        assert first.inner_text() == panel.locator(".panel tbody td").first.inner_text()
    ground = "getComputedStyle(document.body).color"
    ink = panel.locator("label").first.evaluate("e => getComputedStyle(e).color")
    assert ink == tab.evaluate(ground)
