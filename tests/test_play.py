"""The model that runs in the page: what is stored, and what a reader does with it."""

import base64
import json
import math
import re
import subprocess
import sys
from contextlib import contextmanager
from functools import cache
from http.server import SimpleHTTPRequestHandler
from itertools import pairwise
from statistics import median
from threading import Event
from urllib.parse import parse_qs, urldefrag, urlencode
from xml.etree import ElementTree

import pytest
import torch
from axe_playwright_python.base import AXE_SCRIPT
from conftest import HOSTILE, NOTEBOOKS, ROOT
from in_browser import (
    ASTRAY,
    PAGE,
    PATIENCE,
    STATIC,
    WRONG,
    built_site,
    html,
    open_tab,
    served,
    tab_in_the_book,
    until,
    until_equal,
)
from oracle import random_model

from gpt2lib.analysis import logit_lens, without_heads
from gpt2lib.data import load_corpus
from gpt2lib.figures import _bundle, _element_script
from gpt2lib.hooks import capture
from gpt2lib.language_model import GPT2LMHeadModel
from gpt2lib.play_panel import PlayPanel
from gpt2lib.sampling import generate, next_token_probabilities
from gpt2lib.sampling_panel import _readable
from gpt2lib.tokenizer import BPETokenizer, CharTokenizer, load_tokenizer
from gpt2lib.train import TrainConfig, train
from gpt2lib.web import export, read

NAME = "gpt2-play-panel"
SHIPPED = "shakespeare-char"
FILE = f"{SHIPPED}.gpt2"
MADE, RUNS = "an example made beforehand", "running in this page"
EMPTY = "Type something: the model continues a text."
ALL = ("sampling", "lens", "attention", "cache", "file")
TEXT = "ROMEO:\nBut soft, what light"
LONGEST_TASK = 50  # milliseconds of the main thread


# What the model says, by Python -------------------------------------------------------


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    """The shipped model as the page has it: in eight bits, read from its file."""
    model = GPT2LMHeadModel.from_pretrained(SHIPPED)
    path = tmp_path_factory.mktemp("shipped") / FILE
    export(model, load_tokenizer(SHIPPED), path)
    return Reference(path)


class Reference:
    """A model's file, and what gpt2lib makes of a text with it."""

    def __init__(self, path):
        self.path = path
        self.model, self.tokenizer = read(path)
        size = self.model.config.vocab_size
        self.names = [_readable(self.tokenizer.decode([i])) for i in range(size)]

    def ids(self, text):
        """The tokens on which what follows the text depends."""
        config, ids = self.model.config, self.tokenizer.encode(text)
        reach = config.block_size
        if config.position == "rotary":
            reach = config.n_layer * (reach - 1) + 1
        return torch.tensor([ids[-reach:]])

    @cache  # noqa: B019 - there are as few as there are files
    def logits(self, text, off=()):
        with torch.no_grad(), without_heads(self.model, off):
            return self.model(self.ids(text), last_only=True)[0, -1].double()

    def p(self, text, off=(), **knobs):
        return next_token_probabilities(self.logits(text, tuple(off)), **knobs)

    @cache  # noqa: B019
    def greedy(self, text, count):
        ids = generate(self.model, self.ids(text), count, greedy=True)[0, -count:]
        return self.tokenizer.decode(ids.tolist())


# What the panel stores ----------------------------------------------------------------


def state(page):
    return json.loads(ElementTree.fromstring(page).get("data-state"))


@cache
def in_the_book(**options):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPT2LIB_BOOK", "1")
        return html(PlayPanel(**options))


@cache
def standing_alone(**options):
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("GPT2LIB_BOOK", raising=False)
        return html(PlayPanel(**options))


FALLBACK = {NAME, "div", "table", "caption", "thead", "tbody", "tr", "th", "td", "span"}
LETTERS = sorted(set(HOSTILE + "abc \nשלום👍"))


def own():
    """A small model of the letters, random, with learned positions."""
    return random_model("learned", (2, 2, 16, len(LETTERS), 24), seed=1)


def letters():
    return CharTokenizer(LETTERS)


def test_output_repeats_and_names_itself(book):
    panel = PlayPanel()
    assert html(panel) == html(panel) == in_the_book()
    assert list(panel._repr_mimebundle_()) == ["text/plain", "text/html"]
    said = "PlayPanel: shakespeare-char, 6 layers x 4 heads, 919,296 parameters"
    assert repr(panel) == said
    assert state(html(panel))["show"] == list(ALL)


def test_size():
    longest = "".join(LINES)[:128]
    for text in ("ROMEO:\n", longest):
        assert len(in_the_book(text=text).encode()) < 60_000
        without = in_the_book(text=text, show=("sampling", "lens", "cache", "file"))
        assert len(without.encode()) < 8_000


def test_in_the_book_the_weights_stay_in_their_file(shipped):
    page = in_the_book()
    found = state(page)
    assert (found["address"], found["data"]) == (FILE, None)
    assert "<script" not in page.lower()
    assert found["info"]["bytes"] == shipped.path.stat().st_size


def test_elsewhere_it_brings_all_that_it_needs(shipped):
    page = standing_alone()
    assert page.lower().count("<script") == page.lower().count("</script") == 1
    [data] = re.findall('"data": ?"([A-Za-z0-9+/=]+)"', page)
    assert base64.b64decode(data) == shipped.path.read_bytes()
    tags = re.findall("<[a-z][^>]*>", re.sub("(?s)<script>.*", "", page))
    assert not [tag for tag in tags if re.search(r"\b(src|href)=", tag)]


def test_a_model_of_ones_own_comes_along(book, tmp_path):
    page = html(PlayPanel(own(), letters(), text="abc", name="mine"))
    found = state(page)
    assert found["address"] is None
    path = tmp_path / "mine.gpt2"
    path.write_bytes(base64.b64decode(found["data"]))
    assert found["info"]["name"] == "mine"
    reference = Reference(path)
    assert reference.tokenizer.characters == letters().characters
    p = reference.p("abc")
    for row in found["example"]["next"]["rows"]:
        assert row["before"] == pytest.approx(p[row["id"]].item(), abs=2e-6)


def test_hostile_text_is_data(book):
    hostile = CharTokenizer(LETTERS)
    page = html(PlayPanel(own(), hostile, text=HOSTILE[:24], name=HOSTILE))
    element = ElementTree.fromstring(page)
    assert element.tag == NAME
    assert {e.tag for e in element.iter()} <= FALLBACK
    assert json.loads(element.get("data-state"))["info"]["name"] == HOSTILE
    assert "<img" not in page
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("GPT2LIB_BOOK")
        alone = html(PlayPanel(own(), hostile, text=HOSTILE[:24], name=HOSTILE))
    assert "<img" not in alone
    assert alone.lower().count("</script") == 1


def test_noise_of_float64_does_not_show(book, monkeypatch):
    """Another machine sums in another order; the rounded output must not tell."""
    from gpt2lib import play_panel

    model = own()
    quiet = html(PlayPanel(model, letters(), text="abcab"))
    lens = play_panel.logit_lens

    def noisy(*args):
        found = lens(*args)
        generator = torch.Generator().manual_seed(0)
        return found + 1e-15 * torch.randn(found.shape, generator=generator).double()

    monkeypatch.setattr(play_panel, "logit_lens", noisy)
    assert html(PlayPanel(model, letters(), text="abcab")) == quiet


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"show": ("lense",)}, ValueError, "show: no part 'lense'; there are sampling"),
        ({"show": "lens"}, ValueError, "show: no part 'l'"),
        ({"text": ""}, ValueError, "text has 0 tokens; the example may have 1 to 128"),
        ({"text": "a" * 129}, ValueError, "text has 129 tokens"),
        ({"text": "naïve"}, ValueError, "'ï' at position 2"),
        ({"text": 7}, TypeError, "text must be a str, got 7"),
        ({"model": torch.nn.Linear(1, 1), "tokenizer": 1}, TypeError, "got Linear"),
        ({"model": own()}, TypeError, "give the model's tokenizer too"),
        (
            {"model": own(), "tokenizer": CharTokenizer("ab"), "text": "ab"},
            ValueError,
            "must have the model's 40 tokens, got 2",
        ),
        (
            {"model": own(), "tokenizer": letters(), "text": "a" * 25},
            ValueError,
            "text has 25 tokens; the example may have 1 to 24",
        ),
    ],
)
def test_refuses(options, error, message):
    with pytest.raises(error, match=message):
        PlayPanel(**options)


def test_refuses_a_file_that_no_page_bears():
    signs = [chr(0x4E00 + i) for i in range(16_000)]
    large = random_model("learned", (1, 1, 512, len(signs), 8))
    with pytest.raises(ValueError, match=r"has \d+ MB, and an output bears 8") as found:
        PlayPanel(large, CharTokenizer(signs), text=signs[0])
    assert "python -m gpt2lib.web FOLDER -o my-model.gpt2" in str(found.value)
    assert "Play" in str(found.value)


def test_fallback_table_is_that_of_the_example(shipped):
    table = ElementTree.fromstring(in_the_book()).find(".//table")
    assert "likeliest tokens after “ROMEO:↵”" in table.find("caption").text
    rows = [
        ("".join(row.find("th").itertext()), float(row.find("td/span").text))
        for row in table.findall("tbody/tr")
    ]
    p, ids = shipped.p("ROMEO:\n").topk(10)
    assert [name for name, _ in rows] == [shipped.names[i] for i in ids]
    assert [number for _, number in rows] == pytest.approx(p.tolist(), abs=5.1e-4)


def test_the_scripts_can_be_inlined():
    for name in ("play-panel", "play-worker"):
        module = (STATIC / f"{name}.js").read_text("utf-8")
        for wrong in ("</", "innerHTML", "insertAdjacent", "eval(", "http:", "https:"):
            assert wrong not in module, (name, wrong)
    script = _element_script("play-panel")
    assert "</script" not in script.lower()
    assert script.count(f'customElements.define("{NAME}"') == 1
    assert not re.search(r"^(import|export)\b", script, re.M)
    assert not re.search(r"^(import|export)\b", _bundle("play-worker"), re.M)


# A page with panels -------------------------------------------------------------------

