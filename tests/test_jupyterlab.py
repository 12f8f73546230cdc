"""Explorer, sampling panel and play panel in JupyterLab, with a kernel and without."""

import itertools
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import nbformat
import pytest
import torch
from conftest import ROOT
from in_browser import open_tab
from nbformat.v4 import new_code_cell, new_notebook
from playwright.sync_api import Expect, Page

from gpt2lib.hooks import capture, edit
from gpt2lib.language_model import GPT2LMHeadModel
from gpt2lib.sampling_panel import _readable
from gpt2lib.tokenizer import load_tokenizer

SLOW = 90_000  # milliseconds: a kernel imports torch while other tests run
expect = Expect()  # of this file: what waits, waits so long
expect.set_options(timeout=SLOW)
KERNEL = {"name": "of-the-test", "display_name": "Of the test", "language": "python"}
TEXT = "To be, or not to be"
CELLS = [
    """import json
from pathlib import Path

from gpt2lib.explorer import AttentionExplorer
from gpt2lib.language_model import GPT2LMHeadModel
from gpt2lib.play_panel import PlayPanel
from gpt2lib.sampling_panel import SamplingPanel
from gpt2lib.tokenizer import load_tokenizer

model = GPT2LMHeadModel.from_pretrained("shakespeare-char")
tokenizer = load_tokenizer("shakespeare-char")""",
    f"""explorer = AttentionExplorer(model, tokenizer, {TEXT!r})
explorer""",
    """widget = explorer.widget()
chosen = ["layer", "head", "query", "key"]


def keep(change):
    values = {name: getattr(widget, name) for name in chosen}
    Path("chosen.json").write_text(json.dumps(values))


widget.observe(keep, chosen)
widget""",
    """panel = SamplingPanel({"a": [2.0, 1.0, 0.0]}, "xyz").widget()
panel""",
    f"""PlayPanel(text={TEXT!r}, show=("sampling", "attention"))""",
    "",  # where the tests run what they want to know
]
PLAIN, LIVE, PANEL, PLAY, SCRATCH = 1, 2, 3, 4, 5


# The server and the notebook --------------------------------------------------

SETTINGS = {
    "@jupyterlab/apputils-extension:notification": {
        "checkForUpdates": False,
        "fetchNews": "false",
    },
    "@jupyterlab/extensionmanager-extension:plugin": {"enabled": False},
}


class Server:
    """A JupyterLab that keeps all it has in one folder and knows one kernel."""

    def __init__(self, home):
        self.home, self.token, self.url = home, secrets.token_hex(), ""
        self.notebooks = self.home / "notebooks"
        self.kernel = self.home / "data" / "kernels" / KERNEL["name"]
        self.notebooks.mkdir()
        settings = self.home / "config" / "labconfig"
        settings.mkdir(parents=True)
        changed = settings / "default_setting_overrides.json"
        changed.write_text(json.dumps(SETTINGS))
        self.write_kernel()

    def write_kernel(self):
        self.kernel.mkdir(parents=True)
        launch = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        (self.kernel / "kernel.json").write_text(json.dumps({"argv": launch, **KERNEL}))

    def environment(self):
        """What is set outside, but for the book's mode and the user's folders."""
        ours = ("GPT2LIB_", "JUPYTER", "JPY_", "IPYTHON")
        outer = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
        folders = {"HOME": "", "IPYTHONDIR": "ipython", "MPLCONFIGDIR": "matplotlib"}
        for kind in ("CONFIG", "DATA", "RUNTIME"):
            folders[f"JUPYTER_{kind}_DIR"] = kind.lower()
        own = {name: str(self.home / folder) for name, folder in folders.items()}
        return outer | own | {"PYTHONPATH": str(ROOT)}

    def start(self):
        options = [
            "--no-browser",
            "--allow-root",
            "--ServerApp.ip=127.0.0.1",
            "--ServerApp.port=0",
            "--ServerApp.answer_yes=True",  # to Ctrl-C, which it hears too
            "--ServerApp.terminals_enabled=False",
            "--LabApp.extension_manager=readonly",
            f"--KernelSpecManager.allowed_kernelspecs={KERNEL['name']}",
            f"--ServerApp.root_dir={self.notebooks}",
            f"--IdentityProvider.token={self.token}",
        ]
        with (self.home / "log").open("w") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "jupyterlab", *options],
                env=self.environment(),
                cwd=self.home,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def wait_for(self, process):
        """Learn the address from the file that the server writes once it listens."""
        end = time.monotonic() + SLOW / 1000
        while not self.url:
            running = process.poll() is None and time.monotonic() < end
            assert running, (self.home / "log").read_text()
            for path in (self.home / "runtime").glob("jpserver-*.json"):
                found = re.search(r'"url": "(.*?)"', path.read_text())
                self.url = found[1] if found else ""
            time.sleep(0.05)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("jupyterlab"))
    process = server.start()
    try:
        server.wait_for(process)
        yield server
    finally:
        process.terminate()  # it ends its kernels, then itself
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()  # and the kernels notice
            process.wait()


