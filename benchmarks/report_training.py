"""The book's page of training runs, from `results/training.json`; see `report.py`."""

import io
import json
import statistics
from itertools import pairwise
from pathlib import Path

import matplotlib.style
from matplotlib.figure import Figure
from training import OURS, SHORT, WITHOUT, YARDSTICK

from gpt2lib.language_model import GPT2LMHeadModel
from gpt2lib.train import TrainConfig, _model_config

STATIC = Path(__file__).resolve().parent.parent / "gpt2lib" / "static"
STYLE, CARD = STATIC / "book.mplstyle", STATIC / "shakespeare-char" / "card.json"

PAGE = """\
# Training, piece by piece

[Phase 6](../notebooks/phase6_go_deeper.ipynb#reader-run) trains on Shakespeare with a
recipe of its own. What is it worth beside the one that everybody knows, nanoGPT's for a
CPU {{cite:p}}`karpathy2022nanogpt`, and what are four of its choices worth? Both train
models of {parameters} parameters, biases included, on the
first nine tenths of the same nine plays. Losses are nats a character over all of the
last tenth, in windows of `block_size`: 64 for nanoGPT's recipe, 128 for ours.

Measured on {date} with {threads} threads on {cores} cores of an {cpu}, Python {python},
torch {torch}: one run after the other, {seeds} seeds each. Time leaves out evaluations
and saves.

<div class="cell_output">

![{alt}](training.svg)

</div>

- nanoGPT's recipe ends at {yardstick} after {yardstick_seconds:.0f} s.
- Ours, in {share:.0%} of that time, ends at {ours}: {gain:.3f} nats lower
  (by seed {gains}).
- It passes nanoGPT's last loss after {passed:.0%} of that time. Planned for
  {short_steps} steps, it ends at {short}, in {short_share:.0%} of it.

## One choice taken back

Each row is our recipe with one choice exchanged for nanoGPT's, and as many steps as fit
into the same time; with half the window a step reads twice as many texts. The rise in
loss is what the choice is worth beside the others; the rows need not add up. No rate
was tuned anew.

{table}

The spread is the standard deviation over seeds. The learning rate is AdamW's, which
beside Muon moves only the embedding, biases and scales. The window is also what the
loss is taken with: in 128 characters, more of them have something before them. Muon
makes a step slower, so the row without it has more of them.

## The model that comes with the library

`shakespeare-char` is what `python -m gpt2lib.train --preset shakespeare-char` made, on
{card[date]}: {card[parameters]:,} parameters, {card[validation_loss]:.3f} nats in
windows of {card[settings][block_size]}, after {shipped_minutes:.0f} minutes of training
beside other work. nanoGPT's author reports 1.4697 for his recipe for a GPU, on another
edition of the text {{cite:p}}`karpathy2022nanogpt`; that model has
{theirs:,} parameters, and no biases. The tests evaluate ours again, and find its
head for the character before, and one that prefers what followed the same characters.

{on_gpu}
## What has not been measured

Training on several GPUs or machines; on one GPU, any but an H100. The preset
`gpt2-124m` trains on as many tokens as {{cite:t}}`karpathy2024llmc`; of it a step was
timed, no whole run.

[Speed](speed.md) compares steps on a CPU with those of `transformers`' model.

## Measure it yourself

    python benchmarks/training.py
    python benchmarks/gpu.py
    python benchmarks/report.py
"""


def svg(figure):
    """Return a figure as the text of an SVG, the same each time, on no ground."""
    file = io.StringIO()
    options = {"facecolor": "none", "bbox_inches": "tight"}
    nothing = {"Date": None, "Creator": None}
    figure.savefig(file, format="svg", metadata=nothing, **options)
    return file.getvalue()


def spread(runs):
    """Return the mean of the final losses and their standard deviation, in words."""
    losses = [run["validation_loss"] for run in runs]
    deviation = statistics.stdev(losses) if len(losses) > 1 else 0.0
    return f"{statistics.mean(losses):.3f} ± {deviation:.3f}"


def mean_curve(runs):
    """Return (mean seconds, mean loss) at each evaluation that the runs share."""
    points = zip(*(run["curve"] for run in runs), strict=True)
    return [
        (statistics.mean(p[1] for p in point), statistics.mean(p[2] for p in point))
        for point in points
    ]


def time_to_reach(curve, loss):
    """Return when a curve first comes down to `loss`, on a line between its points."""
    for (before, high), (after, low) in pairwise(curve):
        if low <= loss < high:
            return before + (high - loss) / (high - low) * (after - before)
    raise ValueError(f"the curve does not come down to {loss}")


def median_seconds(runs):
    return statistics.median(run["seconds"] for run in runs)


def mean_loss(runs):
    return statistics.mean(run["validation_loss"] for run in runs)


def findings(runs):
    """Return the numbers of the page's list."""
    theirs, ours, short = runs[YARDSTICK], runs[OURS], runs[SHORT]
    seconds = median_seconds(theirs)
    gains = [
        a["validation_loss"] - b["validation_loss"]
        for a, b in zip(theirs, ours, strict=True)
    ]
    return {
        "yardstick_seconds": seconds,
        "share": median_seconds(ours) / seconds,
        "gain": statistics.mean(gains),
        "gains": ", ".join(f"{gain:.3f}" for gain in gains),
        "passed": time_to_reach(mean_curve(ours), mean_loss(theirs)) / seconds,
        "short_steps": short[0]["steps"],
        "short_share": median_seconds(short) / seconds,
    }


