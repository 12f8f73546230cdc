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
from contextlib import contextmanager
from pathlib import Path

from conftest import ROOT
from playwright.sync_api import sync_playwright

HTML = ROOT / "_build" / "html"
SOURCES = ["_config.yml", "_toc.yml", "book", "notebooks", "gpt2lib"]
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
]
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
    tab.on("requestfailed", lambda request: faults.append(f"failed: {request.url}"))
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