LINES = [
    "ROMEO:\nBut soft, what light through yonder window breaks?\n",
    "It is the east, and Juliet is the sun. Arise, fair sun, and kill the moon.\n",
]
LONG = "".join(reversed(LINES)) * 200  # 26,400 characters
FOCUSED = """() => {
  let e = document.activeElement;
  while (e?.shadowRoot?.activeElement) e = e.shadowRoot.activeElement;
  const name = e.ariaLabel || e.labels?.[0]?.textContent || e.textContent;
  return e === document.body ? "" : `${e.localName} ${name.trim()}`;
}"""
# What there is to read of the next token: the last number of a row is its bar's.
SEEN = """box => {
  const table = box.querySelector("table.next");
  const texts = (cells) =>
    [...cells].filter((c) => !c.hidden && c.innerText).map((c) => c.innerText.trim());
  return {
    columns: texts(table.tHead.rows[0].cells),
    rows: [...table.tBodies[0].rows].filter((row) => !row.hidden).map((row) => [
      ...texts(row.cells),
      Number(row.querySelector(".track").style.getPropertyValue("--before")),
    ]),
    figures: box.querySelector("p.figures").innerText,
  };
}"""
# Keeps all that the panel of this number says of where its model stands.
STATUS = """(n) => {
  const root = document.querySelectorAll("gpt2-play-panel")[n].shadowRoot;
  const status = root.querySelector(".state");
  window.words = [status.textContent];
  new MutationObserver(() => {
    const { textContent: word } = status;
    if (window.words.at(-1) !== word) window.words.push(word);
  }).observe(status, { childList: true, characterData: true, subtree: true });
}"""


def number(text):
    return float(text.replace(",", "").replace("<", ""))


class Panel:
    """A panel in a tab, and how a reader uses it."""

    def __init__(self, tab, model, n=0):
        self.tab, self.model = tab, model
        self.element = tab.locator(NAME).nth(n)
        self.box = self.element.locator(".box")  # without the explorer
        self.text = self.element.get_by_role("textbox", name="text")
        self.stream = self.element.locator("button.stream")

    def button(self, name):
        return self.element.get_by_role("button", name=name, exact=True)

    def slider(self, name):
        return self.element.get_by_role("slider", name=name)

    def check(self, name):
        return self.element.get_by_role("checkbox", name=name)

    @property
    def value(self):
        return self.text.input_value()

    @property
    def status(self):
        return self.element.locator(".state").inner_text()

    @property
    def messages(self):
        """The messages that are shown, by their words."""
        return self.box.locator(".message span").all_inner_texts()

    @property
    def note(self):
        return self.box.locator(".note").text_content()

    @property
    def said(self):
        """What the panel, and not its explorer, has last said to those who listen."""
        text = self.box.locator(".said").text_content()
        return text.replace("\u2068", "").replace("\u2069", "")

    def start(self):
        self.text.click()
        self.wait_until_it_runs()
        return self

    def wait_until_it_runs(self):
        until(self.tab, lambda: self.check_status(RUNS))

    def check_status(self, words):
        assert self.status == words

    def rows(self, table):
        """The cells of a table that are to be seen and hold text, by row."""
        return self.box.locator(f"table.{table}").evaluate(
            """table => [...table.tBodies[0].rows].filter((row) => !row.hidden).map(
              (row) => [...row.cells].filter((c) => !c.hidden && c.innerText)
                .map((c) => c.innerText))"""
        )

    def columns(self):
        return self.box.evaluate(SEEN)["columns"]

    def id_of(self, name, shown, p):
        """The token of this name; of bytes that are no characters, the likely one."""
        ids = [i for i, other in enumerate(self.model.names) if other == name]
        return min(ids, key=lambda i: abs(p[i].item() - shown))

    def check_next(self, text, off=(), **knobs):
        """The table says what gpt2lib does of this text, with these knobs."""
        before = self.model.p(text, off)
        after = self.model.p(text, off, **knobs)
        whole = self.model.p(text) if off else None
        height = before.maximum(whole) if off else before
        least = height.sort(descending=True).values[: len(height)][:10][-1]
        seen = self.box.evaluate(SEEN)
        columns = [before] if "probability" in seen["columns"] else [before, after]
        columns += [whole] if off else []
        assert len(seen["rows"]) == min(10, len(height))
        for name, *numbers, share in seen["rows"]:
            assert len(numbers) == len(columns)
            i = self.id_of(name, number(numbers[0]), before)
            assert share == pytest.approx(before[i].item(), abs=1e-3)
            assert height[i] > least - 1e-3, name
            for shown, p in zip(numbers, columns, strict=True):
                if shown == "cut":
                    assert p is after
                    assert p[i] == 0, name
                else:
                    assert number(shown) == pytest.approx(p[i].item(), abs=1e-3), name
                    assert p[i] > 0
        figures = seen["figures"]
        nats = [torch.special.entr(p).sum().item() for p in (after, before)]
        said = [number(found) for found in re.findall(r"\d+\.\d\d", figures)]
        assert said == pytest.approx(nats[: len(said)], abs=0.006)
        if kept := re.search(r"([\d,]+) of ([\d,]+) tokens kept", figures):
            assert number(kept[1]) == (after > 0).sum().item()
            assert number(kept[2]) == len(after)

    def wait_for_next(self, text, off=(), seconds=PATIENCE, **knobs):
        until(self.tab, lambda: self.check_next(text, off, **knobs), seconds)

    def wait_for_text(self, right, seconds=PATIENCE):
        def check():
            assert right(self.value)

        until(self.tab, check, seconds)
        return self.value

    def wait_until_it_said(self, pattern):
        def check():
            assert re.match(pattern, self.said), self.said

        until(self.tab, check)

    def wait_for_message(self, words, seconds=PATIENCE):
        def check():
            assert any(words in message for message in self.messages), self.messages

        until(self.tab, check, seconds)

    def stop(self):
        self.stream.click()
        until(self.tab, self.check_stopped)

    def last_value(self):
        """The text once nothing more is added to it."""
        last = None
        while last != (last := self.value):
            self.tab.wait_for_timeout(400)
        return last

    def check_stopped(self):
        assert self.stream.inner_text() == "Stream"


class Shelf:
    """A folder with the element's script, the model's file in both forms, and pages."""

    def __init__(self, folder, file):
        self.folder, self.n = folder, 0
        (folder / "element.js").write_text(_element_script("play-panel"), "utf-8")
        (folder / "favicon.ico").touch()
        self.put(file.read_bytes())

    def put(self, data):
        (self.folder / FILE).write_bytes(data)
        numbers = base64.b64encode(data).decode()
        script = f'gpt2Files["{FILE}"] = "{numbers}";\n'
        (self.folder / f"{FILE}.js").write_text(script, "utf-8")

    def page(self, *panels, theme="light", alone=False, head=""):
        style = f"<style>{(STATIC / 'book.css').read_text('utf-8')}</style>"
        script = '<script defer src="element.js"></script>'
        head += "" if alone else style + script
        self.n += 1
        name = f"{self.n}.html"
        page = PAGE.replace("THEME", theme).replace("HEAD", head)
        (self.folder / name).write_text(page.replace("BODY", "".join(panels)), "utf-8")
        return name


@pytest.fixture(scope="module")
def shelf(tmp_path_factory, shipped):
    return Shelf(tmp_path_factory.mktemp("shelf"), shipped.path)


@pytest.fixture(scope="module")
def bases(shelf):
    with served(shelf.folder) as address:
        yield {"http": address, "file": f"{shelf.folder.as_uri()}/"}


@pytest.fixture(params=["http", "file"])
def over(request):
    return request.param


@pytest.fixture
def show(browser, bases, shelf, shipped):
    """Return a function that opens a page of panels; nothing may go wrong in it.

    It returns the panels. Faults that a test expects, it names in `expected`.
    """
    tabs = []

    def show(*panels, over="file", hash="", width=1280, expected="", **more):
        theme = more.pop("theme", "light")
        name = shelf.page(
            *(panels or [in_the_book()]), theme=theme, **more.pop("page", {})
        )
        tab, faults = open_tab(browser, bases[over], theme)
        tabs.append((tab, faults, expected))
        tab.set_viewport_size({"width": width, "height": 900})
        tab.emulate_media(**more)
        tab.add_init_script(WRONG)
        tab.asked = []
        tab.on("request", lambda request: tab.asked.append(request.url))
        tab.goto(bases[over] + name + (f"#{hash}" if hash else ""))
        found = [Panel(tab, shipped, n) for n in range(max(1, len(panels)))]
        return found if len(found) > 1 else found[0]

    yield show
    for tab, faults, expected in tabs:
        if expected:
            faults = [fault for fault in faults if not re.search(expected, fault)]
        assert not faults
        if not tab.is_closed():
            assert tab.evaluate("window.wrong ?? []") == []
            assert tab.evaluate("window.hit") is None
        tab.context.close()


def weights_asked(tab):
    """The names of the files of weights that the page asked for."""
    files = [url.rpartition("/")[2] for url in tab.asked]
    return [name for name in files if ".gpt2" in name]


# Before and at the first touch --------------------------------------------------------


def test_before_the_first_touch_there_is_an_example(over, show):
    panel = show(over=over)
    panel.tab.mouse.move(300, 300)
    panel.tab.mouse.wheel(0, 400)
    panel.tab.wait_for_timeout(300)
    assert panel.status == MADE
    panel.check_next("ROMEO:\n")
    check_lens(panel, "ROMEO:\n")
    heads = panel.element.locator(".heads").get_by_role("radio")
    until_equal(panel.tab, heads.count, 24)
    assert weights_asked(panel.tab) == []
    assert panel.tab.workers == []
    assert panel.said == ""
    assert panel.messages == []


def test_without_a_script_there_is_a_table(browser, shelf, shipped):
    context = browser.new_context(java_script_enabled=False)
    tab = context.new_page()
    tab.goto((shelf.folder / shelf.page(in_the_book())).as_uri())
    table = tab.get_by_role("table", name="The 10 likeliest tokens after")
    assert table.is_visible()
    p, ids = shipped.p("ROMEO:\n").topk(10)
    names = table.get_by_role("rowheader").all_inner_texts()
    assert names == [shipped.names[i] for i in ids]
    shown = map(float, table.locator("td:visible").all_inner_texts())
    assert list(shown) == pytest.approx(p.tolist(), abs=5.1e-4)
    context.close()


@pytest.mark.parametrize("touch", ["pointer", "keyboard", "hash"])
def test_the_first_touch_brings_the_weights_once(over, show, touch):
    linked = in_the_book(link=True)
    hash = "temperature=0.5" if touch == "hash" else ""
    panels = show(linked, in_the_book(), over=over, hash=hash)
    one, two = panels
    tab = one.tab
    tab.evaluate(STATUS, 0)
    if touch == "pointer":
        one.text.click()
    elif touch == "keyboard":
        tab.keyboard.press("Tab")
    one.wait_until_it_runs()
    words = tab.evaluate("words")
    assert words[-1] == RUNS
    if touch != "hash":
        assert words[0] == MADE
    assert all(re.fullmatch(r"loading \d\d? %", word) for word in words[1:-1])
    assert len(words) >= 3 or touch == "hash"
    assert two.status == MADE
    assert len(tab.workers) == 1
    two.text.click()
    two.wait_until_it_runs()
    assert len(tab.workers) == 2
    name = FILE if over == "http" else f"{FILE}.js"
    assert weights_asked(tab) == [name]
    one.text.fill("JULIET:\n")
    one.wait_for_next("JULIET:\n", temperature=0.5 if touch == "hash" else 1)
    two.check_next("ROMEO:\n")