@dataclass
class Notebook:
    """A notebook in a tab of the browser, used as a reader does."""

    server: Server
    tab: Page

    def output(self, n):
        return self.cell(n).locator(".jp-OutputArea-output")

    def cell(self, n):
        return self.tab.locator(".jp-Notebook .jp-Cell").nth(n)

    def menu(self, bar, *items):
        self.tab.get_by_role("menubar").get_by_text(bar, exact=True).click()
        for item in items:
            self.tab.locator(".lm-Menu-itemLabel").get_by_text(item, exact=True).click()

    def wait_until_idle(self):
        expect(self.tab.get_by_text(f"{KERNEL['display_name']} | Idle")).to_be_visible()

    def wait_until_run(self, n):
        prompt = self.cell(n).locator(".jp-InputPrompt")
        expect(prompt).to_have_text(re.compile(r"^\[\d+\]:$"))

    def run(self, n, source=None):
        """Run a cell by keyboard, with another source if one is given."""
        prompt = self.cell(n).locator(".jp-InputPrompt")
        before = prompt.inner_text()
        self.cell(n).locator(".cm-content").click()
        if source is not None:
            self.tab.keyboard.press("Control+A")
            self.tab.keyboard.insert_text(source)
        self.tab.keyboard.press("Control+Enter")
        expect(prompt).not_to_have_text(before)
        self.wait_until_run(n)
        self.wait_until_idle()

    def python(self, source):
        """Run statements in the kernel; they must print nothing, so not fail."""
        self.run(SCRATCH, source)
        assert self.output(SCRATCH).all_inner_texts() == []

    def value(self, expression):
        self.run(SCRATCH, f"print(json.dumps({expression}))")
        return json.loads(self.output(SCRATCH).inner_text())

    def until(self, look, right):
        """Look until what is seen is right."""
        end = time.monotonic() + SLOW / 1000
        while not right(seen := look()):
            assert time.monotonic() < end, f"waited in vain, last saw {seen}"
            self.tab.wait_for_timeout(50)


@contextmanager
def opened(browser, server, name):
    """The notebook of this name in a tab of its own; nothing may go wrong in it."""
    tab, faults = open_tab(browser, server.url)
    try:
        tab.set_default_timeout(SLOW)
        tab.set_viewport_size({"width": 1280, "height": 1600})
        path = f"lab/workspaces/{Path(name).stem}/tree/{name}"
        tab.goto(f"{server.url}{path}?token={server.token}")
        notebook = Notebook(server, tab)
        notebook.cell(SCRATCH).wait_for()
        yield notebook
        assert not faults
    finally:
        tab.context.close()


@pytest.fixture(scope="module")
def notebook(browser, server):
    """A notebook all of whose cells were run through the menu."""
    cells = [new_code_cell(source) for source in CELLS]
    written = new_notebook(cells=cells, metadata={"kernelspec": KERNEL})
    nbformat.write(written, server.notebooks / "live.ipynb")
    with opened(browser, server, "live.ipynb") as notebook:
        notebook.wait_until_idle()
        notebook.menu("Run", "Run All Cells")
        for n in range(SCRATCH):
            notebook.wait_until_run(n)
        notebook.wait_until_idle()
        yield notebook


