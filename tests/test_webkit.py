"""The book in WebKit, the engine of Safari: what the other tests see in Chromium alone.

Needs Debian's `webkit2gtk-driver` and `xvfb`; without them these tests are skipped.
"""

import os
import shutil
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from in_browser import ASTRAY, built_site

from gpt2lib.language_model import GPT2LMHeadModel
from gpt2lib.sampling import generate
from gpt2lib.tokenizer import load_tokenizer
from gpt2lib.web import export, read

DRIVER = shutil.which("WebKitWebDriver")
BROWSER = next(Path("/usr/lib").glob("*/webkit2gtk-4*/MiniBrowser"), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (DRIVER and BROWSER and shutil.which("Xvfb")),
        reason="WebKit is absent: apt-get install webkit2gtk-driver xvfb",
    ),
]

# Stands first in each page and keeps what goes wrong.
KEEP = """<script>
  window.faults = [];
  addEventListener("error", (event) => faults.push(
    event.message ?? `failed: ${event.target.src ?? event.target.href}`), true);
  addEventListener("unhandledrejection", (event) => faults.push(String(event.reason)));
  console.error = (...said) => faults.push(said.join(" "));
</script>"""
HOSTS = "[...document.querySelectorAll('*')].filter((e) => e.shadowRoot)"
# What reaches out of its panel, unless a part that scrolls holds it.
OUTSIDE = """(host) => {
  const panel = host.getBoundingClientRect();
  const scrolls = (e) =>
    e && (getComputedStyle(e).overflow !== "visible" || scrolls(e.parentElement));
  return [...host.shadowRoot.querySelectorAll("*")]
    .filter((e) => e.checkVisibility() && !scrolls(e.parentElement))
    .filter((e) => {
      const box = e.getBoundingClientRect();
      return box.width > 1 && box.height > 1 && (box.left < panel.left - 4 ||
        box.right > panel.right + 4 || box.top < panel.top - 4 ||
        box.bottom > panel.bottom + 4);
    })
    .map((e) => e.outerHTML.slice(0, 80));
}"""