def test_progress_is_told(shipped, browser, tmp_path, monkeypatch):
    """Over a slow line the words go up; what the reader does meanwhile is not lost."""
    shelf, data = Shelf(tmp_path, shipped.path), shipped.path.read_bytes()
    go_on = Event()

    class Slow(SimpleHTTPRequestHandler):
        def do_GET(self):
            if not self.path.endswith(FILE):
                return super().do_GET()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            half = len(data) // 2
            self.wfile.write(data[:half])
            self.wfile.flush()
            go_on.wait(20)
            self.wfile.write(data[half:])

    monkeypatch.setattr("http.server.SimpleHTTPRequestHandler", Slow)
    name = shelf.page(in_the_book())
    with served(tmp_path) as base:
        tab, faults = open_tab(browser, base)
        tab.goto(base + name)
        panel = Panel(tab, shipped)
        tab.evaluate(STATUS, 0)
        panel.text.press("End")
        until(tab, lambda: panel.check_status("loading 49 %"))
        panel.text.press("Control+End")
        panel.text.press_sequentially("Who")
        panel.button("Step").click()
        assert panel.stream.inner_text() == "Stop", "it is waited for"
        assert panel.value == "ROMEO:\nWho"
        go_on.set()
        panel.wait_until_it_runs()
        text = panel.wait_for_text(lambda text: len(text) == len("ROMEO:\nWho") + 1)
        panel.wait_for_next(text)
        tab.context.close()
    assert not faults


# Reading ------------------------------------------------------------------------------


def check_lens(panel, text):
    reference = panel.model
    with torch.no_grad():
        layers = logit_lens(reference.model, reference.ids(text))[:, 0, -1].softmax(-1)
    rows = panel.rows("lens")
    names = [row[0] for row in rows]
    assert names == ["embedding", *(f"layer {n}" for n in range(len(layers) - 1))]
    final = layers[-1].argmax().item()
    for (_, *cells, last), p in zip(rows, layers, strict=True):
        values, _ = p.sort(descending=True)
        for place, cell in enumerate(cells):
            name, shown = cell.rsplit(maxsplit=1)
            assert number(shown) == pytest.approx(values[place].item(), abs=1e-3)
            own = p[reference.names.index(name)].item()
            assert number(shown) == pytest.approx(own, abs=1e-3)
        assert number(last) == pytest.approx(p[final].item(), abs=1e-3)
    heads = panel.box.locator("table.lens thead th").last.inner_text()
    assert heads == f"p of {reference.names[final]}, likeliest at the end"


def test_typing_moves_the_probabilities(over, show):
    panel = show(over=over).start()
    panel.text.press("Control+A")
    text = ""
    for letter in "First Citizen:\nWe a":
        panel.tab.keyboard.press("Enter" if letter == "\n" else letter)
        text += letter
        panel.wait_for_next(text)
        assert panel.value == text
    until(panel.tab, lambda: check_lens(panel, text))
    assert panel.element.locator(".head .figures").inner_text() == f"{len(text)} tokens"
    caption = panel.box.locator("table.next caption").inner_text()
    assert "“…\u2068" not in caption
    assert "izen:↵We a" in caption
    for other in ("To be, or not to be", "KING RICHARD III:\n", " ", "\n\n", TEXT):
        panel.text.fill(other)
        panel.wait_for_next(other)
    panel.text.press("Home")  # in the middle, too
    panel.tab.keyboard.type("x")
    panel.wait_for_next(panel.value)
    assert "x" in panel.value[:-1]


def test_words_typed_quickly_end_where_they_should(show):
    panel = show().start()
    panel.text.press("Control+End")
    line = "Then I deny you, stars! Thou know'st my lodging: get me ink and paper"
    panel.text.press_sequentially(line)
    panel.wait_for_next("ROMEO:\n" + line)
    for _ in range(len(line)):
        panel.tab.keyboard.press("Backspace")
    panel.wait_for_next("ROMEO:\n")


KNOBS = [
    {"temperature": 0.1},
    {"temperature": 0.55, "top_k": 5},
    {"temperature": 1.7, "top_p": 0.9},
    {"temperature": 3.0, "top_k": 50, "top_p": 0.05},
    {"top_k": 1},
]


def test_knobs_are_those_of_python(show):
    panel = show().start()
    panel.text.fill(TEXT)
    panel.wait_for_next(TEXT)
    assert panel.columns() == ["token", "before", "after"]
    for knobs in KNOBS:
        for name in ("temperature", "top_k", "top_p"):
            slider = panel.slider(name.replace("_", "-"))
            start = {"temperature": 1}.get(name, slider.get_attribute("max"))
            slider.fill(str(knobs.get(name, start)))
        panel.wait_for_next(TEXT, **knobs)
    panel.text.fill("JULIET:\nO")  # they stay
    panel.wait_for_next("JULIET:\nO", **KNOBS[-1])
    cut = [row[2] for row in panel.rows("next")]
    assert cut == ["1.000"] + ["cut"] * 9
    assert panel.slider("top-p").get_attribute("aria-valuetext") == "off"
    assert panel.slider("top-k").get_attribute("aria-valuetext") == "1"


def test_a_tokens_button_appends_it(show):
    panel = show().start()
    panel.text.fill("O Romeo")
    panel.wait_for_next("O Romeo")
    text = "O Romeo"
    for n in (0, 3, 9):
        names = [row[0] for row in panel.rows("next")]
        panel.box.locator("table.next button.token").nth(n).click()
        text += {"␣": " ", "↵": "\n"}.get(names[n], names[n])
        assert panel.value == text
        panel.wait_for_next(text)
    last = re.escape(text[-1].replace("\n", "↵"))
    panel.wait_until_it_said(f"added “{last}”\\. Likeliest next: ")


def test_what_was_done_before_the_model_came_is_done_then(over, show):
    panel = show(over=over)
    panel.check("greedy").evaluate("e => { e.checked = true; }")
    panel.button("Step").evaluate("e => { e.click(); e.click(); e.click(); }")
    text = panel.wait_for_text(lambda text: len(text) == len("ROMEO:\n") + 3)
    assert text == "ROMEO:\n" + panel.model.greedy("ROMEO:\n", 3)
    panel.wait_for_next(text)


# Writing ------------------------------------------------------------------------------


def test_step_stream_stop_and_reset(over, show):
    panel = show(over=over).start()
    panel.text.fill(TEXT)
    panel.check("greedy").check()
    panel.button("Step").click()
    expected = TEXT + panel.model.greedy(TEXT, 300)
    panel.wait_for_text(lambda text: text == expected[: len(TEXT) + 1])
    panel.wait_for_next(expected[: len(TEXT) + 1])
    last = re.escape(expected[len(TEXT)].replace("\n", "↵"))
    panel.wait_until_it_said(f"added “{last}”\\. Likeliest next: ")

    panel.stream.click()
    assert panel.stream.inner_text() == "Stop"
    panel.wait_for_text(lambda text: len(text) > len(TEXT) + 200)
    assert panel.said.startswith("added “"), "while it streams nothing is said"
    panel.stop()
    panel.wait_until_it_said(r"added [\d,]+ tokens\. Likeliest next: ")
    text = panel.value
    panel.tab.wait_for_timeout(300)
    assert panel.value == text, "it has stopped"
    assert text[: len(expected)] == expected[: len(text)]
    panel.wait_for_next(text)
    until(panel.tab, lambda: check_lens(panel, text))

    panel.slider("temperature").fill("0.5")
    panel.button("Reset").click()
    assert panel.value == "ROMEO:\n"
    assert not panel.check("greedy").is_checked()
    panel.wait_for_next("ROMEO:\n")
    panel.tab.wait_for_timeout(300)
    assert panel.value == "ROMEO:\n"


def test_an_edit_ends_a_stream(show):
    panel = show().start()
    for edit in ("typing", "token", "reset", "escape"):
        panel.stream.click()
        panel.wait_for_text(lambda text: len(text) > 60)
        if edit == "typing":
            panel.text.press("Control+Home")
            panel.tab.keyboard.type("Good night")
        elif edit == "token":
            panel.box.locator("table.next button.token").first.click()
        elif edit == "reset":
            panel.button("Reset").click()
        else:
            panel.tab.keyboard.press("Escape")
        until(panel.tab, panel.check_stopped)
        text = panel.last_value()
        panel.wait_for_next(text)
        assert panel.value == text
        assert edit != "typing" or text.startswith("Good nightROMEO:\n")
        assert edit != "reset" or text == "ROMEO:\n"


def test_a_step_ends_a_stream_with_one_token(show):
    panel = show().start()
    panel.stream.click()
    panel.wait_for_text(lambda text: len(text) > 60)
    panel.button("Step").click()
    until(panel.tab, panel.check_stopped)
    text = panel.value
    panel.wait_for_next(text)
    for n in range(len(text) + 1, len(text) + 4):
        panel.button("Step").click()
        panel.wait_for_text(lambda new, n=n: len(new) == n)
    panel.wait_for_next(panel.value)


def test_knobs_change_a_stream_while_it_flows(show):
    panel = show().start()
    panel.stream.click()
    panel.wait_for_text(lambda text: len(text) > 40)
    panel.slider("top-k").fill("1")
    start = len(panel.value) + 200  # what was on its way is longer drawn
    panel.wait_for_text(lambda text: len(text) > start + 100)
    panel.stop()
    text = panel.value
    assert text[start:].startswith(panel.model.greedy(text[:start], 80))
    panel.wait_for_next(text, top_k=1)


def test_with_other_settings_a_stream_goes_on(show):
    """A head, the cache and greedy can be switched while it streams."""
    panel = show().start()
    panel.stream.click()
    for name in ("greedy", "KV cache"):
        size = len(panel.value)
        panel.wait_for_text(lambda text, size=size: len(text) > size + 30)
        panel.check(name).click()
    size = len(panel.value)
    panel.wait_for_text(lambda text: len(text) > size + 5)
    assert panel.stream.inner_text() == "Stop"
    panel.button("Switch off this head").click()
    size = len(panel.value)
    panel.wait_for_text(lambda text: len(text) > size + 5)
    panel.stop()
    assert panel.columns()[-1] == "all heads on"
    panel.wait_for_next(panel.value, off=[(0, 0)])