# What Python says -------------------------------------------------------------


@dataclass
class Reading:
    """One text as the model reads it."""

    tokens: list
    weights: torch.Tensor  # (L, H, T, T)
    p: dict  # the name of each token -> its probability as the next


@pytest.fixture(scope="module")
def read():
    """What the model makes of a text, with one head switched off if one is named."""
    model = GPT2LMHeadModel.from_pretrained("shakespeare-char").eval()
    tokenizer = load_tokenizer("shakespeare-char")

    def read(text, off=None):
        def silence(heads):  # (B, H, T, D)
            heads[:, off[1]] = 0

        ids, name = tokenizer.encode(text), "transformer.blocks.{}.attention.heads"
        edits = {name.format(off[0]): silence} if off else {}
        with torch.no_grad(), edit(model, edits), capture(model, "*.weights") as found:
            logits = model(torch.tensor([ids]))[0, -1]  # (V,)
        names = [_readable(tokenizer.decode([i])) for i in range(len(logits))]
        p = dict(zip(names, logits.softmax(-1).tolist(), strict=True))
        return Reading([names[i] for i in ids], torch.cat([*found.values()]), p)

    return read


# What the page shows ----------------------------------------------------------

OPACITY = """canvases => canvases.map((canvas) => {
  const { width, height } = canvas;
  const { data } = canvas.getContext("2d").getImageData(0, 0, width, height);
  return Array.from({ length: width * height }, (_, n) => data[4 * n + 3]);
})"""
CELL_TEXTS = "rows => rows.map((row) => [...row.cells].map((cell) => cell.innerText))"


def radio(explorer, layer, head):
    name = re.compile(f"^layer {layer}, head {head},")
    return explorer.get_by_role("radio", name=name)


def pictures(explorer):
    """The opacity of each pixel in the picture of each head, `(L * H, T * T)`."""
    heads = explorer.get_by_role("radiogroup", name="heads")
    return torch.tensor(heads.locator("canvas").evaluate_all(OPACITY))


def assert_heads(explorer, weights):
    """In the pictures more weight is more colour, and what comes later is empty."""
    T = weights.size(-1)
    for picture, head in zip(pictures(explorer), weights.flatten(0, 1), strict=True):
        assert not picture.unflatten(0, (T, T)).triu(1).any()
        rising = picture[head.flatten().argsort()]
        assert (rising >= rising.cummax(0).values - 2).all()
        assert rising[0] == 0
        assert rising[-1] == 255


def assert_next(explorer, reading, before=None):
    """The ten likeliest tokens are those of Python, and so are their numbers."""
    columns = (
        {"before": before, "after": reading} if before else {"probability": reading}
    )
    table = explorer.get_by_role("table", name="The likeliest next tokens")
    heads = table.get_by_role("columnheader")
    expect(heads).to_have_text(["token", *columns])
    highest = {name: max(c.p[name] for c in columns.values()) for name in reading.p}
    rows = table.locator("tbody tr").evaluate_all(CELL_TEXTS)
    assert len({name for name, *_ in rows}) == 10
    for name, *numbers in rows:
        assert highest[name] > sorted(highest.values())[-10] - 1e-5
        for number, column in zip(numbers, columns.values(), strict=False):
            p = float(number.replace("<0.001", "0"))
            assert p == pytest.approx(column.p[name], abs=6e-4), name


def assert_shows(explorer, reading, before=None):
    tokens = explorer.get_by_role("group", name=re.compile("^tokens of"))
    shown = tokens.get_by_role("button")
    expect(shown).to_have_text(reading.tokens)
    assert_next(explorer, reading, before)
    assert_heads(explorer, reading.weights)


# The live explorer ------------------------------------------------------------