@contextmanager
def screen():
    """Yield the name of a screen that nobody sees."""
    command = ["Xvfb", "-displayfd", "1", "-screen", "0", "1400x1000x24"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        yield f":{running.stdout.readline().strip()}"
        running.terminate()


@pytest.fixture(scope="module")
def tab():
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.WebKitGTKOptions()
    options.binary_location = str(BROWSER)
    options.add_argument("--automation")
    with screen() as display:
        service = webdriver.WebKitGTKService(
            DRIVER,
            env={
                **os.environ,
                "DISPLAY": display,
                "WEBKIT_DISABLE_COMPOSITING_MODE": "1",
                "WEBKIT_DISABLE_SANDBOX_THIS_IS_DANGEROUS": "1",  # for root
            },
        )
        tab = webdriver.WebKitGTK(options=options, service=service)
        tab.set_page_load_timeout(60)
        yield tab
        tab.quit()


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A copy of the built book whose pages keep what goes wrong in them."""
    site = tmp_path_factory.mktemp("webkit") / "site"
    shutil.copytree(built_site(), site)
    for path in site.rglob("*.html"):
        page = path.read_text("utf-8")
        path.write_text(page.replace("<head>", f"<head>{KEEP}", 1), "utf-8")
    return site


@pytest.fixture
def visit(site, tab):
    """A function that opens a page, from the disk; nothing may go wrong in it."""

    def visit(name, width=1280):
        tab.set_window_size(width, 900)
        tab.get(f"{site.as_uri()}/{name}")
        until(lambda: tab.execute_script("return document.readyState") == "complete")
        time.sleep(0.3)

    yield visit
    assert tab.execute_script("return faults") == []


def until(done, seconds=60):
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_every_page_at_two_widths(site, tab, visit):
    for width in (400, 1280):  # of the window: at 400 the page has a little more
        panels = 0
        for path in sorted(site.rglob("*.html")):
            name = path.relative_to(site).as_posix()
            if name == "index.html":
                continue  # leads to the first page
            visit(name, width)
            assert tab.execute_script("return faults") == [], name
            found = tab.execute_script(f"""return {{
              over: document.documentElement.scrollWidth - innerWidth,
              missing: [...document.images].filter((e) => e.complete && !e.naturalWidth)
                .map((e) => e.src),
              panels: {HOSTS}.length,
              outside: {HOSTS}.flatMap({OUTSIDE}),
              astray: {HOSTS}.flatMap({ASTRAY}),
            }}""")
            panels += found.pop("panels")
            assert found == {
                "over": 0,
                "missing": [],
                "outside": [],
                "astray": [],
            }, name
        assert panels >= 6


def test_the_explorer_by_keys(tab, visit):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    visit("notebooks/phase5_debugging_tools.html")
    root = f"const root = {HOSTS}[0].shadowRoot;"
    drawn = tab.execute_script(f"""{root}
      return [...root.querySelectorAll("canvas")].filter((e) => e.width * e.height)
        .map((e) => e.getContext("2d").getImageData(0, 0, e.width, e.height).data)
        .map((pixels) => pixels.some(Boolean))""")
    assert len(drawn) > 20
    assert all(drawn)
    chosen = f"""{root}
      return root.querySelector(".heads [aria-checked=true]").ariaLabel"""
    before = tab.execute_script(chosen)
    tab.execute_script(f"{root} root.querySelector('.heads [tabindex=\"0\"]').focus()")
    ActionChains(tab).send_keys(Keys.ARROW_RIGHT, Keys.ARROW_DOWN).perform()
    assert before.startswith("layer 0, head 0,")
    until(lambda: tab.execute_script(chosen).startswith("layer 1, head 1,"))


def test_the_model_writes_as_in_python(tab, visit, tmp_path):
    name, text = "shakespeare-char", "KING RICHARD"
    path = tmp_path / "model.gpt2"
    export(GPT2LMHeadModel.from_pretrained(name), load_tokenizer(name), path)
    model, tokenizer = read(path)  # in eight bits, as the page has it
    ids = tokenizer.encode(text)
    expected = tokenizer.decode(
        generate(model, torch.tensor([ids]), 12, greedy=True)[0].tolist()
    )

    visit("notebooks/play.html")
    root = f"const root = {HOSTS}[0].shadowRoot;"
    box = tab.execute_script(f"{root} return root.querySelector('textarea')")
    box.click()
    state = f"{root} return root.querySelector('.state').textContent"
    until(lambda: tab.execute_script(state) == "running in this page")
    box.clear()
    box.send_keys(text)
    tab.execute_script(f"""{root}
      [...root.querySelectorAll("label")].find((e) => e.textContent.trim() === "greedy")
        .querySelector("input").click()""")
    step = tab.execute_script(f"""{root}
      const all = [...root.querySelectorAll("button")];
      return all.find((e) => e.textContent === "Step")""")
    value = f"{root} return root.querySelector('textarea').value"
    for n in range(len(text) + 1, len(expected) + 1):
        step.click()
        until(lambda n=n: tab.execute_script(value) == expected[:n])


def test_ticks_are_kept(tab, visit):
    page = "notebooks/phase1_components.html"
    visit(page)
    ticks = "[...document.querySelectorAll('article input[type=checkbox]')]"
    tab.execute_script(f"{ticks}[2].click()")
    visit(page)
    assert tab.execute_script(f"return {ticks}.map((e) => e.checked)")[:4] == [
        False,
        False,
        True,
        False,
    ]


def test_search(tab, visit):
    visit("search.html?q=perplexity")
    found = "return document.querySelector('#search-results')?.innerText ?? ''"
    until(lambda: "Glossary" in tab.execute_script(found))