def test_two_panels_stream_at_once(show):
    one, two = show(in_the_book(), in_the_book(text="JULIET:\n"), over="http")
    for panel in (one, two):
        panel.start()
        panel.check("greedy").check()
        panel.stream.click()
    for panel in (one, two):
        panel.wait_for_text(lambda text: len(text) > 300, 40)
    for panel, prompt in ((one, "ROMEO:\n"), (two, "JULIET:\n")):
        panel.stop()
        text = panel.value
        panel.wait_for_next(text)
        assert text.startswith(prompt + panel.model.greedy(prompt, 200))
    assert len(one.tab.workers) == 2


# Lens, heads and cache ----------------------------------------------------------------


def test_the_lens_follows_the_text(show):
    page = in_the_book(text="My lord, we will not stay a minu", show=("lens",))
    panel = show(page)
    check_lens(panel, "My lord, we will not stay a minu")
    panel.start()
    for text in ("My lord, we will not stay a minut", "T", TEXT):
        panel.text.fill(text)
        until(panel.tab, lambda text=text: check_lens(panel, text))
    assert panel.columns() == ["token", "probability"], "there are no knobs"
    assert panel.element.get_by_role("slider").count() == 0
    assert panel.element.locator(".heads").count() == 0
    assert panel.button("Open a model file").count() == 0
    assert panel.check("KV cache").count() == 0


def radio(panel, layer, head):
    name = re.compile(f"^layer {layer}, head {head}[,:]?")
    return panel.element.get_by_role("radio", name=name)


def wait_for_strip(panel, text):
    """Wait until the explorer shows the tokens of this text."""

    def check():
        tokens = panel.element.locator(".strip").get_by_role("button")
        assert tokens.all_inner_texts() == [_readable(sign) for sign in text]

    until(panel.tab, check)


def test_heads_that_are_switched_off(show):
    panel = show().start()
    panel.text.fill(TEXT)
    panel.wait_for_next(TEXT)
    wait_for_strip(panel, TEXT)
    off = []
    for pair in [(0, 0), (2, 3), (5, 1)]:
        radio(panel, *pair).click()
        panel.button("Switch off this head").click()
        off.append(pair)
        panel.wait_for_next(TEXT, off=off)
        until(panel.tab, lambda: check_off(panel, off))
    assert panel.columns() == ["token", "before", "after", "all heads on"]
    panel.slider("temperature").fill("0.5")
    panel.wait_for_next(TEXT, off=off, temperature=0.5)
    panel.text.fill(TEXT + "s")
    panel.wait_for_next(TEXT + "s", off=off, temperature=0.5)
    panel.button("Step").click()
    text = panel.wait_for_text(lambda text: len(text) == len(TEXT) + 2)
    panel.wait_for_next(text, off=off, temperature=0.5)
    panel.button("Restore layer 2, head 3").click()
    panel.wait_for_next(text, off=[(0, 0), (5, 1)], temperature=0.5)
    panel.button("Reset").click()
    panel.wait_for_next("ROMEO:\n")
    assert panel.columns() == ["token", "before", "after"]
    until(panel.tab, lambda: check_off(panel, []))


def check_off(panel, off):
    names = (
        panel.element.locator(".heads")
        .get_by_role("radio")
        .evaluate_all(
            "all => all.filter((e) => e.ariaLabel.includes('switched off'))"
            ".map((e) => e.ariaLabel.match(/\\d+/g).slice(0, 2).map(Number))"
        )
    )
    assert names == sorted(map(list, off))


def test_the_lens_with_a_head_off(show):
    panel = show().start()
    wait_for_strip(panel, "ROMEO:\n")
    panel.button("Switch off this head").click()
    panel.wait_for_next("ROMEO:\n", off=[(0, 0)])

    def check():
        with without_heads(panel.model.model, [(0, 0)]):
            check_lens(panel, "ROMEO:\n")

    until(panel.tab, check)
    with pytest.raises(AssertionError):
        check_lens(panel, "ROMEO:\n")


def counts(panel, n):
    """The figures with the cache (0) or without (1), by name."""
    return {name: cells[n] for name, *cells in panel.rows("counts")}


def test_the_cache_saves_work(show):
    panel = show(in_the_book(show=("cache",))).start()
    config = panel.model.model.config
    text = "".join(LINES)[:127]
    panel.text.fill(text[:-1])
    panel.wait_for_next(text[:-1])
    panel.text.press("Control+End")
    panel.tab.keyboard.type(text[-1])
    panel.wait_for_next(text)
    assert counts(panel, 0)["positions computed"] == "1"
    panel.button("Step").click()
    text = panel.wait_for_text(lambda new: len(new) == 128)
    panel.wait_for_next(text)
    kept = counts(panel, 0)
    assert set(counts(panel, 1).values()) == {"–"}

    panel.check("KV cache").uncheck()
    until(panel.tab, lambda: check_positions(panel, 1, "128"))
    anew = counts(panel, 1)
    blocks = config.num_parameters - config.vocab_size * config.n_embd
    least = 128 * (blocks - 20 * config.n_embd * config.n_layer)
    assert number(anew["multiply-adds"]) > least
    panel.button("Step").click()
    text = panel.wait_for_text(lambda new: len(new) == 129)
    panel.wait_for_next(text)
    anew = counts(panel, 1)
    assert number(anew["positions computed"]) >= 128
    assert number(anew["multiply-adds"]) >= 10 * number(kept["multiply-adds"])
    assert counts(panel, 0) == kept, "they stay side by side"
    panel.check("KV cache").check()
    until(panel.tab, lambda: check_positions(panel, 0, "1"))
    panel.stream.click()
    panel.wait_for_text(lambda new: len(new) > 300)
    until(panel.tab, lambda: check_positions(panel, 0, "1"))
    streamed = counts(panel, 0)
    assert number(streamed["tokens a second"]) > 10
    assert number(streamed["multiply-adds a second"].split()[0]) > 1
    panel.stop()


def check_positions(panel, n, positions):
    assert counts(panel, n)["positions computed"] == positions


def test_a_step_with_the_cache_computes_one_position(show):
    panel = show(in_the_book(show=("cache",))).start()
    panel.wait_for_next("ROMEO:\n")
    panel.button("Step").click()
    text = panel.wait_for_text(lambda text: len(text) > len("ROMEO:\n"))
    panel.wait_for_next(text)
    assert counts(panel, 0)["positions computed"] == "1"


def signed(x):
    return f"{x:.2f}".replace("-", "\u2212").replace("\u22120.00", "0.00")


def test_q_k_and_v_of_a_pair(show):
    i, j, layer, head = 20, 11, 3, 1
    panel = show().start()
    panel.text.fill(TEXT)
    wait_for_strip(panel, TEXT)
    radio(panel, layer, head).click()
    panel.element.locator(".strip").get_by_role("button").nth(i).click()
    panel.element.get_by_role("radio", name="Steps").click()
    panel.element.locator("table.row tbody button").nth(j).click()
    panel.element.get_by_text("These vectors as a table").click()
    reference = panel.model
    with torch.no_grad(), capture(reference.model, ["*.q", "*.k", "*.v"]) as found:
        reference.model(reference.ids(TEXT))
    q, k, v = (
        torch.cat([x for name, x in found.items() if name.endswith(part)])[layer, head]
        for part in (".q", ".k", ".v")
    )
    weight = ((q[i] @ k[: i + 1].T) / math.sqrt(q.size(-1))).softmax(-1)[j]
    columns = [q[i], k[j], q[i] * k[j], v[j], weight * v[j]]
    texts = """table => [...table.tBodies[0].rows].map((row) =>
      [...row.cells].map((cell) => cell.textContent.replace("\u2212", "-")))"""
    by_feature = panel.element.locator("table.whole").first
    by_feature.locator("tbody tr").first.wait_for()
    rows = by_feature.evaluate(texts)
    assert [row[0] for row in rows] == [str(n) for n in range(len(q[i]))]
    for row, expected in zip(rows, zip(*columns, strict=True), strict=True):
        shown = [float(cell) for cell in row[1:]]
        assert shown == pytest.approx([x.item() for x in expected], abs=0.0051), row
    sums = {
        row[0]: row[2] for row in panel.element.locator("table.sums").evaluate(texts)
    }
    assert number(sums["softmax"]) == pytest.approx(weight.item(), abs=1e-3)
    most = (weight * v[j]).abs().max().item()
    assert number(sums["added"].strip("±")) == pytest.approx(most, abs=0.0051)
    assert panel.element.locator(
        ".bars p", has_text=f"v of “\u2068{TEXT[j]}"
    ).is_visible()


def test_the_place_in_the_explorer_stays(show):
    """Where one looks does not move while one types."""
    panel = show().start()
    wait_for_strip(panel, "ROMEO:\n")
    radio(panel, 4, 2).click()
    panel.element.get_by_role("radio", name="Lines").click()
    for text in ("ROMEO:\nO", "R", TEXT):
        panel.text.fill(text)
        wait_for_strip(panel, text)
        assert radio(panel, 4, 2).get_attribute("aria-checked") == "true"
        lines = panel.element.get_by_role("radio", name="Lines")
        assert lines.get_attribute("aria-checked") == "true"
    long = "".join(LINES)
    panel.text.fill(long)
    wait_for_strip(panel, long[-64:])
    note = panel.element.locator("section .note").last.text_content()
    assert f"the last 64 of {len(long)} tokens" in note


# Links --------------------------------------------------------------------------------


def test_a_link_restores_the_state(over, show):
    allowed = over == "http"  # to write to the clipboard
    panel = show(in_the_book(link=True), over=over)
    tab = panel.tab
    if allowed:
        tab.context.grant_permissions(["clipboard-read", "clipboard-write"])
    panel.start()
    text = "JULIET:\nO Romeo & Romeo;\n  wherefore - thou: 'tis?"
    panel.text.fill(text)
    panel.slider("temperature").fill("0.8")
    panel.slider("top-k").fill("10")
    panel.slider("top-p").fill("0.9")
    panel.check("greedy").check()
    panel.check("KV cache").uncheck()
    wait_for_strip(panel, text)
    for pair in [(1, 3), (4, 0)]:
        radio(panel, *pair).click()
        panel.button("Switch off this head").click()
    radio(panel, 2, 1).click()
    panel.element.get_by_role("radio", name="Steps").click()
    if not allowed:
        refuse = "() => { navigator.clipboard.writeText = () => Promise.reject(); }"
        tab.evaluate(refuse)
    panel.button("Copy a link").click()
    words = "on the clipboard" if allowed else "may not write to the clipboard"

    def check():
        assert words in panel.note

    until(tab, check)
    link = tab.url
    if allowed:
        assert tab.evaluate("navigator.clipboard.readText()") == link
    found = parse_qs(urldefrag(link).fragment, strict_parsing=True)
    assert found["text"] == [text]
    assert found["off"] == ["1.3,4.0"]

    fresh = Panel(tab.context.new_page(), panel.model)
    fresh.tab.goto(link)
    fresh.wait_until_it_runs()
    knobs = {"temperature": 0.8, "top_k": 10, "top_p": 0.9}
    fresh.wait_for_next(text, off=[(1, 3), (4, 0)], **knobs)
    assert fresh.value == text
    assert fresh.check("greedy").is_checked()
    assert not fresh.check("KV cache").is_checked()
    until(fresh.tab, lambda: check_off(fresh, [(1, 3), (4, 0)]))
    assert radio(fresh, 2, 1).get_attribute("aria-checked") == "true"
    steps = fresh.element.get_by_role("radio", name="Steps")
    assert steps.get_attribute("aria-checked") == "true"
    # Another link in the same tab is followed.
    fresh.tab.evaluate("location.hash = 'text=Who+is+it&top_k=3'")
    fresh.wait_for_next("Who is it", top_k=3)
    assert not fresh.check("greedy").is_checked()
    until(fresh.tab, lambda: check_off(fresh, []))
    fresh.tab.evaluate("location.hash = 'somewhere-else'")
    fresh.tab.wait_for_timeout(200)
    assert fresh.value == "Who is it"