@pytest.fixture
def live(notebook):
    """A live explorer, new: what an earlier test chose in it is gone."""
    notebook.run(LIVE)
    explorer = notebook.output(LIVE)
    explorer.get_by_role("button", name="Read").wait_for()
    return explorer


def test_all_cells_run_and_both_explorers_appear(notebook, read):
    errors = notebook.tab.locator(".jp-OutputArea [data-mime-type$=error]")
    assert errors.all_inner_texts() == []
    plain, live = notebook.output(PLAIN), notebook.output(LIVE)
    assert_shows(plain, read(TEXT))
    assert_shows(live, read(TEXT))
    assert plain.get_by_role("textbox").count() == 0, "nobody would answer"
    assert live.get_by_role("textbox", name="text").input_value() == TEXT


def test_a_new_text_is_answered_by_the_kernel(notebook, live, read):
    press, type_in = notebook.tab.keyboard.press, notebook.tab.keyboard.type
    field, message = live.get_by_role("textbox", name="text"), live.get_by_role("alert")
    field.focus()
    press("Control+A")
    type_in("Now is the winter")
    press("Enter")
    assert_shows(live, read("Now is the winter"))
    assert notebook.value("widget.prompts") == ["Now is the winter"]

    before = pictures(live)
    field.focus()
    press("End")
    type_in(" €")
    press("Enter")
    expect(message).to_contain_text("€")
    assert_shows(live, read("Now is the winter"))
    assert torch.equal(pictures(live), before)
    assert field.input_value() == "Now is the winter €"

    press("Backspace")
    press("Backspace")
    type_in("!")
    press("Tab")  # to the button
    press("Space")
    assert_shows(live, read("Now is the winter!"))
    expect(message).to_have_text("")
    expect(live.get_by_text("Python is")).to_have_count(0)


def distance(one, other):
    return max(abs(one.p[name] - other.p[name]) for name in one.p)


def test_a_head_that_is_switched_off_changes_what_comes_next(notebook, live, read):
    before = read(TEXT)
    heads = itertools.product(range(5), range(4))  # of the last layer, none reads
    readings = {head: read(TEXT, off=head) for head in heads}
    off = max(readings, key=lambda head: distance(before, readings[head]))
    assert distance(before, readings[off]) > 0.05
    name = f"layer {off[0]}, head {off[1]}"

    radio(live, *off).click()
    live.get_by_role("button", name="Switch off this head").press("Enter")
    assert_shows(live, readings[off], before)
    assert radio(live, *off).get_attribute("aria-label").endswith("switched off")
    assert notebook.value("widget.ablated") == [list(off)]
    live.get_by_role("button", name=f"Restore {name}").press("Enter")
    assert_shows(live, before)
    assert notebook.value("widget.ablated") == []
    notebook.python(f"widget.ablated = [{list(off)}]")
    assert_shows(live, readings[off], before)


def test_python_hears_what_is_chosen_and_can_choose(notebook, live, read):
    told = notebook.server.notebooks / "chosen.json"
    told.unlink(missing_ok=True)
    expected = {"layer": 2, "head": 1, "query": 7, "key": -1}
    radio(live, 0, 0).focus()
    for key in ("ArrowDown", "ArrowDown", "ArrowRight"):
        notebook.tab.keyboard.press(key)
    tokens = live.get_by_role("group", name=re.compile("^tokens of"))
    tokens.get_by_role("button").nth(7).press("Enter")
    notebook.until(
        lambda: told.read_text() if told.exists() else "",
        lambda text: text == json.dumps(expected),
    )
    assert (
        notebook.value("{name: getattr(widget, name) for name in chosen}") == expected
    )

    most = read(TEXT).weights[2, 1, 7].argmax().item()
    live.get_by_role("application", name=re.compile("^weights of")).press("ArrowLeft")
    notebook.until(
        lambda: notebook.value("[widget.query, widget.key]"),
        lambda pair: pair == [7, max(most - 1, 0)],
    )

    notebook.python("widget.layer, widget.head, widget.query, widget.key = 4, 3, 5, 2")
    expect(radio(live, 4, 3)).to_be_checked()
    expect(live.locator(".about")).to_have_text("layer 4, head 3")
    expect(live.locator(".readout")).to_contain_text("“\u2068,\u2069” (5) reads")
    expect(tokens.get_by_role("button", pressed=True)).to_have_text([","])


