"""Write the book's page of speeds, `book/speed.md`, from `benchmarks/results/`.

python benchmarks/report.py            write it
python benchmarks/report.py --check    fail if the page differs from the results
"""

import argparse
import json
import statistics
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "book" / "speed.md"
RESULTS = ROOT / "benchmarks" / "results" / "forward_and_step.json"

WHAT = {
    "forward 124M": "Forward pass, 124M, one text of 512 tokens, all logits",
    "step 4x128": "Training step, 4 blocks of 128, 12 texts of 64 characters",
    "step 124M": "Training step, 124M, one text of 512 tokens",
}

INTRO = """\
# Speed, side by side

How fast is the model that you build, beside the implementation that most people use?
Both load the same weights and work on the same tokens, in turns, and their results
agree. A ratio compares two timings of one round; its interval holds the true median
with 95 % confidence. Dropout is off, numbers are float32, attention is PyTorch's
`scaled_dot_product_attention` on both sides.

Measured on {date} with {threads} threads on {cores} cores of an {cpu}, Python {python},
torch {torch}, transformers {transformers}, {rounds} rounds. In the same run this
machine multiplied large matrices at {rate} GFLOP/s. The share of that rate says how
much of the time is arithmetic that neither side can avoid. Memory is the peak of the
model at work in a process of its own, imports apart.
"""

END = """\
Our training step uses PyTorch's fused AdamW, the same arithmetic in fewer passes over
memory, and
[keeps freed memory](../notebooks/phase0_foundation.ipynb#keep-function). The row
`transformers` is a step with `torch.optim.AdamW(parameters)` and nothing else. The rows
below it have the fused optimiser, as their `Trainer` has, and then both; the last of
the three differs from ours in the model alone. `gpt2lib`, memory not kept, is our step
without the call: slower at 124M, with a lower peak.

## Import

`import gpt2lib.language_model` takes {cost} on top of `import torch`.

## Measure it yourself

    python benchmarks/forward_and_step.py
    python benchmarks/report.py
"""


def number(seconds):
    return f"{1000 * seconds:,.3g} ms" if seconds < 1 else f"{seconds:.2f} s"


def case_table(case, result):
    """Return the section of one case: a row for each side."""
    rows = [
        f"## {WHAT[case]}",
        "",
        "| side | median time | `gpt2lib` is faster (95 % interval) "
        "| share of the rate | memory |",
        "| --- | --- | --- | --- | --- |",
    ]
    for side, times in result["seconds"].items():
        faster = result["times_faster_than"].get(side)
        ratio = "{:.2f} × ({:.2f} to {:.2f})".format(*faster) if faster else "–"
        share = result["share_of_matrix_rate"][side]
        memory = result["peak_memory_bytes"][side] / 2**20
        name, comma, optimizer = side.partition(",")
        median = number(statistics.median(times))
        rows.append(
            f"| `{name}`{comma}{optimizer} | {median} | {ratio} | {share:.0%} "
            f"| {memory:,.0f} MiB |"
        )
    return rows


def page(results):
    """Return the text of `book/speed.md`."""
    machine = results["machine"]
    rate = statistics.median(
        case["matrix_flops_per_second"] for case in results["cases"].values()
    )
    intro = INTRO.format(
        **machine,
        rounds=results["settings"]["rounds"],
        rate=f"{rate / 1e9:.0f}",
    )
    tables = [case_table(case, result) for case, result in results["cases"].items()]
    cost = number(results["import_seconds_over_torch"])
    body = "\n\n".join("\n".join(table) for table in tables)
    return f"{intro}\n{body}\n\n{END.format(cost=cost)}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only compare")
    text = page(json.loads(RESULTS.read_text()))
    if not parser.parse_args().check:
        PAGE.write_text(text)
    elif PAGE.read_text() != text:
        sys.exit(f"{PAGE.name} is not what the results say: run benchmarks/report.py")


if __name__ == "__main__":
    main()
