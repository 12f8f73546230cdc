"""Time the attention explorer in a browser: its first picture, and what a reader does.

    python benchmarks/explorer.py                         a minute on two cores
    python benchmarks/explorer.py --repeats 3 --out /dev/null    a quick look

Headless Chromium, no network. Models of random weights: of what they read, only the
amount matters. The first picture takes from the start of the script, on a page that
holds the element, to the end of the frame that shows it. What a reader does takes as
long as its handler and the frame after it keep the page busy; the wait for that frame
is left out. Where the work goes on over several frames, the longest counts. Frames are
rasterized by other threads, which is not counted.

`median` and `worst` are by the page's clock, which whatever else the machine does makes
longer. `cpu_median` and `cpu_worst` are the processor's time that the page's main
thread used meanwhile, of all frames together. Results go to `results/`.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import torch
from side_by_side import describe_machine

from gpt2lib.config import GPT2Config
from gpt2lib.explorer import AttentionExplorer
from gpt2lib.figures import _element_script
from gpt2lib.language_model import GPT2LMHeadModel
from gpt2lib.tokenizer import CharTokenizer

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests"))
from in_browser import open_tab, running_browser  # noqa: E402

LETTERS = "abcdefghijklmnopqrstuvwxyz ,.'"
TEXT = "the cat sat on the mat, the dog ran over the hill and the cat looked on. " * 2

# name: layers, heads, features, tokens of the text and of the one beside it
CASES = {
    "12 x 12 heads, 32 tokens": (12, 12, 144, 32, 32),
    "24 heads, 128 tokens": (6, 4, 112, 128, 32),
}

TIMING = """
const afterFrame = () => new Promise((done) => requestAnimationFrame(() => {
  const start = performance.now();
  const { port1, port2 } = new MessageChannel();
  port1.onmessage = () => done(performance.now() - start);
  port2.postMessage(0);
}));
const root = () => document.querySelector("gpt2-attention-explorer").shadowRoot;
"""
FIRST_PAINT = """async (script) => {
  await afterFrame();
  const start = performance.now();
  (0, eval)(script);
  await afterFrame();
  return performance.now() - start;
}"""
# An action may return a function that says whether it still goes on.
INTERACTION = """async ([action, n]) => {
  const act = eval(`(n) => { ${action} }`);
  await afterFrame();
  await afterFrame();
  const start = performance.now();
  const goesOn = act(n);
  let longest = performance.now() - start + await afterFrame();
  while (goesOn?.()) longest = Math.max(longest, await afterFrame());
  return longest;
}"""

HELP = """
  const all = (selector) => [...root().querySelectorAll(selector)];
  const tell = (element, type, more = {}) => {
    const Kind = { k: KeyboardEvent, p: PointerEvent, c: MouseEvent }[type[0]] ?? Event;
    element.dispatchEvent(new Kind(type, { bubbles: true, composed: true, ...more }));
  };
  const at = (share) => {
    const { left, top, width } = all(".square")[0].getBoundingClientRect();
    return { clientX: left + share * width * 0.7, clientY: top + share * width };
  };
  const share = ((n * 7) % 19 + 0.5) / 19;