NONSENSE = {
    "temperature": "NaN",
    "top_k": "-3",
    "top_p": "1e9",
    "off": "9.9,0.x,-1.0,0.0.0,<img src=x>,1e1.2,99999999999999999999.0",
    "layer": "600",
    "head": "1e0",
    "view": "</style><img src=x onerror=window.hit=1>",
    "cache": "perhaps",
    "greedy": "<b>",
    "constructor": "x",
    "__proto__": "x",
}


def test_nonsense_in_a_link_does_nothing(show):
    panel = show(in_the_book(link=True), hash=urlencode(NONSENSE))
    panel.wait_until_it_runs()
    panel.wait_for_next("ROMEO:\n")
    assert panel.value == "ROMEO:\n"
    assert panel.check("KV cache").is_checked()
    assert not panel.check("greedy").is_checked()
    assert [panel.slider(name).input_value() for name in ("temperature", "top-k")] == [
        "1",
        panel.slider("top-k").get_attribute("max"),
    ]
    until(panel.tab, lambda: check_off(panel, []))
    assert radio(panel, 0, 0).get_attribute("aria-checked") == "true"
    for hash in (
        "text=%",
        "text=%ff%fe%00abc",
        "temperature=" + "9" * 5000,
        "off=" + "0.0," * 5000,
        "&&&===&text",
        urlencode({"text": HOSTILE}),
        urlencode({"text": LONG}),
    ):
        panel.tab.evaluate("hash => { location.hash = hash; }", hash)
        panel.tab.wait_for_timeout(100)
    panel.wait_for_next(LONG[:10_000], seconds=40)
    assert panel.value == LONG[:10_000]


def test_only_a_panel_with_links_follows_them(show):
    panel = show(hash="text=abc")
    panel.tab.wait_for_timeout(300)
    assert panel.value == "ROMEO:\n"
    assert panel.status == MADE
    assert panel.button("Copy a link").count() == 0
    other = show(in_the_book(link=True), hash="a-heading")
    other.tab.wait_for_timeout(300)
    assert other.status == MADE, "not of the panel"


# Keys and voices ----------------------------------------------------------------------


def tab_to(panel, name, most=60):
    """Press Tab until what has this name has the focus; it is never nowhere."""
    keyboard = panel.tab.keyboard
    seen = []
    for _ in range(most):
        keyboard.press("Tab")
        seen.append(panel.tab.evaluate(FOCUSED))
        if re.fullmatch(name, seen[-1]):
            return
    raise AssertionError(f"{name} is not reached: {seen}")


def test_by_keyboard_alone(show, shipped, tmp_path):
    panel = show(in_the_book(link=True))
    tab, press, choosers = panel.tab, panel.tab.keyboard.press, []
    tab.on("filechooser", lambda chooser: choosers.append(chooser))
    focus = lambda: tab.evaluate(FOCUSED)  # noqa: E731
    stops = [
        "button Open a model file",
        "textarea text",
        "button Step",
        "button Stream",
        "button Reset",
        "button Copy a link",
        "input greedy",
        "input KV cache",
    ]
    for stop in stops:
        press("Tab")
        assert focus() == stop
    panel.wait_until_it_runs()
    rows = panel.rows("next")
    for n in range(10):
        press("Tab")
        assert focus() == f"button {rows[n][0]}"
    for name in ("temperature", "top-k", "top-p"):
        press("Tab")
        assert focus() == f"input {name}"

    panel.text.focus()  # once around is enough: what follows moves on from here
    press("Control+A")
    tab.keyboard.type("My lor")
    panel.wait_for_next("My lor")
    tab_to(panel, "button Step")
    press("Shift+Tab")
    assert focus() == "textarea text"
    tab_to(panel, "input greedy")
    press("Space")
    assert panel.check("greedy").is_checked()
    press("Shift+Tab")
    for name in ("Reset", "Stream", "Step"):
        press("Shift+Tab")
        assert focus() == f"button {name}"
    press("Enter")
    panel.wait_for_text(lambda text: text == "My lor" + shipped.greedy("My lor", 1))
    press("Space")
    panel.wait_for_text(lambda text: text == "My lor" + shipped.greedy("My lor", 2))
    press("Tab")
    press("Enter")
    panel.wait_for_text(lambda text: len(text) > 60)
    assert focus() == "button Stop"
    press("Space")
    until(tab, panel.check_stopped)
    assert focus() == "button Stream"
    press("Enter")
    size = len(panel.value)
    panel.wait_for_text(lambda text: len(text) > size + 30)
    press("Escape")
    until(tab, panel.check_stopped)
    text = panel.value
    assert text.startswith("My lor" + shipped.greedy("My lor", 60))
    tab_to(panel, "input KV cache")
    press("Space")
    assert not panel.check("KV cache").is_checked()
    press("Space")
    press("Tab")
    panel.wait_for_next(text)
    first = panel.rows("next")[0][0]
    press("Enter")  # the likeliest token
    text += {"␣": " ", "↵": "\n"}.get(first, first)
    panel.wait_for_next(text)
    assert panel.value == text
    assert focus().startswith("button "), "the row stays"
    for name, key, knob in (
        ("temperature", "ArrowLeft", {"temperature": 0.95}),
        ("top-k", "Home", {"temperature": 0.95, "top_k": 1}),
        ("top-p", "ArrowLeft", {"temperature": 0.95, "top_k": 1, "top_p": 0.99}),
    ):
        tab_to(panel, f"input {name}")
        press(key)
        panel.wait_for_next(text, **knob)

    tab_to(panel, r"button layer 0, head 0.*")
    press("ArrowDown")
    press("ArrowRight")
    assert focus().startswith("button layer 1, head 1")
    tab_to(panel, "button Switch off this head")
    press("Enter")
    panel.wait_for_next(text, off=[(1, 1)], **knob)
    until(tab, lambda: check_off(panel, [(1, 1)]))
    until_equal(tab, focus, "button Switch this head on")
    press("Tab")
    assert focus() == "button Restore layer 1, head 1"
    press("Enter")
    panel.wait_for_next(text, **knob)
    assert focus() == "button Switch off this head", "the other one is gone"
    tab_to(panel, "button Matrix")
    press("ArrowRight")
    press("ArrowRight")
    assert panel.element.locator("table.sums").is_visible()
    tab_to(panel, "button .")  # of the row: what is read
    press("ArrowDown")
    press("Enter")
    assert focus().startswith("button ")
    panel.button("Copy a link").focus()
    press("Enter")
    assert "top_k=1" in urldefrag(tab.url).fragment
    press("Shift+Tab")
    press("Enter")  # Reset
    panel.wait_for_next("ROMEO:\n")
    assert focus() == "button Reset"

    panel.text.focus()
    press("Control+End")
    tab.keyboard.insert_text("a€b")
    panel.wait_for_message("€")
    tab_to(panel, "button Leave them out")
    press("Enter")
    assert focus() == "textarea text", "the button is gone"
    assert panel.value == "ROMEO:\nab"
    panel.wait_for_next("ROMEO:\nab")

    path = tmp_path / "other.gpt2"
    export(own(), letters(), path)
    panel.button("Open a model file").focus()
    press("Enter")
    until(tab, lambda: check_asked(choosers))
    choosers[0].set_files(path)
    until(tab, lambda: check_name(panel, "other"))
    assert focus() == "button Open a model file"
    press("Tab")
    assert focus() == "button Back to the book's model"
    press("Enter")
    until(tab, lambda: check_name(panel, SHIPPED))
    assert focus() == "button Open a model file", "the button is gone"


def check_asked(choosers):
    assert len(choosers) == 1, "a dialog for a file"


def check_name(panel, name):
    assert panel.box.locator(".about b").inner_text() == name
    assert panel.status == RUNS


def test_names_and_roles(show):
    panel = show().start()
    find = panel.element.get_by_role
    assert find("group", name="a model in this page").count() == 1
    panel.element.get_by_role("radio", name="layer 0, head 0").first.wait_for()
    tables = ["What may follow", "The last reading", "What the model would say next"]
    for name in tables:
        table = find("table", name=re.compile(f"^{name}"))
        assert table.count() == 1, name
        assert table.get_by_role("columnheader").count() >= 2, name
        assert table.get_by_role("rowheader").count() >= 5, name
    assert find("textbox", name="text").get_attribute("dir") == "auto"
    for name in ("temperature", "top-k", "top-p"):
        assert find("slider", name=name).get_attribute("aria-valuetext")
    heads = panel.element.locator(":is(h2, h3, h4)").all_inner_texts()
    assert heads == ["Layer by layer", "Attention"]
    assert panel.element.locator(".box h2, section h2").count() == 2, "under the h1"
    assert panel.box.locator(".track").evaluate_all(
        "all => all.every((e) => e.ariaHidden === 'true')"
    )


# Keeps what is said, and each change that somebody makes, with their times.
HEARD = """() => {
  const root = document.querySelector("gpt2-play-panel").shadowRoot;
  [window.heard, window.changes] = [[], []];
  root.addEventListener("input", () => window.changes.push(performance.now()), true);
  for (const live of root.querySelectorAll("[role=status], [role=alert]")) {
    new MutationObserver(() => {
      if (live.textContent) window.heard.push([performance.now(), live.textContent]);
    }).observe(live, { childList: true, characterData: true, subtree: true });
  }
}"""


def hear_one_more(panel, n):
    """Wait until one thing was said after `n` others; see that it is the only one."""

    def check():
        assert len(panel.tab.evaluate("heard")) == n + 1

    until(panel.tab, check)
    panel.tab.wait_for_timeout(700)
    check()
    return panel.tab.evaluate("heard")[-1][1]


