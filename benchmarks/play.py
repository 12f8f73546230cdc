"""Time the model that runs in the page: JavaScript in a browser, and the page around.

    python benchmarks/play.py                         two minutes on two cores
    python benchmarks/play.py --repeats 2 --out /dev/null    a quick look

Headless Chromium, no network; the shipped model. `writing` is by the clock of the page
that asks the worker, messages included: texts of 1,000 tokens after one line, the
slowest quarter of a second among them, and what follows 128 tokens, with the cache and
without. Multiply-adds are counted where they are done. `ready` runs from the first
touch of the panel on the page Play, over http on this machine, until the model runs.
`agreement` compares logits with PyTorch's, in float32, at every position of passages
from the held-out plays. `long_tasks` are those above 50 ms of the page's main thread
while somebody loads the model, types, streams, moves a knob and switches a head off.
"""

import argparse
import base64
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from side_by_side import describe_machine

from gpt2lib.data import load_corpus
from gpt2lib.figures import _STATIC, _bundle
from gpt2lib.language_model import GPT2LMHeadModel
from gpt2lib.web import export

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests"))
from in_browser import built_site, open_tab, running_browser, served  # noqa: E402

# A worker, and a function that asks it and waits for the last answer.
ASK = """([source, data]) => {
  const address = URL.createObjectURL(new Blob([source]));
  const worker = new Worker(address);
  const calls = new Map();
  const lasts = ["opened", "read", "dropped", "chosen", "done", "failed"];
  worker.onmessage = ({ data }) =>
    calls.get(data.id)({ ...data, at: performance.now() });
  let id = 0;
  window.ask = (ask, more, transfer = []) => new Promise((resolve) => {
    const answers = [];
    id += 1;
    calls.set(id, (answer) => {
      answers.push(answer);
      if (lasts.includes(answer.kind)) resolve(answers);
    });
    worker.postMessage({ id, ask, ...more }, transfer);
  });
  const bytes = Uint8Array.from(atob(data), (sign) => sign.charCodeAt(0)).buffer;
  return window.ask("open", { bytes }, [bytes]);
}"""
WRITE = """async ([text, count, useCache]) => {
  const knobs = { temperature: 0.8, top_k: null, top_p: null };
  const plain = { text, off: [], knobs, useCache };
  await ask("read", { ...plain, lens: false, attention: false });
  const start = performance.now();
  const more = { count, greedy: false, seed: 1 };
  const answers = await ask("generate", { ...plain, ...more });
  const grown = answers.filter(({ kind }) => kind === "grown");
  return {
    ms: performance.now() - start,
    work: grown.map(({ work }) => work),
    marks: grown.map(({ at, tokens }) => [at - start, tokens]),
    text: grown.map(({ piece }) => piece).join(""),
  };
}"""
LOGITS = """async ([source, data, prompts]) => {
  const blob = new Blob([source], { type: "text/javascript" });
  const { read } = await import(URL.createObjectURL(blob));
  const { model } = read(Uint8Array.from(atob(data), (s) => s.charCodeAt(0)).buffer);
  return prompts.map((tokens) => {
    const bytes = new Uint8Array(model.forward(tokens).buffer);
    let text = "";
    for (let i = 0; i < bytes.length; i += 1) text += String.fromCharCode(bytes[i]);
    return btoa(text);
  });
}"""
WATCH = """window.tasks = [];
new PerformanceObserver((list) => {
  for (const { duration } of list.getEntries()) window.tasks.push(duration);
}).observe({ type: "longtask", buffered: true });"""
READY = """async () => {
  const root = document.querySelector("gpt2-play-panel").shadowRoot;
  const status = root.querySelector(".state");
  const start = performance.now();
  await new Promise((resolve) => {
    new MutationObserver(() => status.textContent.startsWith("running") && resolve())
      .observe(status, { childList: true, characterData: true, subtree: true });
    root.querySelector("#text").focus();
  });
  return performance.now() - start;
}"""


def in_base64(path):
    return base64.b64encode(path.read_bytes()).decode()


def slowest(marks, span=250):
    """The fewest tokens a second over any `span` milliseconds of a text."""
    rates = []
    for i, (start, before) in enumerate(marks):
        later = [mark for mark in marks[i:] if mark[0] - start >= span]
        if later:
            end, after = later[0]
            rates.append(1000 * (after - before) / (end - start))
    return min(rates)


def write(tab, text, count, use_cache):
    """Tokens and multiply-adds a second, and the slowest stretch, of one text."""
    found = tab.evaluate(WRITE, [text, count, use_cache])
    done = sum(work["multiplyAdds"] for work in found["work"])
    return {
        "tokens_per_second": 1000 * count / found["ms"],
        "multiply_adds_per_second": 1000 * done / found["ms"],
        "slowest": slowest(found["marks"]) if count >= 1000 else None,
        "text": found["text"],
    }