"""
VIEW = 'all(".choice button")[{}].click();'
# What a reader does: before the clock runs, and what is timed. n counts the repeats.
ACTIONS = {
    "choose a head": ("", 'all(".heads button")[(n * 5 + 3) % 24].click();'),
    "look at a token": (
        "",
        'tell(all(".strip button")[(n * 5 + 1) % 32], "pointerover");',
    ),
    "lock a token": ("", 'all(".strip button")[(n * 5 + 1) % 32].click();'),
    "look at a cell": ("", 'tell(all(".square")[0], "pointermove", at(share));'),
    "lock a pair": ("", 'tell(all(".square")[0], "click", at(share));'),
    "move the pair by a key": (
        "",
        'tell(all(".square")[0], "keydown", { key: n % 2 ? "ArrowUp" : "ArrowDown" });',
    ),
    "hide weights below": (
        "",
        'const input = all("input[type=range]")[0]; input.value = share;'
        'tell(input, "input");',
    ),
    "show the lines": (VIEW.format(0), VIEW.format(1)),
    "look at a token among the lines": (
        VIEW.format(1),
        'tell(all(".left button")[(n * 5 + 1) % 32], "pointerover");',
    ),
    "show the steps": (VIEW.format(0), VIEW.format(2)),
    "look at a token among the steps": (
        VIEW.format(2),
        'tell(all(".strip button")[(n * 5 + 1) % 32], "pointerover");',
    ),
    "show the matrix": (VIEW.format(1), VIEW.format(0)),
    "sort the heads": (
        VIEW.format(0),
        'const select = all(".body select")[0];'
        "select.selectedIndex = 1 + (n % 4);"
        'tell(select, "change");',
    ),
    "compare two heads": (
        'if (all(".pane").length > 1) all(".actions button")[0].click();'
        'all(".actions button")[0].click();',
        'all(".heads button").find((head) => head.ariaChecked === "false").click();',
    ),
    "both texts side by side": (
        'if (all(".pane").length > 1) all(".actions button")[0].click();'
        'if (all("input[type=checkbox]")[0].checked)'
        ' all("input[type=checkbox]")[0].click();',
        'all("input[type=checkbox]")[0].click();',
    ),
    "open the whole head as a table": (
        'if (all("input[type=checkbox]")[0].checked)'
        ' all("input[type=checkbox]")[0].click();'
        'all("details").forEach((fold) => { fold.open = false; });'
        'all(".heads button")[(n * 5 + 3) % 24].click();',
        'const fold = all("details").at(-1); fold.open = true;'
        'return () => fold.querySelectorAll("tbody tr").length'
        ' < all(".strip")[0].children.length;',
    ),
}


def page(layers, heads, width, *sizes):
    """The HTML of an explorer of a random model, on texts of these many tokens."""
    torch.manual_seed(0)
    config = GPT2Config(layers, heads, width, len(LETTERS), 128, dropout=0.0)
    model = GPT2LMHeadModel(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    texts = [TEXT[:size] for size in sizes]
    shown = AttentionExplorer(model, CharTokenizer(LETTERS), *texts)
    return config, shown._repr_mimebundle_()["text/html"]


def timer(tab):
    """Return a function that runs a script in the tab: milliseconds, by both clocks."""
    inspector = tab.context.new_cdp_session(tab)
    inspector.send("Performance.enable", {"timeDomain": "threadTicks"})

    def used():
        found = inspector.send("Performance.getMetrics")["metrics"]
        [seconds] = [m["value"] for m in found if m["name"] == "TaskDuration"]
        return 1000 * seconds

    def timed(script, argument):
        before = used()
        return tab.evaluate(script, argument), used() - before

    return timed


def summed_up(pairs):
    """What is stored of repeats, each timed by both clocks."""
    found = {}
    for prefix, times in zip(("", "cpu_"), zip(*pairs, strict=True), strict=True):
        found[f"{prefix}median"] = round(statistics.median(times), 1)
        found[f"{prefix}worst"] = round(max(times), 1)
    return found


def write(folder, html):
    path = Path(folder, "page.html")
    style = (HERE.parent / "gpt2lib" / "static" / "book.css").read_text("utf-8")
    path.write_text(
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>explorer</title>'
        f"<style>{style}</style><body>{html}<script>{TIMING}</script>",
        "utf-8",
    )
    return path.as_uri()


def measure(browser, folder, case, repeats):
    """Return everything that is stored of one case."""
    *sizes, beside = case
    config, html = page(*sizes)
    script = _element_script("attention-explorer")
    tab, faults = open_tab(browser, Path(folder).as_uri())
    timed = timer(tab)
    address, first = write(folder, html), []
    for _ in range(repeats + 1):
        tab.goto(address)
        first.append(timed(FIRST_PAINT, script))
    _, two = page(*sizes, beside)
    tab.goto(write(folder, two))
    tab.evaluate(FIRST_PAINT, script)
    found = {}
    for name, (before, action) in ACTIONS.items():
        times = []
        for n in range(repeats + 1):
            if before:
                tab.evaluate(INTERACTION, [HELP + before, n])
            times.append(timed(INTERACTION, [HELP + action, n]))
        found[name] = summed_up(times[1:])  # one to warm up
    tab.context.close()
    assert not faults, faults
    return {
        "config": asdict(config),
        "tokens": sizes[3],
        "html_bytes": len(html.encode()),
        "repeats": repeats,
        "first_paint_ms": summed_up(first[1:]),
        "interactions_ms": found,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=25, help="default: 25")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "explorer.json")
    args = parser.parse_args()
    os.environ["GPT2LIB_BOOK"] = "1"  # the script is timed apart from the page
    cases, load = {}, os.getloadavg()[0]  # what others do: 0 is best
    with running_browser() as browser, tempfile.TemporaryDirectory() as folder:
        version = browser.version
        for name, case in CASES.items():
            cases[name] = measure(browser, folder, case, args.repeats)
            paint = cases[name]["first_paint_ms"]
            rows = {"first paint": paint} | cases[name]["interactions_ms"]
            for action, times in rows.items():
                print(f"{name}: {action}: {times}")
    results = {
        "machine": describe_machine(chromium=version),
        "command": "python benchmarks/explorer.py",
        "load_before": round(load, 2),
        "cases": cases,
    }
    args.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
