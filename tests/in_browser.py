"""A browser without a network, and the built book: for the tests that look at pages.

In the environment, `CHROMIUM` names a browser other than Debian's, and `SITE` the
folder of another built book.
"""

import functools
import http.server
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

from conftest import ROOT
from playwright.sync_api import sync_playwright

from gpt2lib.figures import _element_script

STATIC = ROOT / "gpt2lib" / "static"
HTML = ROOT / "_build" / "html"
SOURCES = ["_config.yml", "_toc.yml", "book", "notebooks", "gpt2lib"]
# A browser reads one list of what is off, the last: this is Playwright's, and the two
# processes of its address bar that Chromium starts with every window.
OFF = [
    "AimEnabled",
    "AvoidCorsURLLoaderRestartOnRedirect",
    "AvoidUnnecessaryBeforeUnloadCheckSync",
    "DestroyProfileOnBrowserClose",
    "HttpsFirstBalancedModeAutoEnable",
    "HttpsUpgrades",
    "LensOverlay",
    "MediaRouter",
    "NetworkTimeServiceQuerying",
    "OptimizationHints",
    "PaintHolding",
    "PreconnectToSearch",
    "ThirdPartyStoragePartitioning",
    "WebUIOmniboxAimPopup",
    "WebUIOmniboxFullPopup",
    "WebUIOmniboxPopup",
]
FLAGS = [
    f"--disable-features={','.join(OFF)}",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
]
UNFOLD = "document.querySelectorAll('details').forEach((fold) => fold.open = true)"
PATIENCE = 40  # seconds that a test waits for what should come, on a busy machine
WIDE, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


@contextmanager
def running_browser():
    names = [
        os.environ.get("CHROMIUM", "chromium"),
        "chromium-browser",
        "google-chrome",
    ]
    path = next(filter(None, map(shutil.which, names)), None)
    assert path, "no browser: install Chromium, or name one with CHROMIUM=/path/to/it"
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield running
        running.close()


def open_tab(browser, base, scheme="light"):
    """Return a tab that reaches `base` alone, and the list of what goes wrong in it."""
    context = browser.new_context(viewport=WIDE, color_scheme=scheme)
    tab, faults = context.new_page(), []
    foreign = re.compile(f"^(?!{re.escape(base)}|data:|blob:)")

    def refuse(route):
        faults.append(f"asks another host: {route.request.url}")
        route.abort()

    context.route(foreign, refuse)
    # A load that the next page cut off is no fault.
    tab.on(
        "requestfailed",
        lambda request: (
            request.failure == "net::ERR_ABORTED"
            or faults.append(f"failed: {request.url}")
        ),
    )
    tab.on(
        "response",
        lambda answer: answer.status < 400 or faults.append(f"missing: {answer.url}"),
    )
    tab.on("pageerror", lambda error: faults.append(f"script error: {error}"))
    tab.on(
        "console",
        lambda said: said.type != "error" or faults.append(f"console: {said.text}"),
    )
    return tab, faults


def until(tab, check, seconds=PATIENCE):
    """Look until `check` passes; after that time its last complaint is an error."""
    end = time.monotonic() + seconds
    while True:
        try:
            return check()
        except AssertionError:
            if time.monotonic() > end:
                raise
        tab.wait_for_timeout(40)


def until_equal(tab, look, wanted):
    """Look until `look` returns what is wanted."""

    def check():
        assert look() == wanted

    until(tab, check)


def weigh(tab):
    """Return {address: bytes that came}, which grows; nothing comes from a cache."""
    devtools, weights, asked = tab.context.new_cdp_session(tab), {}, {}
    devtools.send("Network.enable")
    devtools.send("Network.setCacheDisabled", {"cacheDisabled": True})

    def ask(event):
        asked[event["requestId"]] = event["request"]["url"].partition("?")[0]

    def add(event):
        address = asked.get(event["requestId"], "")
        if address.startswith("http"):
            size = event["encodedDataLength"]
            weights[address] = weights.get(address, 0) + size

    devtools.on("Network.requestWillBeSent", ask)
    devtools.on("Network.loadingFinished", add)
    return weights


def newest(path):
    paths = [path] if path.is_file() else path.rglob("*")
    return max(
        (p.stat().st_mtime for p in paths if "__pycache__" not in p.parts), default=0
    )