def writing(browser, folder, file, repeats):
    """How fast the worker writes, each way `repeats` times, in turns."""
    tab, faults = open_tab(browser, folder.as_uri())
    tab.goto(folder.as_uri())
    [opened] = tab.evaluate(ASK, [_bundle("play-worker"), in_base64(file)])
    assert opened["kind"] == "opened", opened
    half = write(tab, "\n", 128, True)["text"]
    ways = {
        "1,000 tokens": ("\n", 1000, True),
        "128, with the cache": (half, 64, True),
        "128, anew": (half, 4, False),
    }
    runs = {name: [] for name in ways}
    for _ in range(repeats):
        for name, (text, count, use_cache) in ways.items():
            runs[name].append(write(tab, text, count, use_cache))
    tab.context.close()
    assert not faults, faults
    numbers = ("tokens_per_second", "multiply_adds_per_second", "slowest")
    return {
        name: {
            number: [
                round(run[number]) if run[number] > 100 else round(run[number], 2)
                for run in found
            ]
            for number in numbers
            if found[0][number] is not None
        }
        for name, found in runs.items()
    }


def agreement(browser, folder, model, tokenizer, tokens, n_prompts=100):
    """The largest error of a logit, as a share of the largest logit."""
    generator = np.random.default_rng(0)
    starts = generator.integers(0, len(tokens) - 400, n_prompts)
    sizes = generator.integers(1, 400, n_prompts)  # beyond the window, too
    prompts = [
        tokens[start : start + size].tolist()
        for start, size in zip(starts, sizes, strict=True)
    ]
    file = export(model, tokenizer, folder / "float32.gpt2", "float32")
    tab, faults = open_tab(browser, folder.as_uri())
    tab.goto(folder.as_uri())
    source = (_STATIC / "gpt2.js").read_text("utf-8")
    found = tab.evaluate(LOGITS, [source, in_base64(file), prompts])
    tab.context.close()
    assert not faults, faults
    worst = 0.0
    for prompt, data in zip(prompts, found, strict=True):
        with torch.no_grad():
            theirs = model(torch.tensor([prompt]))[0]
        ours = torch.frombuffer(bytearray(base64.b64decode(data)), dtype=torch.float32)
        error = (ours.view_as(theirs) - theirs).abs().max() / theirs.abs().max()
        worst = max(worst, error.item())
    return {"prompts": n_prompts, "positions": int(sizes.sum()), "largest_error": worst}


def ready(browser, base, repeats):
    """Milliseconds from the first touch of the panel until the model runs."""
    times = []
    for _ in range(repeats):
        tab, faults = open_tab(browser, base)
        tab.goto(f"{base}notebooks/play.html")
        tab.wait_for_function(
            "document.querySelector('gpt2-play-panel')?.shadowRoot !== null"
        )
        tab.wait_for_timeout(500)
        times.append(tab.evaluate(READY))
        tab.context.close()
        assert not faults, faults
    return [round(ms) for ms in times]


def tasks(browser, base):
    """The long tasks of the main thread while the panel is used, in milliseconds."""
    tab, faults = open_tab(browser, base)
    tab.goto(f"{base}notebooks/play.html")
    tab.wait_for_timeout(1500)  # what the page itself does at its start
    tab.evaluate(WATCH.replace(", buffered: true", ""))
    text = tab.locator("gpt2-play-panel #text")
    text.click()
    tab.wait_for_function(
        "document.querySelector('gpt2-play-panel').shadowRoot"
        ".querySelector('.state').textContent.startsWith('running')"
    )
    text.press("End")
    text.press_sequentially(" through yonder window breaks", delay=60)
    tab.wait_for_timeout(1000)
    stream = tab.locator("gpt2-play-panel button.stream")
    stream.click()
    tab.wait_for_timeout(3000)
    tab.locator("gpt2-play-panel #temperature").fill("0.5")
    tab.wait_for_timeout(1000)
    stream.click()
    tab.wait_for_timeout(1500)
    tab.get_by_role("button", name="Switch off this head").click()
    tab.wait_for_timeout(1500)
    found = tab.evaluate("window.tasks")
    tab.context.close()
    assert not faults, faults
    return [round(ms) for ms in found]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=10, help="default: 10")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "play.json")
    args = parser.parse_args()
    corpus, load = load_corpus("shakespeare"), os.getloadavg()[0]
    model = GPT2LMHeadModel.from_pretrained("shakespeare-char")
    site = built_site()
    with (
        running_browser() as browser,
        tempfile.TemporaryDirectory() as name,
        served(site) as base,
    ):
        folder = Path(name)
        file = export(model, corpus.tokenizer, folder / "int8.gpt2")
        results = {
            "machine": describe_machine(chromium=browser.version),
            "command": "python benchmarks/play.py",
            "load_before": round(load, 2),
            "parameters": model.config.num_parameters,
            "file_bytes": file.stat().st_size,
            "writing": writing(browser, folder, file, args.repeats),
            "ready_ms": ready(browser, base, args.repeats),
            "long_tasks_ms": tasks(browser, base),
            "agreement": agreement(
                browser, folder, model, corpus.tokenizer, corpus.validation
            ),
        }
    for name, found in results["writing"].items():
        medians = {
            key: round(statistics.median(runs), 2) for key, runs in found.items()
        }
        print(f"{name}: {medians}")
    print({key: results[key] for key in ("ready_ms", "long_tasks_ms", "agreement")})
    args.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
