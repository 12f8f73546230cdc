"""What the book's pages say of a GPU, from `results/gpu.json`; see `report.py`."""

import statistics

from gpu import DATA_SHEET, NANO, OURS, THEIRS
from report_words import label, memory, number, ratio, table, unbroken

TRAINING = """\
## On a GPU

Measured on {date} on one {gpu}, with Python {python}, torch {torch}, CUDA {cuda} and
`transformers` {transformers}.

**A run.** The preset `shakespeare-gpu` has nanoGPT's settings for a GPU but two:
biases, which nanoGPT leaves out, and {steps:,} steps in place of {long_steps:,}. It
ends at {loss:.3f} nats a character after {seconds:.0f} s, compiling included,
{wall:.0f} s with all that the command does. With
{long_steps:,} steps the loss is lowest at step {best_step:,}, {best:.3f}, and
{long_loss:.3f} in the end: {theirs} parameters learn our text by heart. We chose
{steps:,} by an earlier such run, lowest with {earlier:.3f} at step {earlier_step:,}.
One seed each.

**A step.** GPT-2 124M, {texts} texts of {block:,} random tokens, products in bfloat16,
the gradient clipped, the fused AdamW. Medians of {rounds} rounds.

{table}

nanoGPT's source could not be had there. Its row is a model of ours,
`benchmarks/nanogpt_side.py`, with its choices: no biases, the exact GELU, and a table
of tokens rounded up to 50,304 rows, where ours pads 50,257 at each step. In every row
the arithmetic is that of GPT-2 by
[`flops_by_part`](../notebooks/phase0_foundation.ipynb#flops-function), times three. The
data sheet promises {sheet:.0f} TFLOP/s {{cite:p}}`nvidia2022h100`; a large product
reached {rate:.0f} in the same run. With {large} texts, the share of one GPU in eight of
the preset `gpt2-124m`, our step takes {large_time}: {large_speed:,.0f} tokens a second,
and {large_memory}.

Before the loss was compiled with the model, the head's rows padded and batches copied
without waiting, our compiled step made {old_speed:,.0f} tokens a second and took
{old_memory}.

**Agreement.** With random weights of GPT-2 124M, logits differ from ours on the CPU in
float32 by {float32} of their length, those of `transformers` on the GPU by {same}; in
TF32 it is {tf32}, and {half} in bfloat16. The model that comes with the library loses
{shipped:.4f} there, {card:.4f} by its card, and writes {written}. A run broken off,
dropout on, goes on with {resumed}.
"""

GENERATION = """\
## On a GPU

The same model on one {gpu} ({date}, torch {torch}, `transformers` {transformers}),
after a prompt of {prompt} tokens, {new} new ones, {rounds} rounds:

{table}

In float32 {same}; in bfloat16, with its rounding, the texts part after {parted}. The
GPU copies {rate:.1f} TB in a second, so by the bytes alone {limit:,.0f} tokens a second
would be possible in float32 and twice that in bfloat16. No side comes near it, and half
the bytes do not help: a token takes
[some two hundred calls](../notebooks/phase6_go_deeper.ipynb#operators), each launched
from Python.
"""


def step_table(step):
    """Return the lines of the table: a row for each side."""
    rows = [
        (
            label(side) if side != NANO else side,
            f"{speed:,.0f}",
            ratio(step["times_faster_than"].get(side)),
            f"{step['share_of_data_sheet'][side]:.0%}",
            f"{step['share_of_matrix_rate'][side]:.0%}",
            unbroken(memory(step["peak_memory_bytes"][side])),
        )
        for side, speed in step["tokens_per_second"].items()
    ]
    faster = f"`{OURS}` is faster (95 % interval)"
    head = "side", "tokens/s", faster, "of the data sheet", "of a product", "memory"
    return "\n".join(table(head, *rows))


def training_on_gpu(results):
    """Return the section of the page of training."""
    step, run, long_run = (results[name] for name in ("step", "run", "long_run"))
    agreement, before = results["agreement"], results["before"]
    logits, shipped = agreement["logits"], agreement["shipped"]
    large = step["large"]
    seconds = statistics.median(large["seconds"])
    written = f"the same {shipped['greedy_tokens']} characters as on the CPU"
    if shipped["greedy_tokens_in_common"] != shipped["greedy_tokens"]:
        written = f"the same first {shipped['greedy_tokens_in_common']} characters"
    resumed = "exactly the losses of one that was not"
    if agreement["resumed"] > 0:
        resumed = f"losses that differ by {agreement['resumed']:.0e} at most"
    return TRAINING.format(
        **results["machine"],
        steps=run["steps"],
        long_steps=long_run["steps"],
        loss=run["curve"][-1][2],
        seconds=run["seconds"],
        wall=run["wall_seconds"],
        best_step=long_run["best"][0],
        best=long_run["best"][2],
        long_loss=long_run["curve"][-1][2],
        theirs=f"{run['parameters']:,}",
        earlier=before["long_run"]["best"][2],
        earlier_step=before["long_run"]["best"][0],
        old_speed=before["step"]["tokens_per_second"][OURS],
        old_memory=memory(before["step"]["peak_memory_bytes"][OURS]),
        texts=step["texts"],
        block=step["config"]["block_size"],
        rounds=step["rounds"],
        table=step_table(step),
        sheet=DATA_SHEET / 1e12,
        rate=step["matrix_flops_per_second"] / 1e12,
        large=large["texts"],
        large_time=number(seconds),
        large_speed=large["texts"] * step["config"]["block_size"] / seconds,
        large_memory=memory(large["peak_memory_bytes"]),
        float32=f"{logits['float32']:.0e}",
        same=f"{logits[f'{THEIRS}, float32']:.0e}",
        tf32=f"{logits['TF32']:.0e}",
        half=f"{logits['bfloat16 by autocast']:.0e}",
        shipped=shipped["loss"],
        card=shipped["loss_of_card"],
        written=written,
        resumed=resumed,
    )


def generation_on_gpu(results):
    """Return the section of the page of generation."""
    found = results["generation"]
    rows = []
    for side, speed in found["tokens_per_second"].items():
        words = side.partition(", ")[2]
        faster = found["times_faster"][words] if side.startswith(OURS) else None
        first = statistics.median(found["seconds_to_first_token"][side])
        share = speed / found["limit_tokens_per_second"][words]
        rows.append(
            (
                label(side),
                f"{speed:.0f}",
                ratio(faster),
                f"{share:.0%}",
                unbroken(number(first)),
            )
        )
    faster = f"faster than `{THEIRS}` (95 % interval)"
    head = "side", "tokens/s", faster, "of the limit", "first token"
    common, new = found["tokens_in_common"], found["new_tokens"]
    same = "all tokens are the same"
    if common["float32"] < new:
        same = f"the first {common['float32']} tokens are the same"
    return GENERATION.format(
        **results["machine"],
        prompt=found["prompt_tokens"],
        new=new,
        rounds=found["rounds"],
        table="\n".join(table(head, *rows)),
        same=same,
        parted=common["bfloat16"],
        rate=found["copy_bytes_per_second"] / 1e12,
        limit=found["limit_tokens_per_second"]["float32"],
    )