def test_two_views_of_one_widget_move_together(notebook, live):
    notebook.run(SCRATCH, "widget")
    other = notebook.output(SCRATCH)
    radio(other, 3, 2).click()
    expect(radio(live, 3, 2)).to_be_checked()
    live.get_by_role("radio", name="Lines").click()
    expect(other.get_by_role("radio", name="Lines")).to_be_checked()
    field = live.get_by_role("textbox", name="text")
    field.fill("Both")
    field.press("Enter")
    for explorer in (live, other):
        strip = explorer.get_by_role("group", name=re.compile("^tokens of"))
        expect(strip.get_by_role("button")).to_have_text(list("Both"))


# Keys -------------------------------------------------------------------------

# Commands of a notebook, among others: a and b insert a cell, x and dd cut it, m and y
# change its type, 0 0 restarts the kernel, h opens a dialog, Shift+Enter runs a cell.
LETTERS = "abxcvzddmmyrffhlo00ii123456 sp ABCDFGHKLMNOPRSVXZ"
OTHERS = ["ArrowUp", "ArrowDown", "Escape", "Shift+Enter", "Control+Enter"]

STATES = """notebook => [...notebook.querySelectorAll(".jp-Cell")].map((cell) => [
  ...["jp-MarkdownCell", "jp-mod-active"].map((name) => cell.classList.contains(name)),
  cell.querySelector(".jp-InputPrompt").textContent,
  cell.querySelector(".jp-InputArea-editor").textContent,
])"""


@contextmanager
def cells_left_alone(notebook):
    """What is done inside changes no cell, runs none and opens no dialog."""
    cells = notebook.tab.locator(".jp-Notebook")
    before = cells.evaluate(STATES)
    yield
    notebook.tab.wait_for_timeout(200)  # a command follows its key within 10 ms
    assert cells.evaluate(STATES) == before
    assert notebook.tab.get_by_role("dialog").count() == 0


def test_keys_stay_in_the_explorer(notebook, live):
    field = live.get_by_role("textbox", name="text")
    field.focus()
    with cells_left_alone(notebook):
        notebook.tab.keyboard.press("Control+A")
        notebook.tab.keyboard.type(LETTERS)
        for key in OTHERS:
            notebook.tab.keyboard.press(key)
    assert field.input_value() == LETTERS
    for explorer in (notebook.output(PLAIN), live):
        radio(explorer, 0, 0).focus()
        with cells_left_alone(notebook):
            notebook.tab.keyboard.type(LETTERS)
            for key in OTHERS:
                notebook.tab.keyboard.press(key)
        expect(radio(explorer, 1, 0)).to_be_checked()


def test_the_sampling_panel_tells_python_and_listens(notebook):
    notebook.run(PANEL)
    panel = notebook.output(PANEL)
    slider = panel.get_by_role("slider", name="temperature")
    slider.focus()
    with cells_left_alone(notebook):
        notebook.tab.keyboard.type(LETTERS)
        for key in ("ArrowUp", "ArrowDown", "ArrowLeft", "ArrowDown"):
            notebook.tab.keyboard.press(key)
    assert slider.input_value() == "0.9"
    look = partial(notebook.value, "panel.temperature")
    notebook.until(look, lambda temperature: temperature == 0.9)
    notebook.python("panel.top_k, panel.temperature = 1, 0.5")
    after = panel.locator("tbody tr:visible > :nth-child(3)")
    expect(after).to_have_text(["1.000", "cut", "cut"])
    assert panel.locator("output").all_inner_texts() == ["0.50", "1", "off"]


# The play panel, which needs no kernel ------------------------------------------


