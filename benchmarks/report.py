"""Write the book's pages of measurements from `benchmarks/results/`.

    python benchmarks/report.py            write them, and the figure
    python benchmarks/report.py --check    fail if one differs from the results

They are `book/speed.md`, `book/generation.md`, `book/training.md`, `book/explorer.md`,
`book/page_model.md` and their figures, and the curves in `book/numbers.md`.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path

import matplotlib.style
from matplotlib.figure import Figure
from report_gpu import generation_on_gpu, training_on_gpu
from report_training import curves_figure, svg, training_figure, training_page
from report_words import label, memory, number, ratio, table, unbroken

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
STYLE = ROOT / "gpt2lib" / "static" / "book.mplstyle"

# The page of forward pass and training step -------------------------------------------

WHAT = {
    "forward 124M": "Forward pass, 124M, one text of 512 tokens, all logits",
    "step 4x128": "Training step, 4 blocks of 128, 12 texts of 64 characters",
    "step 124M": "Training step, 124M, one text of 512 tokens",
}

INTRO = """\
# Speed, side by side

How fast is the model that you build, beside the implementation that most people use?
Both load the same weights and work on the same tokens, in turns, and their results
agree. Dropout is off, numbers are float32, attention is PyTorch's
`scaled_dot_product_attention` on both sides. A ratio compares two timings of one round;
its interval holds the true median with 95 % confidence.