@functools.cache
def built_site():
    """Return the folder of the built book, built anew if it is not up to date."""
    if "SITE" in os.environ:
        return Path(os.environ["SITE"])
    index = HTML / "book" / "index.html"
    age = index.stat().st_mtime if index.exists() else 0
    if age < max(newest(ROOT / name) for name in SOURCES):
        command = [Path(sys.executable).with_name("jupyter-book"), "build", ROOT]
        flags = ["--all", "-W", "-n", "--keep-going", "--quiet"]
        result = subprocess.run(command + flags, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
    return HTML


@contextmanager
def served(folder):
    """Serve the folder on this machine; yield its address."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    handler = functools.partial(Quiet, directory=str(folder))
    found = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=found.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{found.server_port}/"
    found.shutdown()


@contextmanager
def tab_in_the_book(browser, over, scheme):
    """Yield a tab and the address of the book, over "http" or "file"."""
    site = built_site()
    with served(site) as address:
        base = address if over == "http" else site.as_uri() + "/"
        tab, faults = open_tab(browser, base, scheme)
        yield tab, base
        tab.context.close()
        assert not faults


# Outputs on a page of their own -------------------------------------------------------

PAGE = """<!doctype html><html lang="en" data-theme="THEME"><meta charset="utf-8">
<title>t</title><style>
html { color-scheme: light; --book-accent: #0072b2; }
html[data-theme="dark"] { color-scheme: dark; --book-accent: #6cb6e8; }
body { margin: 16px; color: #1f262d; background: #fff; }
html[data-theme="dark"] body { color: #d6dbe0; background: #14171a; }
</style>HEAD<body><main><h1>t</h1>BODY</main>"""
WRONG = "window.wrong = []; onerror = (message) => window.wrong.push(message);"


def html(output):
    return output._repr_mimebundle_()["text/html"]


@contextmanager
def shown_in(browser, folder, element):
    """Yield a function that opens a page of outputs, and see that nothing goes wrong.

    The page is as the site makes it, with the script of `element`, or holds what an
    output brings along where it stands alone.
    """
    tabs = []

    def show(*outputs, alone=False, scripts=True, theme="light", width=1280, **more):
        tab, faults = open_tab(browser, folder.as_uri())
        tabs.append((tab, faults))
        tab.set_viewport_size({"width": width, "height": 900})
        tab.emulate_media(**more)
        tab.add_init_script(WRONG)
        head = ""
        if not alone:
            head += f"<style>{(STATIC / 'book.css').read_text('utf-8')}</style>"
        if scripts and not alone:
            (folder / "element.js").write_text(_element_script(element), "utf-8")
            head += '<script defer src="element.js"></script>'
        path = folder / f"{len(tabs)}.html"
        page = PAGE.replace("THEME", theme).replace("HEAD", head)
        path.write_text(page.replace("BODY", "".join(map(html, outputs))), "utf-8")
        tab.goto(path.as_uri())
        return tab

    yield show
    for tab, faults in tabs:
        assert not faults
        assert tab.evaluate("window.wrong") == []
        tab.context.close()


# In a narrow panel a bar goes below its row, as wide as the table. Safari places
# nothing by a row: a bar that relies on it lands at the top of the page.
ASTRAY = """(host) => {
  const rows = [...host.shadowRoot.querySelectorAll("tbody tr")];
  return rows.filter((row) => row.checkVisibility()).filter((row) => {
    const track = row.querySelector(".track");
    if (!track || getComputedStyle(track).position !== "absolute") return false;
    const parts = [row.closest("table"), row, track];
    const [table, line, bar] = parts.map((e) => e.getBoundingClientRect());
    const text = document.createRange();
    text.selectNodeContents(row.cells[0]);
    return track.offsetParent.localName === "tr" || bar.height < 8 ||
      bar.top < text.getBoundingClientRect().bottom - 1 || bar.bottom > line.bottom ||
      Math.abs(bar.left - table.left) > 1 || Math.abs(bar.right - table.right) > 1;
  }).map((row) => row.innerText);
}"""


# Renders a module with a stand-in for a widget's model: `window.model`, what was saved,
# what is listened to, and how to leave.
MODEL = """async ([source, state]) => {
  const address = URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
  const heard = new Map();
  const saved = [];
  window.model = {
    get: (name) => state[name],
    set(name, value) {
      if (JSON.stringify(state[name]) === JSON.stringify(value)) return;
      state[name] = value;
      heard.get(`change:${name}`)?.();
    },
    on: (name, call) => heard.set(name, call),
    off: (name) => heard.delete(name),
    save_changes: () => saved.push({ ...state, contexts: 0 }),
  };
  const el = document.body.appendChild(document.createElement("div"));
  const widget = (await import(address)).default;
  window.leave = widget.render({ model: window.model, el });
  window.saved = saved;
  window.heard = heard;
}"""