def test_it_speaks_at_rest_only(show):
    panel = show().start()
    panel.tab.wait_for_timeout(800)
    panel.tab.evaluate(HEARD)
    panel.text.press("Control+End")
    panel.text.press_sequentially("What light?", delay=60)
    panel.slider("temperature").press("ArrowLeft")
    panel.slider("temperature").press("ArrowLeft")
    heard, changes = panel.tab.evaluate("[heard, changes]")
    assert len(changes) == len("What light?") + 2
    for at, _ in heard:  # a slow machine rested between two keys
        assert at - max([0, *(change for change in changes if change < at)]) > 450
    said = hear_one_more(panel, len(heard))
    assert said == panel.element.locator(".box > .said").text_content()
    first, *_ = panel.rows("next")
    assert said.startswith(f"Likeliest next: {first[0]} {first[2]}, ")
    heard = panel.tab.evaluate("heard")
    panel.stream.click()
    panel.wait_for_text(lambda text: len(text) > 200)
    assert panel.tab.evaluate("heard") == heard
    panel.stop()
    hear_one_more(panel, len(heard))


# Looks --------------------------------------------------------------------------------

# Everything that is pressed and smaller than it should be; a label is pressed, too.
SMALL = """panel => {
  const inside = (root) => [...root.querySelectorAll("*")].flatMap((e) =>
    e.shadowRoot ? [e, ...inside(e.shadowRoot)] : [e]);
  return inside(panel.shadowRoot)
    .filter((e) => e.matches("button, input, select, textarea, summary"))
    .filter((e) => e.checkVisibility() && !e.matches(".file"))
    .map((e) => [e, (e.type === "checkbox" && e.closest("label") || e)])
    .map(([e, target]) => [e.outerHTML.slice(0, 80), target.getBoundingClientRect()])
    .filter(([, box]) => box.width < 24 || box.height < 24)
    .map(([text, box]) => `${text} ${box.width} x ${box.height}`);
}"""
AXE = """async () => {
  const found = await axe.run({ preload: false, resultTypes: ["violations"] });
  return found.violations.flatMap((v) => v.nodes.map((n) => `${v.id}: ${n.html}`));
}"""
INKS = """panel => {
  const own = getComputedStyle(document.body).color;
  return [...panel.shadowRoot.querySelectorAll("th, td, button, textarea, output, p")]
    .filter((e) => getComputedStyle(e).color !== own).map((e) => e.outerHTML);
}"""


def assert_fits(panel):
    """Nothing goes beyond the edges of the panel, and it not beyond the page's."""
    width = panel.tab.viewport_size["width"]
    box = panel.element.bounding_box()
    assert box["x"] + box["width"] <= width
    edges = panel.element.evaluate("""panel => {
      const root = panel.shadowRoot;
      const { left, right } = root.querySelector(".play").getBoundingClientRect();
      const isOut = (box) => box.left < left - 1 || box.right > right + 1;
      return [...root.querySelectorAll("td, th, .track, button, textarea, p, input")]
        .filter((e) => e.checkVisibility() && !e.matches(".said, .file"))
        .map((e) => [e.outerHTML.slice(0, 90), e.getBoundingClientRect()])
        .filter(([, box]) => box.width && isOut(box))
        .map(([text]) => text);
    }""")
    assert edges == []


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_looks(show, theme):
    panel = show(in_the_book(link=True), theme=theme, width=320).start()
    tab = panel.tab
    tab.evaluate(AXE_SCRIPT)
    wait_for_strip(panel, "ROMEO:\n")
    panel.button("Switch off this head").click()
    panel.slider("top-p").fill("0.7")
    panel.text.fill(TEXT + "\n" + "w" * 100 + " a")
    panel.wait_for_next(panel.value, off=[(0, 0)], top_p=0.7)
    panel.text.press("Control+End")
    tab.keyboard.insert_text("長€" + "\u0301")
    panel.wait_for_message("長 € U+0301")
    tab.wait_for_timeout(600)
    for width in (320, 390, 800, 1280, 1600):
        tab.set_viewport_size({"width": width, "height": 900})
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        assert_fits(panel)
        assert panel.element.evaluate(ASTRAY) == []
        assert panel.element.evaluate(SMALL) == []
        if width in (390, 1280):
            assert tab.evaluate(AXE) == []
    assert panel.element.evaluate(INKS) == []


def test_looks_at_first(show):
    for theme in ("light", "dark"):
        panel = show(in_the_book(), in_the_book(show=()), theme=theme, width=390)[0]
        panel.tab.evaluate(AXE_SCRIPT)
        assert panel.tab.evaluate(AXE) == []
        assert panel.tab.evaluate("document.documentElement.scrollWidth") <= 390
        assert_fits(panel)
        assert panel.element.evaluate(ASTRAY) == []


def test_the_other_theme_comes_while_it_is_there(show):
    panel = show().start()
    panel.tab.evaluate("document.documentElement.dataset.theme = 'dark'")
    until_equal(panel.tab, lambda: panel.element.evaluate(INKS), [])
    panel.tab.evaluate(AXE_SCRIPT)
    assert panel.tab.evaluate(AXE) == []


def test_forced_colours(show):
    panel = show(forced_colors="active").start()
    panel.wait_for_next("ROMEO:\n")
    colours = """e => {
      const probe = document.body.appendChild(document.createElement("p"));
      probe.style.color = "CanvasText";
      return [getComputedStyle(e).backgroundColor, getComputedStyle(probe).color];
    }"""
    mine, system = panel.box.locator("table.next .after").nth(1).evaluate(colours)
    assert mine == system
    widths = panel.box.locator("table.next tbody .after").evaluate_all(
        "all => all.map((e) => e.getBoundingClientRect().width)"
    )
    assert widths == sorted(widths, reverse=True)
    assert widths[0] > 2 * widths[4] > 0


def test_in_print_the_numbers_stay(show):
    panel = show().start()
    panel.tab.emulate_media(media="print")
    assert not panel.button("Step").is_visible()
    assert panel.box.locator("table.next td").first.is_visible()
    assert panel.text.is_visible()


def test_without_motion_where_it_is_not_wanted(show):
    style = "e => getComputedStyle(e).transitionDuration"
    steps = """() => {
      const { shadowRoot: root } = document.querySelector("gpt2-play-panel");
      const text = root.querySelector("#text");
      window.marks = [];
      let last = text.value.length;
      const look = () => {
        if (text.value.length !== last) window.marks.push(performance.now());
        last = text.value.length;
        requestAnimationFrame(look);
      };
      look();
    }"""
    for wanted, motion in (("no-preference", "0.12s"), ("reduce", "0s")):
        panel = show(reduced_motion=wanted).start()
        panel.wait_for_next("ROMEO:\n")
        assert (
            panel.box.locator("table.next .track .after").first.evaluate(style)
            == motion
        )
        panel.tab.evaluate(steps)
        panel.stream.click()
        panel.tab.wait_for_function("marks.length >= 6")
        marks = panel.tab.evaluate("marks")
        panel.stop()
        pause = median(b - a for a, b in pairwise(marks))
        assert (pause > 400) == (wanted == "reduce")


def test_the_end_stays_in_sight_if_it_was(show):
    panel = show().start()
    panel.text.fill("\n".join("abcdefghijkl"))
    panel.text.evaluate("e => { e.scrollTop = e.scrollHeight; }")
    panel.stream.click()
    panel.wait_for_text(lambda text: text.count("\n") > 30, 40)
    far = "e => e.scrollHeight - e.clientHeight - e.scrollTop"
    assert panel.text.evaluate(far) < 30
    panel.text.evaluate("e => { e.scrollTop = 0; }")
    size = len(panel.value)
    panel.wait_for_text(lambda text: len(text) > size + 100, 40)
    assert panel.text.evaluate("e => e.scrollTop") == 0
    panel.stop()


# Texts of all kinds -------------------------------------------------------------------


def test_unknown_characters(show):
    panel = show().start()
    panel.text.fill("ROMEO:\nna\u00efve \u20ac\U0001f44d\u200d \u05e9\u05dc")
    panel.wait_for_message("\u00ef")
    [message] = panel.messages
    for sign in ("\u00ef", "\u20ac", "\U0001f44d", "U+200D", "\u05e9", "\u05dc"):
        assert sign in message
    alert = panel.element.get_by_role("alert").filter(has_text="U+200D")
    assert alert.count() == 1
    panel.check_next("ROMEO:\n")  # what stood there stands
    panel.button("Leave them out").click()
    assert panel.value == "ROMEO:\nnave  "
    panel.wait_for_next("ROMEO:\nnave  ")
    assert panel.messages == []
    for action in ("Step", "Stream"):
        panel.text.fill("\u20ac")
        panel.wait_for_message("\u20ac")
        panel.button(action).click()
        panel.tab.wait_for_timeout(300)
        panel.wait_for_message("\u20ac")
        until(panel.tab, panel.check_stopped)
        assert panel.value == "\u20ac"
    panel.text.fill("".join(chr(0x4E00 + i) for i in range(500)))
    panel.wait_for_message("\u2026")
    assert len(panel.messages[0]) < 200
    panel.text.fill("and on")
    panel.wait_for_next("and on")
    assert panel.messages == []


def test_an_empty_text(show):
    panel = show()
    panel.text.fill("")
    panel.wait_until_it_runs()
    panel.wait_for_message(EMPTY)
    assert panel.element.get_by_role("alert").filter(has_text=EMPTY).count() == 1
    assert panel.element.locator(".head .figures").inner_text() == "0 tokens"
    for name in ("Step", "Stream", "Step"):
        panel.button(name).click()
    panel.slider("temperature").fill("2")
    panel.button("Switch off this head").click()
    until_equal(panel.tab, lambda: panel.messages, [EMPTY])
    assert panel.value == ""
    panel.check_stopped()
    panel.text.fill("w")
    panel.wait_for_next("w", off=[(0, 0)], temperature=2)
    assert panel.messages == []


@pytest.mark.parametrize(
    ("size", "where"), [(10_000, "Control+End"), (25_000, "Control+A")]
)
def test_long_texts_pasted(show, size, where):
    panel = show().start()
    panel.wait_for_next("ROMEO:\n")
    panel.text.press(where)
    panel.tab.keyboard.insert_text(LONG[:size])
    text = ("ROMEO:\n" if where == "Control+End" else "") + LONG[:size]
    assert panel.value == text
    panel.wait_for_next(text, seconds=90)
    cut = "Only the last 20,000 characters are read."
    assert (cut in panel.note) == (size > 20_000)
    read = f"{min(len(text), 20_000):,} tokens"
    assert panel.element.locator(".head .figures").inner_text() == read
    if size == 10_000:
        panel.button("Step").click()
        text = panel.wait_for_text(lambda new: len(new) == len(text) + 1)
        panel.wait_for_next(text, seconds=30)
    panel.text.fill("A")
    panel.wait_for_next("A")
    assert cut not in panel.note