Measured on {date} with {threads} threads on {cores} cores of an {cpu}, Python {python},
torch {torch}, transformers {transformers}, {rounds} rounds. In the same run this
machine multiplied large matrices at {rate} GFLOP/s; the share of that rate is
arithmetic that neither side can avoid. Memory is the peak of the model at work in a
process of its own, imports apart. [The next page](generation.md) times it writing.
"""

END = """\
Our training step uses the fused AdamW, the same arithmetic in fewer passes over memory,
and [keeps freed memory](../notebooks/phase0_foundation.ipynb#keep-function). The row
`transformers` is a step with `torch.optim.AdamW(parameters)` alone. The next has the
fused optimiser, as their `Trainer` has, and the third has both: it differs from ours in
the model alone, and where its interval contains 1, no difference of the models is
shown. A ratio is a median of ratios, the times are medians by themselves, so the two
need not agree.

## Import

`import gpt2lib.language_model` takes {cost} on top of `import torch`.

## Measure it yourself

    python benchmarks/forward_and_step.py
    python benchmarks/report.py
"""


def case_table(case, result):
    """Return the section of one case: a row for each side."""
    rows = [
        (
            label(side),
            unbroken(number(statistics.median(times))),
            ratio(result["times_faster_than"].get(side)),
            f"{result['share_of_matrix_rate'][side]:.0%}",
            unbroken(memory(result["peak_memory_bytes"][side])),
        )
        for side, times in result["seconds"].items()
    ]
    faster = "`gpt2lib` is faster (95 % interval)"
    header = "side", "median time", faster, "share of the rate", "memory"
    return [f"## {WHAT[case]}", "", *table(header, *rows)]


def speed_page(results):
    """Return the text of `book/speed.md`."""
    rate = statistics.median(
        case["matrix_flops_per_second"] for case in results["cases"].values()
    )
    intro = INTRO.format(
        **results["machine"],
        rounds=results["settings"]["rounds"],
        rate=f"{rate / 1e9:.0f}",
    )
    tables = [case_table(case, result) for case, result in results["cases"].items()]
    cost = number(results["import_seconds_over_torch"])
    body = "\n\n".join("\n".join(lines) for lines in tables)
    return f"{intro}\n{body}\n\n{END.format(cost=cost)}"


# The page of generation ---------------------------------------------------------------

AFTER = ("after 64", "after 512")

GENERATION = """\
# Generation, side by side

How fast does the model that you build write? Each token takes every weight once, and
the keys and values of all tokens so far; with one text at a time, arithmetic is little
beside reading them. So the rate at which a machine reads its memory sets a limit that
no code passes, short of reading fewer bytes.

Measured on {date} with {threads} threads on {cores} cores of an {cpu}, Python {python},
torch {torch}, transformers {transformers}, {rounds} rounds: GPT-2 of 124M parameters,
one text, always the most probable token, {new} new tokens after a prompt. The sides
load the same random weights and take turns; in float32, {agreed}.

In the same run this machine read {rate:.1f} GB/s from memory. The weights are {weights}
MB in float32 and {int8} MB in eight bits, and the cache adds {short} MB and {long} MB,
on average after {prompts} tokens. So the limit is {limits} tokens a second in float32.

<div class="cell_output">

![{alt}](generation.svg)

</div>
"""

HOW = """\
The first token comes once the prompt is read; tokens a second count the others.
`transformers` is `model.generate` as it comes, with `attn_implementation="sdpa"`.
Ratios and memory are taken as on [the page before](speed.md), loading apart.

Most of the lead in float32 is
[`Linear`](../notebooks/phase6_go_deeper.ipynb#linear-class), which gives the one row of
a step to all threads: Phase 6
[times a step](../notebooks/phase6_go_deeper.ipynb#measure) with and without it. The
limit is the rate of one long read; a step reads matrix by matrix, and Phase 6 counts
[the calls between](../notebooks/phase6_go_deeper.ipynb#operators).

[`quantize_int8`](../notebooks/phase6_go_deeper.ipynb#quantize-class) makes the weights
of eight bits. They are rounded, so their text may part from the others': {parted}.

## What the cache saves

Without [the cache](../notebooks/phase6_go_deeper.ipynb#cache-class) each token reads
the whole text again. These rows were timed apart, on fewer tokens: compare within a
row alone.
"""

BESIDE_LITGPT = """\
## Beside litgpt

litgpt {litgpt} has no table of positions, so it runs GPT-2 with rotary ones: the same
sizes, norms, GELU and tied head, {fewer:.1%} fewer parameters. `gpt2lib`, rotary, is
that very model, with the same weights, and {agreed}; `gpt2lib` is GPT-2. litgpt runs in
an environment of its own, with torch {litgpt_torch}, and makes its cache before its
clock starts, as its own program does. Another run, of {rounds} rounds, on {date}; the
machine read {rate:.1f} GB/s.
"""

MEASURE = """\
## Measure it yourself

    python benchmarks/generation.py
    python benchmarks/generation.py --peer litgpt --python /path/to/its/python
    python benchmarks/gpu.py --parts generation
    python benchmarks/report.py
"""


def agreement(cases, sides):
    """Say how far the tokens of `sides` are those of the same model elsewhere."""
    parted = sorted(
        f"{label(side)} after {case['prompt_tokens']} + {n} tokens"
        for case in cases
        for side, n in case["tokens_in_common"].items()
        if side in sides and n < case["new_tokens"]
    )
    if not parted:
        return "all their tokens are the same"
    return (
        "their tokens are the same, until two are equally probable but for rounding: "
        + ", ".join(parted)
    )


def agreement_of_int8(case):
    n, of = case["tokens_in_common"]["gpt2lib, int8"], case["new_tokens"]
    same = (
        f"all {of} are the same" if n == of else f"the first {n} of {of} are the same"
    )
    if n == 0:
        same = "the first already differs"
    return f"after {case['prompt_tokens']} tokens, {same}"


def sides_table(case):
    """Return the table of one prompt: a row for each side."""
    rows = [
        (
            label(side),
            f"{speed:.1f}",
            ratio(case["times_faster"].get(side)),
            f"{case['share_of_limit'][side]:.0%}",
            unbroken(number(statistics.median(case["seconds_to_first_token"][side]))),
            ratio(case["first_token_times_faster"].get(side)),
            unbroken(memory(case["peak_memory_bytes"][side])),
        )
        for side, speed in case["tokens_per_second"].items()
    ]
    faster = f"faster than `{case['beside']}` (95 % interval)"
    return table(
        ("side", "tokens/s", faster, "of the limit", "first token", "sooner", "memory"),
        *rows,
    )


def cache_table(results):
    """Return the table of what the cache saves."""
    cases = [case for case in results["cases"].values() if "no cache" in case["beside"]]
    rows = [
        (
            f"{case['prompt_tokens']} tokens",
            *(f"{speed:.1f}" for speed in case["tokens_per_second"].values()),
            ratio(case["times_faster"]["gpt2lib"]),
        )
        for case in cases
    ]
    header = "prompt", "with it, tokens/s", "without", "faster (95 % interval)"
    return table(header, *rows)


def alt(results):
    """Say in words what the figure shows."""
    cases = [results["cases"][name] for name in AFTER]
    says = [
        f"after {case['prompt_tokens']}, "
        + ", ".join(
            f"{side} {case['tokens_per_second'][side]:.0f} of at most "
            f"{case['limit_tokens_per_second'][side]:.0f}"
            for side in case["tokens_per_second"]
        )
        for case in cases
    ]
    return f"Bars of tokens a second, each with a mark at its limit: {'; '.join(says)}."


def generation_figure(results):
    """Return the text of `book/generation.svg`."""
    with matplotlib.style.context(STYLE):
        figure = Figure(figsize=(5.6, 3.4))
        ax = figure.subplots()
        places, names, place = [], [], 0
        for name in AFTER:
            case = results["cases"][name]
            ax.text(0, place, f"after {case['prompt_tokens']} tokens", va="center")
            for n, (side, speed) in enumerate(case["tokens_per_second"].items()):
                place += 1
                limit = case["limit_tokens_per_second"][side]
                ax.barh(place, speed, 0.7, color=f"C{n}")
                ax.plot([limit, limit], [place - 0.4, place + 0.4], color="0.1")
                text = f"{speed:.0f}, {case['share_of_limit'][side]:.0%} of the limit"
                ax.text(max(speed, limit), place, f"  {text}", va="center", size=10)
                places.append(place)
                names.append(side)
            place += 1.3
        ax.set_yticks(places, names)
        ax.tick_params(axis="y", length=0)
        ax.invert_yaxis()
        ax.spines["left"].set_visible(False)
        widest = ax.get_xlim()[1]
        ax.spines["bottom"].set_bounds(0, widest)
        ax.set_xticks([tick for tick in ax.get_xticks() if 0 <= tick <= widest])
        ax.set_xlim(0, 1.5 * widest)  # room for the words
        ax.set_xlabel("tokens a second; a line marks what memory allows", loc="left")
        return svg(figure)


def generation_page(results, beside_litgpt, on_gpu):
    """Return the text of `book/generation.md`."""
    cases = [results["cases"][name] for name in AFTER]
    short, long = (case["bytes_read_per_token"]["gpt2lib"] for case in cases)
    int8 = cases[0]["bytes_read_per_token"]["gpt2lib, int8"]
    both = " and ".join
    intro = GENERATION.format(
        **results["machine"],
        rounds=cases[0]["rounds"],
        new=cases[0]["new_tokens"],
        agreed=agreement(
            results["cases"].values(), ("transformers", "gpt2lib, no cache")
        ),
        rate=results["best_read_bytes_per_second"] / 1e9,
        weights=f"{short['weights'] / 1e6:.0f}",
        int8=f"{(sum(int8.values()) - int8['cache']) / 1e6:.0f}",
        short=f"{short['cache'] / 1e6:.0f}",
        long=f"{long['cache'] / 1e6:.0f}",
        prompts=both(str(case["prompt_tokens"]) for case in cases),
        limits=both(
            f"{case['limit_tokens_per_second']['gpt2lib']:.1f}" for case in cases
        ),
        alt=alt(results),
    )
    parted = both(map(agreement_of_int8, cases))
    body = "\n\n".join(
        "\n".join(
            [
                f"## After a prompt of {case['prompt_tokens']} tokens",
                "",
                *sides_table(case),
            ]
        )
        for case in cases
    )
    saved = "\n".join(cache_table(results))
    guest = "Beside litgpt nothing has been measured on this machine yet."
    if beside_litgpt is not None:
        guest = "\n".join(litgpt_section(beside_litgpt))
    how = HOW.format(parted=parted)
    return f"{intro}\n{body}\n\n{how}\n{saved}\n\n{guest}\n\n{on_gpu}\n{MEASURE}"


def litgpt_section(results):
    """Return the lines on litgpt."""
    cases = [results["cases"][name] for name in AFTER]
    config = cases[0]["config"]
    positions = config["block_size"] * config["n_embd"]
    weights = cases[0]["bytes_read_per_token"]["gpt2lib"]["weights"] / 4
    lines = [
        BESIDE_LITGPT.format(
            **results["machine"],
            fewer=positions / (positions + weights),
            agreed=agreement(cases, ("litgpt",)),
            rounds=cases[0]["rounds"],
            rate=results["best_read_bytes_per_second"] / 1e9,
        )
    ]
    for case in cases:
        lines += [f"After {case['prompt_tokens']} tokens:", "", *sides_table(case), ""]
    return lines[:-1]


# The page of the explorer -------------------------------------------------------------

EXPLORER = """\
# The explorer, timed

How long does the attention explorer of
[Phase 5](../notebooks/phase5_debugging_tools.ipynb#explorer-show) keep a page busy?
Measured on {date} in headless Chromium {chromium} on {cores} cores of an {cpu},
without a network: the median of {repeats} times, the worst in brackets. *First picture*
runs from the start of the script to the end of the frame that shows it; the rest is
what a handler and the next frame take. With 12 × 12 heads the page's state is {size}
kB.
"""

EXPLORER_END = """\
A page of 12 × 12 heads has room for the weights alone, so its steps come without the
vectors. A head's whole table at 128 tokens has {cells:,} cells, built over several
frames; the longest counts. Painting, by other threads, is not counted.

## Measure it yourself

    python benchmarks/explorer.py
    python benchmarks/report.py
"""


def explorer_page(results):
    """Return the text of `book/explorer.md`."""
    cases = results["cases"]
    first = next(iter(cases.values()))
    times = [
        {"first picture": case["first_paint_ms"], **case["interactions_ms"]}
        for case in cases.values()
    ]
    form = "{median:.0f} ms ({worst:.0f})"
    rows = [
        (name, *(form.format(**by_name[name]) for by_name in times))
        for name in times[0]
    ]
    header = [case.replace(" x ", " × ") for case in cases]
    intro = EXPLORER.format(
        **results["machine"],
        repeats=first["repeats"],
        size=round(first["html_bytes"] / 1000),
    )
    body = "\n".join(table(("what a reader does", *header), *rows))
    return f"{intro}\n{body}\n\n{EXPLORER_END.format(cells=128 * 128)}"


# The page of the model that runs in one -----------------------------------------------

PLAY = """\
# The model in the page, measured

How fast is [the model in JavaScript](javascript.md), and does it compute what PyTorch
computes? Measured on {date} in headless Chromium {chromium} on {cores} cores of an
{cpu}, without a network, with the model of the page
[Play](../notebooks/play.ipynb), {parameters:,} parameters. It runs in one thread, a
worker; the messages to the page and back are timed too.
"""

PLAY_END = """\
Each number is the median of {repeats}. *Anew* is without the cache: each token costs a
pass over all before it. Work is counted where it is done; what a mask would throw away
is not done. Over the texts of 1,000 tokens, the slowest quarter of a second wrote
{slowest:,.0f} tokens a second.

**To start.** From the first touch of the panel until the model runs it took
{ready:.0f} ms, {ready_worst:.0f} at worst of {repeats}, over http from the same
machine; over a network, the transfer of {megabytes:.2f} MB comes on top.

**The page meanwhile.** While the model is loaded, somebody types, streams, moves a knob
and switches a head off, {tasks}.

**Agreement.** Over {prompts} passages of the held-out plays, {positions:,} positions,
no logit differs from PyTorch's by more than {error:.0e} of the largest, both in
float32. What int8 costs is measured in
[Phase 6](../notebooks/phase6_go_deeper.ipynb#web-precision).

## Measure it yourself

    python benchmarks/play.py
    python benchmarks/report.py
"""


def play_page(results):
    """Return the text of `book/page_model.md`."""
    writing, ready = results["writing"], results["ready_ms"]
    median = {
        way: {name: statistics.median(runs) for name, runs in found.items()}
        for way, found in writing.items()
    }
    names = {
        "1,000 tokens": "1,000 tokens, from the first on",
        "128, with the cache": "after 128 tokens, with the cache",
        "128, anew": "after 128 tokens, anew",
    }
    rows = [
        (
            names[way],
            format(
                rate := found["tokens_per_second"], ",.0f" if rate >= 100 else ".3g"
            ),
            f"{found['multiply_adds_per_second'] / 1e6:,.0f} million",
        )
        for way, found in median.items()
    ]
    long = results["long_tasks_ms"]
    said = f"{len(long)} tasks of its main thread took more than 50 ms: {long}"
    intro = PLAY.format(**results["machine"], parameters=results["parameters"])
    end = PLAY_END.format(
        **results["agreement"],
        repeats=len(ready),
        slowest=min(writing["1,000 tokens"]["slowest"]),
        megabytes=results["file_bytes"] / 1e6,
        ready=statistics.median(ready),
        ready_worst=max(ready),
        tasks=said if long else "no task of its main thread took more than 50 ms",
        error=results["agreement"]["largest_error"],
    )
    header = ("writing", "tokens a second", "multiply-adds a second")
    return f"{intro}\n{chr(10).join(table(header, *rows))}\n\n{end}"


# All ----------------------------------------------------------------------------------


def read(name):
    return json.loads((RESULTS / f"{name}.json").read_text())


def read_if_measured(name):
    return read(name) if (RESULTS / f"{name}.json").exists() else None


PAGES = {
    ROOT / "book" / "speed.md": lambda: speed_page(read("forward_and_step")),
    ROOT / "book" / "generation.md": lambda: generation_page(
        read("generation"),
        read_if_measured("generation_litgpt"),
        generation_on_gpu(read("gpu")),
    ),
    ROOT / "book" / "generation.svg": lambda: generation_figure(read("generation")),
    ROOT / "book" / "training.md": lambda: training_page(
        read("training"), training_on_gpu(read("gpu"))
    ),
    ROOT / "book" / "training.svg": lambda: training_figure(read("training")),
    ROOT / "book" / "curves.svg": lambda: curves_figure(read("training"), read("gpu")),
    ROOT / "book" / "explorer.md": lambda: explorer_page(read("explorer")),
    ROOT / "book" / "page_model.md": lambda: play_page(read("play")),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only compare")
    check = parser.parse_args().check
    for path, write in PAGES.items():
        text = write()
        if not check:
            path.write_text(text)
        elif not path.exists() or path.read_text() != text:
            sys.exit(f"{path.name} is not what the results say: run this program")


if __name__ == "__main__":
    main()