def check_play(panel, text, reading):
    """The table shows what the model says of the text, but for its eight bits."""
    field = panel.get_by_role("textbox", name="text")
    rows = panel.locator(".box table.next tbody tr").evaluate_all(CELL_TEXTS)
    shown = {name: float(p.replace("<", "")) for name, p, *_ in rows}
    return field.input_value() == text and all(
        abs(p - reading.p[name]) < 0.02 for name, p in shown.items()
    )


def test_keys_typed_into_the_play_panel_reach_its_model_alone(notebook, read):
    notebook.run(PLAY)  # what an earlier test did to it is gone
    panel, tab = notebook.output(PLAY), notebook.tab
    field = panel.get_by_role("textbox", name="text")
    until = partial(notebook.until, right=bool)
    assert panel.locator(".state").inner_text() == "an example made beforehand"
    until(lambda: check_play(panel, TEXT, read(TEXT)))
    with cells_left_alone(notebook):
        field.focus()
        tab.keyboard.press("Control+A")
        tab.keyboard.type("My lord")
        expect(panel.locator(".state")).to_have_text("running in this page")
        until(lambda: check_play(panel, "My lord", read("My lord")))
        tab.keyboard.press("Enter")
        tab.keyboard.type("abxcvzddmmy")
        typed = "My lord\nabxcvzddmmy"
        until(lambda: check_play(panel, typed, read(typed)))
        for key in OTHERS:
            tab.keyboard.press(key)
        field.fill(typed)
        for place in (
            panel.get_by_role("checkbox", name="greedy"),
            panel.get_by_role("slider", name="temperature"),
            radio(panel, 0, 0),
        ):
            place.focus()
            tab.keyboard.type(LETTERS.replace(" ", ""))  # a space is a click
            for key in OTHERS:
                tab.keyboard.press(key)
        button = panel.get_by_role("button", name="Switch off this head")
        button.press("Enter")
        panel.get_by_role("columnheader", name="all heads on").wait_for()
    assert field.input_value() == typed
    panel.get_by_role("button", name="Step").press("Enter")
    notebook.until(field.input_value, lambda text: len(text) == len(typed) + 1)


# Light and dark ---------------------------------------------------------------

# How many texts there are, and the one with the least contrast to what lies behind it.
CONTRAST = """output => {
  const canvas = new OffscreenCanvas(1, 1);
  const brush = canvas.getContext("2d", { willReadFrequently: true });
  const paint = (colour, opacity = 1) => {
    brush.globalAlpha = opacity;
    brush.fillStyle = colour;
    brush.fillRect(0, 0, 1, 1);
  };
  const linear = (byte) =>
    byte <= 10 ? byte / 255 / 12.92 : ((byte / 255 + 0.055) / 1.055) ** 2.4;
  const luminance = () => {
    const [red, green, blue] = [...brush.getImageData(0, 0, 1, 1).data].map(linear);
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  };
  const contrast = (element) => {
    const styles = [];
    for (let e = element; e; e = e.parentElement ?? e.getRootNode().host) {
      styles.unshift(getComputedStyle(e));
    }
    paint("white");
    for (const { backgroundColor } of styles) paint(backgroundColor);
    const ground = luminance();
    paint(styles.at(-1).color, styles.reduce((all, { opacity }) => all * opacity, 1));
    const ink = luminance();
    return (Math.max(ink, ground) + 0.05) / (Math.min(ink, ground) + 0.05);
  };
  const isText = (e) => {
    const { width, height } = e.getBoundingClientRect();
    if (width <= 1 || height <= 1 || !e.checkVisibility()) return false;
    if (e.matches("style, script, option")) return false;
    if (e.matches("select, input[type=text]")) return true;
    return [...e.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
  };
  const inside = (root) => [...root.querySelectorAll("*")].flatMap((e) =>
    e.shadowRoot ? [e, ...inside(e.shadowRoot)] : [e]);
  const found = inside(output).filter(isText).map((e) => [contrast(e), e.textContent]);
  return { count: found.length, least: found.sort(([a], [b]) => a - b)[0] };
}"""