def test_typing_overtakes_a_long_reading(show):
    panel = show().start()
    panel.text.fill(LONG[:9_000])

    def check():
        assert re.match(r"reading: [\d,]+ of [\d,]+ positions", panel.note)

    until(panel.tab, check)
    panel.text.fill("Enter ")
    panel.wait_for_next("Enter ", seconds=3)
    assert panel.note == ""


def test_hostile_text_stays_text(show, tmp_path):
    panel = show(in_the_book(link=True), hash=urlencode({"text": HOSTILE}))
    panel.wait_until_it_runs()
    panel.wait_for_message("<")
    path = tmp_path / "x.gpt2"
    export(own(), letters(), path, name=HOSTILE)
    panel.element.locator("input.file").set_input_files(path)
    until(panel.tab, lambda: check_name(panel, HOSTILE))
    other = Panel(panel.tab, Reference(path))
    for text in (HOSTILE, HOSTILE[:20]):
        other.text.fill(text)
        other.wait_for_next(text)
        wait_for_strip(other, text[-24:])
    other.button("Step").click()
    other.button("Copy a link").click()
    assert other.element.locator("img, script, iframe").count() == 0
    assert panel.tab.evaluate("window.hit") is None


# The reader's own files ---------------------------------------------------------------


def drop(panel, *paths):
    """Drop files, or folders, onto the panel, as from a desktop."""
    box = panel.box.bounding_box()
    x, y = box["x"] + 100, box["y"] + 20
    session = panel.tab.context.new_cdp_session(panel.tab)
    data = {"items": [], "files": [*map(str, paths)], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        more = {"type": kind, "x": x, "y": y, "data": data}
        session.send("Input.dispatchDragEvent", more)


def pick(panel, *paths):
    panel.element.locator("input.file").set_input_files(paths)


WRONG_FILES = {
    "cut short": ("short.gpt2", lambda data: data[:-1000]),
    "longer": ("longer.gpt2", lambda data: data + b"1234"),
    "one bit": (
        "bit.gpt2",
        lambda data: data[:5000] + bytes([data[5000] ^ 1]) + data[5001:],
    ),
    "version 2": ("two.gpt2", lambda data: data[:8] + b"\2" + data[9:]),
    "empty": ("empty.gpt2", lambda data: b""),
    "a page": (
        "page.gpt2",
        lambda data: b"<script>window.hit=1</script>" + HOSTILE.encode(),
    ),
    "text": ("notes.txt", lambda data: b"All the world's a stage"),
    "hostile header": (
        "header.gpt2",
        lambda data: data[:12] + b"\xff\xff\xff\x7f" + data[16:],
    ),
}


@pytest.fixture
def mine(tmp_path):
    """A model of another kind: 40 characters, learned positions, random numbers."""
    path = tmp_path / "mine.gpt2"
    export(own(), letters(), path)
    return Reference(path)


def test_files_that_are_no_models(show, shipped, mine, tmp_path):
    panel = show().start()
    panel.text.fill(TEXT)
    panel.wait_for_next(TEXT)
    seen = set()
    for n, (name, make) in enumerate(WRONG_FILES.values()):
        path = tmp_path / name
        path.write_bytes(make(shipped.path.read_bytes()))
        (drop if n % 2 else pick)(panel, path)
        panel.wait_for_message("The file was not opened: ")
        [message] = panel.messages
        seen.add(message)
        assert len(message) > 40
        check_name(panel, SHIPPED)
        panel.text.fill(TEXT + "s")
        panel.wait_for_next(TEXT + "s")
        until(panel.tab, lambda: check_no_message(panel))
        panel.text.fill(TEXT)
        panel.wait_for_next(TEXT)
    assert len(seen) >= 5, seen
    assert panel.button("Back to the book's model").count() == 0
    pick(panel, mine.path)
    until(panel.tab, lambda: check_name(panel, "mine"))
    pick(panel, tmp_path / "two.gpt2")  # what is refused does not change that
    panel.wait_for_message("version")
    check_name(panel, "mine")


def check_no_message(panel):
    assert panel.messages == []


def test_files_too_large_and_folders(browser, show, tmp_path):
    panel = show().start()
    large = tmp_path / "large.gpt2"
    with large.open("wb") as file:
        file.truncate(350_000_000)
    with tasks_of(browser, panel.tab) as tasks:
        for put in (pick, drop):
            put(panel, large)
            panel.wait_for_message("it has 350.00 MB, and 300.00 MB are allowed")
            panel.text.fill("who")
            panel.wait_for_next("who")
            until(panel.tab, lambda: check_no_message(panel))
    assert max(tasks) < LONGEST_TASK
    (tmp_path / "folder.gpt2").mkdir()
    drop(panel, tmp_path / "folder.gpt2")
    panel.wait_for_message("The file was not opened: ")
    check_name(panel, SHIPPED)
    panel.text.fill("where")
    panel.wait_for_next("where")


def test_a_file_may_come_before_the_books_model(show, mine):
    """The first touch is a drop; the book's model is loaded, then the file's."""
    panel = show()
    drop(panel, mine.path)
    until(panel.tab, lambda: check_name(panel, "mine"))
    other = Panel(panel.tab, mine)
    other.wait_for_message("M")  # the example's letters are not this model's
    other.text.fill("abc")
    other.wait_for_next("abc")
    assert panel.box.locator(".play.over").count() == 0
    facts = panel.box.locator(".about").inner_text()
    n = mine.model.config.num_parameters
    size = mine.path.stat().st_size / 1e6
    said = f"2 layers of 2 heads, {n:,} parameters, int8, {size:.2f} MB"
    assert said in facts
    assert len(other.rows("next")) == 10
    wait_for_strip(other, "abc")
    assert panel.element.locator(".heads").get_by_role("radio").count() == 4
    other.button("Back to the book's model").click()
    until(panel.tab, lambda: check_name(panel, SHIPPED))
    panel.text.fill("ROMEO:\nA")
    panel.wait_for_next("ROMEO:\nA")


def test_another_model_lets_go_what_it_does_not_have(show, mine):
    panel = show().start()
    panel.text.fill("abc abc")
    wait_for_strip(panel, "abc abc")
    for pair in ((5, 3), (1, 1)):
        radio(panel, *pair).click()
        panel.button("Switch off this head").click()
    radio(panel, 4, 3).click()
    panel.wait_for_next("abc abc", off=[(5, 3), (1, 1)])
    panel.stream.click()
    panel.wait_for_text(lambda text: len(text) > 30)
    pick(panel, mine.path)
    until(panel.tab, lambda: check_name(panel, "mine"))
    other = Panel(panel.tab, mine)
    other.check_stopped()
    other.text.fill("ab ab")
    other.wait_for_next("ab ab", off=[(1, 1)])
    until(panel.tab, lambda: check_off(other, [(1, 1)]))


def test_a_model_of_bytes_with_learned_positions(show, tmp_path):
    """As GPT-2's, but tiny: it streams past its window, any text is known to it."""
    merges = [(104, 101), (32, 116), (257, 256), (240, 159)]
    path = tmp_path / "bytes.gpt2"
    export(
        random_model("learned", (2, 2, 16, 261, 12), seed=3), BPETokenizer(merges), path
    )
    reference = Reference(path)
    panel = show().start()
    pick(panel, path)
    until(panel.tab, lambda: check_name(panel, "bytes"))
    panel = Panel(panel.tab, reference)
    for text in (
        "the end",
        "\u05e9\u05dc\u05d5\u05dd",
        "\U0001f44d\U0001f3fd",
        "na\u00efve \u20ac",
        "\u0301\u200b\u202e",
    ):
        panel.text.fill(text)
        panel.wait_for_next(text)
    text = "the end of the world is not the end of the text"
    panel.text.fill(text)
    panel.wait_for_next(text)
    panel.check("greedy").check()
    panel.stream.click()
    panel.wait_for_text(lambda new: len(new) > len(text) + 60)
    panel.stop()
    new = panel.value
    ids = torch.tensor([reference.tokenizer.encode(text)])
    ids = generate(reference.model, ids, 60, greedy=True)[0, ids.size(1) :].tolist()
    expected = reference.tokenizer.decode(ids).rstrip("\ufffd")
    assert new[len(text) :].startswith(expected[: len(new) - len(text)])
    assert panel.element.locator("table.next bdi").first.inner_text()


def speech(text, words):
    """The share of the longer words of a text that stand in the plays."""
    found = [word for word in re.findall("[a-z']+", text.lower()) if len(word) >= 4]
    assert len(found) > 60
    return sum(word in words for word in found) / len(found)


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """Return a function that makes the model of Phase 6's run for the reader.

    It trains so many steps, 320 in Phase 6, and the command writes the page's file.
    """

    def make(n_steps):
        folder = tmp_path_factory.mktemp("run")
        recipe = TrainConfig.preset(
            "shakespeare-cpu",
            n_steps=n_steps,
            warm_up=min(16, n_steps // 2),
            eval_tokens=20_000,
            sample_tokens=0,
            out=str(folder / "mine"),
        )
        run = train(recipe)
        path = folder / "my-model.gpt2"
        command = [sys.executable, "-m", "gpt2lib.web", str(run), "-o", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0, done.stderr
        assert f"in {path.stat().st_size:,} bytes" in done.stdout
        return Reference(path)

    return make


def open_own(panel, put, model):
    put(panel, model.path)
    until(panel.tab, lambda: check_name(panel, "my-model"))
    panel = Panel(panel.tab, model)
    facts = panel.box.locator(".about").inner_text()
    n = model.model.config.num_parameters
    assert f"4 layers of 4 heads, {n:,} parameters, int8" in facts
    assert f"{model.path.stat().st_size / 1e6:.2f} MB" in facts
    return panel


# After 320 steps, for more than a minute, it says nothing else of page and command.
@pytest.mark.parametrize("n_steps", [16, pytest.param(320, marks=pytest.mark.slow)])
def test_the_readers_own_model_continues_a_text(show, command, n_steps):
    prompt, model = "ROMEO:\n", command(n_steps)
    for put, over in ((pick, "http"), (drop, "file")):
        panel = open_own(show(over=over), put, model)
        panel.text.fill(prompt)
        panel.wait_for_next(prompt)
        panel.check("greedy").check()
        panel.stream.click()
        panel.wait_for_text(lambda text: len(text) >= 207)
        panel.stop()
        assert panel.value[:207] == prompt + model.greedy(prompt, 200)
    if n_steps == 320:
        panel.check("greedy").uncheck()
        check_speaks(panel)


def test_the_books_model_speaks(show):
    check_speaks(show().start())


def check_speaks(panel):
    panel.text.fill("ROMEO:\n")
    panel.slider("temperature").fill("0.7")
    panel.wait_for_next("ROMEO:\n", temperature=0.7)
    panel.stream.click()
    text = panel.wait_for_text(lambda text: len(text) > 1_000, 60)
    panel.stop()
    words = set(re.findall("[a-z']+", plays().lower()))
    assert speech(text[: text.rindex(" ")], words) > 0.6


def plays():
    corpus = load_corpus("shakespeare")
    ids = torch.cat(
        [
            torch.as_tensor(part.astype("int64"))
            for part in (corpus.train, corpus.validation)
        ]
    )
    return corpus.tokenizer.decode(ids.tolist())


# Much, long, and the end --------------------------------------------------------------


def heap(panel):
    """The bytes that the page's scripts hold, once what is not needed is gone."""
    session = panel.tab.context.new_cdp_session(panel.tab)
    session.send("HeapProfiler.collectGarbage")
    session.send("HeapProfiler.collectGarbage")
    return session.send("Runtime.getHeapUsage")["usedSize"]


def stream_long(panel, count):
    panel.text.fill("\n")
    panel.stream.click()
    panel.wait_for_text(lambda text: len(text) > count / 4, 120)
    before = heap(panel)
    panel.wait_for_text(lambda text: len(text) > count, 240)
    grown = heap(panel) - before
    assert grown < 1_500_000, "a few characters take no megabytes"


def test_two_thousand_tokens_in_the_same_memory(browser, show):
    panel = show(in_the_book(show=("sampling", "cache"))).start()
    with tasks_of(browser, panel.tab) as tasks:
        stream_long(panel, 2_000)
        panel.stop()
    panel.wait_for_next(panel.value, seconds=30)
    assert max(tasks) < LONGEST_TASK


@pytest.mark.slow
def test_a_stream_ends_after_ten_thousand_tokens(show):
    panel = show().start()
    stream_long(panel, 9_500)
    until(panel.tab, panel.check_stopped, 120)
    until(panel.tab, lambda: check_end(panel), 30)
    assert len(panel.value) == 10_001
    panel.wait_for_next(panel.value, seconds=30)
    panel.stream.click()  # and on
    panel.wait_for_text(lambda text: len(text) > 10_200, 60)
    panel.stop()


def check_end(panel):
    assert "The stream ends after 10,000 tokens." in panel.note


@contextmanager
def tasks_of(browser, tab):
    """Yield a list that holds the page's tasks in the end: milliseconds of the CPU."""
    found, category = [], "disabled-by-default-devtools.timeline"
    browser.start_tracing(page=tab, categories=[category])
    yield found
    events = json.loads(browser.stop_tracing())["traceEvents"]
    threads = {
        (event["pid"], event["tid"])
        for event in events
        if event["name"] == "thread_name" and event["args"]["name"] == "CrRendererMain"
    }
    found += [
        event["tdur"] / 1000
        for event in events
        if event["name"] == "RunTask"
        and (event["pid"], event["tid"]) in threads
        and "tdur" in event  # it has ended
    ]


def test_the_page_does_not_stand_still(browser, show):
    """While it loads, somebody types, streams, slides and switches heads."""
    panel = show()
    panel.tab.wait_for_timeout(300)
    with tasks_of(browser, panel.tab) as tasks:
        panel.start()
        panel.text.press("Control+End")
        panel.text.press_sequentially("What light through yonder")
        wait_for_strip(panel, "ROMEO:\nWhat light through yonder")
        for head in range(2):
            radio(panel, 2, head).click()
            panel.button("Switch off this head").click()
            until(panel.tab, lambda n=head + 1: check_off(panel, [(2, 0), (2, 1)][:n]))
        panel.tab.wait_for_timeout(500)
        panel.stream.click()
        for value in ("0.3", "1.5", "0.8"):
            panel.slider("temperature").fill(value)
            panel.tab.wait_for_timeout(300)
        panel.stop()
        panel.tab.wait_for_timeout(500)
    assert len(tasks) > 200
    assert max(tasks) < LONGEST_TASK


@pytest.mark.parametrize("way", ["removed", "hidden", "away"])
def test_who_leaves_takes_the_worker_along(show, bases, shelf, way):
    panel = show(over="http")
    tab = panel.tab
    panel.start()
    panel.stream.click()
    panel.wait_for_text(lambda text: len(text) > 30)
    assert len(tab.workers) == 1
    url = tab.url
    if way == "removed":
        tab.evaluate(
            "window.kept = document.querySelector('gpt2-play-panel'); kept.remove()"
        )
    elif way == "hidden":  # into the cache of pages that are left
        tab.evaluate(
            "dispatchEvent(new PageTransitionEvent('pagehide', { persisted: true }))"
        )
    else:
        tab.goto(bases["http"] + shelf.page("<p>elsewhere</p>"))
    until(tab, lambda: check_workers(tab, 0))
    tab.wait_for_timeout(300)
    if way == "removed":
        tab.evaluate("document.querySelector('main').append(kept)")
    elif way == "away":
        tab.go_back()
        assert tab.url == url
    tab.wait_for_timeout(200)
    check_workers(tab, 0)
    panel.check_stopped()
    panel.text.click()
    panel.wait_until_it_runs()
    check_workers(tab, 1)
    panel.text.fill("Once more")
    panel.wait_for_next("Once more")


def check_workers(tab, n):
    assert len(tab.workers) == n


def test_moved_within_the_page_it_goes_on(show):
    panel = show().start()
    panel.stream.click()
    panel.wait_for_text(lambda text: len(text) > 30)
    panel.tab.evaluate(
        "document.querySelector('main').append(document.querySelector('gpt2-play-panel'))"
    )
    size = len(panel.value)
    panel.wait_for_text(lambda text: len(text) > size + 30)
    check_workers(panel.tab, 1)
    panel.stop()


def test_where_workers_are_forbidden(show):
    policy = '<meta http-equiv="Content-Security-Policy" content="worker-src \'none\'">'
    expected = "Content Security Policy|blob:"
    panel = show(in_the_book(), page={"head": policy}, expected=expected)
    panel.text.click()
    words = "The model cannot run in this page: whoever shows it allows no workers."
    panel.wait_for_message(words)
    panel.button("Step").click()
    panel.text.press("End")
    panel.stream.click()
    until_equal(panel.tab, lambda: len(panel.messages), 1)
    until(panel.tab, panel.check_stopped)
    panel.check_next("ROMEO:\n")
    assert panel.status == MADE


def test_when_the_weights_are_missing_it_can_be_tried_again(
    browser, over, shipped, tmp_path
):
    shelf = Shelf(tmp_path, shipped.path)
    data = shipped.path.read_bytes()
    for path in tmp_path.glob("*.gpt2*"):
        path.unlink()
    name = shelf.page(in_the_book(), in_the_book())
    with served(tmp_path) as address:
        base = address if over == "http" else tmp_path.as_uri() + "/"
        tab, _ = open_tab(browser, base)
        tab.add_init_script(WRONG)
        tab.goto(base + name)
        one, two = Panel(tab, shipped), Panel(tab, shipped, 1)
        for panel in (one, two):
            panel.text.click()
            panel.wait_for_message("The model could not be loaded: ")
            assert "try again" in panel.messages[0]
            assert panel.status == MADE
        one.button("Step").click()
        tab.wait_for_timeout(300)
        one.check_stopped()
        assert one.value == "ROMEO:\n", "it was given up"
        before = one.messages
        shelf.put(data[:-1])
        one.text.press("End")
        until(tab, lambda: check_other(one, before))
        shelf.put(data)
        one.text.press("Home")
        one.wait_until_it_runs()
        assert one.messages == []
        one.text.fill("At last")
        one.wait_for_next("At last")
        two.text.press("End")
        two.wait_until_it_runs()
        assert tab.evaluate("wrong") == []
        tab.context.close()


def check_other(panel, before):
    assert panel.messages != before
    assert "try again" in panel.messages[0]


def test_alone_it_needs_nothing_else(show):
    """As in a notebook: script and weights are within the output."""
    page = standing_alone(show=("sampling", "attention"))
    one, two = show(page, page, page={"alone": True})
    for panel in (one, two):
        panel.start()
        panel.text.fill("JULIET:\n")
        panel.wait_for_next("JULIET:\n")
    assert weights_asked(one.tab) == []
    one.stream.click()
    one.wait_for_text(lambda text: len(text) > 50)
    one.stop()


# In the built book --------------------------------------------------------------------


@pytest.fixture(scope="module")
def pages():
    """The pages of the book whose notebooks store a panel."""
    return [
        f"notebooks/{path.stem}.html"
        for path in NOTEBOOKS
        if f"<{NAME} data-state" in path.read_text("utf-8")
    ]


def test_the_book_has_its_panels(pages):
    wanted = ["play", "phase4_sampling", "phase5_debugging_tools", "phase6_go_deeper"]
    assert {f"notebooks/{name}.html" for name in wanted} <= set(pages)
    for page in pages:
        text = (built_site() / page).read_text("utf-8")
        assert text.count(f"<{NAME} ") == 1, page
        assert "play-panel.js" in text


@pytest.mark.parametrize(("over", "scheme"), [("http", "light"), ("file", "dark")])
def test_in_the_book(browser, pages, shipped, over, scheme):
    with tab_in_the_book(browser, over, scheme) as (tab, base):
        for page in pages if over == "http" else pages[-1:]:
            tab.goto(base + page)
            panel = Panel(tab, shipped)
            panel.element.scroll_into_view_if_needed()
            assert panel.status == MADE
            start = panel.value
            panel.check_next(start)
            panel.start()
            panel.text.press("Control+End")
            tab.keyboard.type(" w")
            panel.wait_for_next(start + " w")
            panel.button("Step").click()
            n = len(start) + 3
            text = panel.wait_for_text(lambda text, n=n: len(text) == n)
            panel.wait_for_next(text)
            if "attention" in state_of(panel)["show"]:
                wait_for_strip(panel, text[-64:])
                panel.button("Switch off this head").click()
                panel.wait_for_next(text, off=[(0, 0)])
            ground = tab.evaluate("getComputedStyle(document.body).color")
            ink = panel.box.locator("th").first.evaluate(
                "e => getComputedStyle(e).color"
            )
            assert ink == ground
            for width in (320, 390, 800, 1280):
                tab.set_viewport_size({"width": width, "height": 900})
                assert_fits(panel)


def state_of(panel):
    return json.loads(panel.element.get_attribute("data-state"))