def variants_table(runs):
    """Return the lines of the table: a row for each way to train."""
    rows = [
        "| recipe | steps | time | validation loss | above ours |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name in [OURS, *(f"without {ingredient}" for ingredient in WITHOUT), YARDSTICK]:
        label = name if name.startswith("without") else f"`{name}`"
        above = mean_loss(runs[name]) - mean_loss(runs[OURS])
        rows.append(
            f"| {label} | {runs[name][0]['steps']:,} | "
            f"{median_seconds(runs[name]):.0f} s | {spread(runs[name])} | "
            f"{'–' if name == OURS else f'{above:+.3f}'} |"
        )
    return "\n".join(rows)


def training_page(results, on_gpu):
    """Return the text of `book/training.md`."""
    runs, card = results["runs"], json.loads(CARD.read_text())
    sizes = sorted(
        {run["parameters"] for name in (OURS, YARDSTICK) for run in runs[name]}
    )
    numbers = findings(runs)
    return PAGE.format(
        **results["machine"],
        **numbers,
        parameters=" and ".join(f"{size:,}" for size in sizes),
        seeds=len(runs[OURS]),
        yardstick=spread(runs[YARDSTICK]),
        ours=spread(runs[OURS]),
        short=spread(runs[SHORT]),
        table=variants_table(runs),
        alt=alt(runs, numbers),
        card=card,
        on_gpu=on_gpu,
        shipped_minutes=card["seconds"] / 60,
        theirs=without_biases(_model_config(TrainConfig.preset("shakespeare-gpu"), 65)),
    )


def without_biases(config):
    """Return how many parameters a model has without biases, as nanoGPT's."""
    parameters = GPT2LMHeadModel(config).named_parameters()
    return sum(p.numel() for name, p in parameters if not name.endswith("bias"))


def alt(runs, numbers):
    """Say in words what the figure shows."""
    worth = ", ".join(
        f"without {i} {mean_loss(runs[f'without {i}']):.2f}" for i in WITHOUT
    )
    return (
        f"Above: validation loss against time. nanoGPT's recipe ends at "
        f"{mean_loss(runs[YARDSTICK]):.2f}; ours passes that at "
        f"{numbers['passed']:.0%} of the time and ends at {mean_loss(runs[OURS]):.2f}. "
        f"Below: the final losses of each seed, by recipe: {worth}."
    )


def curves_figure(results, on_gpu):
    """Return the text of `book/curves.svg`: every recipe's loss as it trains."""
    curves = {
        "nanoGPT's recipe, CPU": mean_curve(results["runs"][YARDSTICK]),
        "ours, CPU": mean_curve(results["runs"][OURS]),
        "shakespeare-gpu": [point[1:] for point in on_gpu["run"]["curve"]],
        "the same, too long": [point[1:] for point in on_gpu["long_run"]["curve"]],
    }
    with matplotlib.style.context(STYLE):
        figure = Figure(figsize=(5.6, 3.4), layout="constrained")
        ax = figure.subplots()
        styles = zip(curves.items(), (".-", "s:", "^--", "x-."), strict=True)
        for (name, curve), style in styles:
            ax.plot(*zip(*curve, strict=True), style, ms=5, label=name)
        ax.set(xscale="log", xlabel="seconds of training, on a logarithmic scale")
        ax.set_ylabel("validation loss,\nnats a character")
        ax.set_xticks([5, 10, 20, 50, 100], ["5", "10", "20", "50", "100"])
        ax.set_xticks([], minor=True)
        figure.legend(loc="outside lower left", ncols=2)
        return svg(figure)


def training_figure(results):
    """Return the text of `book/training.svg`."""
    runs = results["runs"]
    with matplotlib.style.context(STYLE):
        figure = Figure(figsize=(5.6, 5.6), layout="constrained")  # fits a phone
        above, below = figure.subplots(2, 1, height_ratios=(3, 2))
        for name, color, ls in ((YARDSTICK, "C1", "--"), (OURS, "C0", "-")):
            for n, run in enumerate(runs[name]):
                _, seconds, losses = zip(*run["curve"], strict=True)
                label = name if n == 0 else None
                above.plot(seconds, losses, color=color, ls=ls, lw=1.2, label=label)
        above.axhline(mean_loss(runs[YARDSTICK]), color="0.5", lw=0.8, ls=":")
        above.set(
            xlabel="seconds of training", ylabel="validation loss, nats a character"
        )
        above.set_ylim(top=2.8)
        above.legend()
        names = [OURS, *(f"without {i}" for i in WITHOUT), YARDSTICK]
        for place, name in enumerate(names):
            losses = [run["validation_loss"] for run in runs[name]]
            color = {OURS: "C0", YARDSTICK: "C1"}.get(name, "0.5")
            below.plot(losses, [place] * len(losses), "o", color=color, ms=5, alpha=0.7)
        below.set_yticks(range(len(names)), names)
        below.invert_yaxis()
        below.set(xlabel="final validation loss")
        return svg(figure)