@pytest.fixture(params=["Light", "Dark"])
def theme(request, notebook):
    """Choose a theme of JupyterLab, while the explorers are there."""
    body = notebook.tab.locator("body")
    notebook.menu("Settings", "Theme", f"JupyterLab {request.param}")
    expect(body).to_have_attribute("data-jp-theme-name", f"JupyterLab {request.param}")
    yield request.param
    notebook.menu("Settings", "Theme", "JupyterLab Light")
    expect(body).to_have_attribute("data-jp-theme-name", "JupyterLab Light")


def wait_until_legible(notebook, output):
    notebook.until(
        partial(output.evaluate, CONTRAST),
        lambda seen: seen["count"] > 15 and seen["least"][0] >= 4.5,
    )


def test_every_text_can_be_read(notebook, live, theme):
    field = live.get_by_role("textbox", name="text")
    field.fill("€")
    field.press("Enter")
    expect(live.get_by_role("alert")).to_contain_text("€")
    live.get_by_role("button", name="Switch off this head").click()
    live.get_by_role("button", name="Restore").wait_for()
    for output in (notebook.output(PLAIN), live):
        for view in ("Steps", "Lines", "Matrix"):
            output.get_by_role("radio", name=view).click()
            wait_until_legible(notebook, output)
    wait_until_legible(notebook, notebook.output(PANEL))


# Opened again without a kernel ------------------------------------------------


@pytest.fixture
def saved(notebook):
    """The notebook's file, in which JupyterLab has saved every output."""
    path, mark = notebook.server.notebooks / "live.ipynb", f"# {secrets.token_hex()}"
    notebook.run(SCRATCH, mark)
    notebook.menu("File", "Save Notebook")
    notebook.until(partial(path.read_text, "utf-8"), lambda text: mark in text)
    return path


@contextmanager
def without_kernel(browser, server, path):
    """The notebook in a new tab, where its kernel is not known."""
    shutil.rmtree(server.kernel)
    try:
        with opened(browser, server, path.name) as notebook:
            dialog = notebook.tab.get_by_role("dialog")
            dialog.get_by_role("button", name="No Kernel").click()
            expect(dialog).to_have_count(0)
            yield notebook
    finally:
        server.write_kernel()


def assert_works(notebook, explorer):
    radio(explorer, 0, 0).focus()
    notebook.tab.keyboard.press("ArrowDown")
    expect(radio(explorer, 1, 0)).to_be_checked()
    expect(explorer.locator(".about")).to_have_text("layer 1, head 0")


def test_opened_without_a_kernel_the_explorer_is_there(browser, server, saved, read):
    written = nbformat.read(saved, as_version=4)
    assert "widgets" not in written.metadata
    page = written.cells[PLAIN].outputs[0].data["text/html"]
    assert page.count("<script>") == 1, "it was made for this page, not for the book's"
    again = saved.with_name("again.ipynb")
    shutil.copy(saved, again)  # trusted too: JupyterLab has signed what is in it
    with without_kernel(browser, server, again) as notebook:
        assert_shows(notebook.output(PLAIN), read(TEXT))
        assert_works(notebook, notebook.output(PLAIN))


def test_of_a_notebook_that_is_not_trusted_the_table_is_there(browser, server, saved):
    written = nbformat.read(saved, as_version=4)
    written.cells[SCRATCH].source = "# not what JupyterLab has signed"
    foreign = saved.with_name("foreign.ipynb")
    nbformat.write(written, foreign)
    with without_kernel(browser, server, foreign) as notebook:
        shown = notebook.output(PLAIN)
        table = shown.get_by_role(
            "table", name=re.compile("^What each token reads most")
        )
        expect(table.get_by_role("rowheader")).to_have_text([*map(_readable, TEXT)])
        assert shown.locator("gpt2-attention-explorer, script").count() == 0

        notebook.tab.keyboard.press("Control+Shift+C")
        notebook.tab.locator(".lm-CommandPalette-input").fill("Trust Notebook")
        notebook.tab.locator(".lm-CommandPalette-item").first.click()
        dialog = notebook.tab.get_by_role("dialog")
        dialog.get_by_role("button", name="Trust").click()
        assert_works(notebook, shown)
