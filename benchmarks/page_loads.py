"""Weigh and time every page of the built book in a browser.

    python benchmarks/page_loads.py                  two minutes on two cores
    python benchmarks/page_loads.py notebooks/play   one; results are left alone

Headless Chromium, an empty cache, no network but this machine's own: a server that
compresses nothing, so that a host that does sends less. `bytes` and `requests` count
all that a page transfers until it has loaded, been scrolled to its end and come to
rest, as the browser counts it, headers included. `load_ms` runs from the start to the
end of the page's load event. Builds the book first, if that is out of date.
"""

import argparse
import json
import os
import statistics
import sys
from pathlib import Path

import yaml
from side_by_side import describe_machine

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "benchmarks" / "results" / "pages.json"
sys.path.insert(0, str(ROOT / "tests"))
from in_browser import (  # noqa: E402
    built_site,
    open_tab,
    running_browser,
    served,
    weigh,
)

LOAD = "performance.getEntriesByType('navigation')[0].loadEventEnd"
SCROLL = """async () => {
  const step = innerHeight;
  for (let y = 0; y < document.body.scrollHeight; y += step) {
    scrollTo(0, y);
    await new Promise(requestAnimationFrame);
  }
}"""


def pages_of_book():
    """Return the pages in the order of the book, the front page first."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text("utf-8"))
    chapters = [chapter for part in toc["parts"] for chapter in part["chapters"]]
    return [toc["root"], *(chapter["file"] for chapter in chapters)]


def visit(browser, base, page):
    """Return what a page transferred, in how many requests, and when it was loaded."""
    tab, faults = open_tab(browser, base)
    weights = weigh(tab)
    tab.goto(f"{base}{page}.html", wait_until="load")
    tab.evaluate(SCROLL)
    tab.wait_for_load_state("networkidle")
    loaded = tab.evaluate(LOAD)
    tab.context.close()
    assert not faults, faults
    return round(sum(weights.values())), len(weights), loaded


def measure(browser, base, page, visits):
    sizes, requests, loads = zip(
        *(visit(browser, base, page) for _ in range(visits)), strict=True
    )
    found = {
        "bytes": max(sizes),
        "requests": max(requests),
        "load_ms": [round(ms, 1) for ms in loads],
    }
    took = statistics.median(found["load_ms"])
    print(f"{page}: {found['bytes'] / 1000:,.0f} kB, {took:.0f} ms", flush=True)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pages", nargs="*", help="all, if none is named")
    parser.add_argument("--visits", type=int, default=5, help="default: 5")
    parser.add_argument(
        "--out", type=Path, help="default: in results/, if none is named"
    )
    args = parser.parse_args()
    load = os.getloadavg()[0]
    with served(built_site()) as base, running_browser() as browser:
        results = {
            "machine": describe_machine(chromium=browser.version),
            "command": "python benchmarks/page_loads.py",
            "load_before": round(load, 2),
            "pages": {
                page: measure(browser, base, page, args.visits)
                for page in args.pages or pages_of_book()
            },
        }
    if args.out or not args.pages:
        (args.out or OUT).write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
