"""Time this library beside `transformers`: a forward pass and training steps.

    python benchmarks/forward_and_step.py           under ten minutes on two cores
    python benchmarks/forward_and_step.py --rounds 6 --out /dev/null    a quick look

Each side has a process of its own, so that neither finds the other's memory. All load
one checkpoint and work on the same random tokens, without dropout, in float32; the
program stops if their results differ. They take turns, see `side_by_side.py`. Results
go to `results/`. Needs Linux, and 12 GB of memory for the 124M cases.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from side_by_side import (
    Side,
    add_rounds,
    describe_machine,
    import_transformers,
    seconds,
    serve,
    take_turns,
    times_faster,
    with_rounds,
)

from gpt2lib.config import GPT2Config, flops_by_part
from gpt2lib.language_model import GPT2LMHeadModel, next_token_loss
from gpt2lib.training_loop import fit, keep_freed_memory

HERE = Path(__file__).resolve().parent
GPT2 = GPT2Config(dropout=0.0)
SMALL = GPT2Config(4, 4, 128, vocab_size=65, block_size=64, dropout=0.0)
TINY = GPT2Config(1, 1, 8, vocab_size=11, block_size=4, dropout=0.0)

# name: configuration, batch, tokens, repetitions in one timing, whether it trains
CASES = {
    "forward 124M": (GPT2, 1, 512, 1, False),
    "step 4x128": (SMALL, 12, 64, 10, True),
    "step 124M": (GPT2, 1, 512, 1, True),
    "tiny": (TINY, 2, 4, 1, True),
}
OURS, THEIRS = "gpt2lib", "transformers"
FUSED, BOTH = f"{THEIRS}, fused AdamW", f"{THEIRS}, fused AdamW, memory kept"
PLAIN = f"{OURS}, memory not kept"
LEARNING_RATE = 1e-4


def load_ours(folder):
    model = GPT2LMHeadModel.from_pretrained(folder)
    return model, model, lambda tokens: next_token_loss(model(tokens), tokens)


def load_theirs(folder):
    model = import_transformers().GPT2LMHeadModel.from_pretrained(
        folder,
        attn_implementation="sdpa",
        use_cache=False,  # keys and values that nobody asked for: ours makes none
    )
    return (
        model,
        lambda tokens: model(tokens).logits,
        lambda tokens: model(tokens, labels=tokens).loss,
    )


def make_work(case, side, folder):
    """Return a function that does the work of `case` once and returns its result.

    The model is the checkpoint in `folder`. A forward pass returns logits, a training
    step its loss. Both update with AdamW at PyTorch's defaults but the learning rate;
    ours asks for the fused one, as our training does, theirs only as `FUSED`, `BOTH`.
    Ours also keeps freed memory in a training step, but for `PLAIN`; theirs as `BOTH`.
    """
    config, batch_size, n_tokens, _, trains = CASES[case]
    ours = side in (OURS, PLAIN)
    if trains and side in (OURS, BOTH):
        keep_freed_memory()
    torch.manual_seed(0)
    tokens = torch.randint(config.vocab_size, (batch_size, n_tokens))
    model, logits_of, loss_of = (load_ours if ours else load_theirs)(folder)
    if not trains:
        model.eval()
        return torch.no_grad()(lambda: logits_of(tokens))
    model.train()
    fused = {"fused": True} if side != THEIRS else {}
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, **fused)
    if ours:
        return lambda: our_step(tokens, loss_of, optimizer)

    def step():
        optimizer.zero_grad()
        loss = loss_of(tokens)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def our_step(tokens, loss_of, optimizer):
    """Update once through the library's own loop and return the loss."""
    losses = {}
    fit([tokens], loss_of, optimizer, n_steps=1, after_step=losses.__setitem__)
    return losses[0]


def save_checkpoint(case, folder):
    """Write random weights for `case` into `folder`, in the format both sides read."""
    torch.manual_seed(0)
    GPT2LMHeadModel(CASES[case][0]).save_pretrained(folder)


def prepare(case, side, folder):
    """Return what answers for `side`: how long some repetitions took, each.

    For 0 of them, a sample of the result.
    """
    work = make_work(case, side, folder)

    def answer(repetitions):
        if repetitions == 0:
            result = work()  # a loss, or logits (B, T, V)
            sample = result if result.dim() == 0 else result[:, ::7, ::997]
            return sample.flatten().tolist()
        return seconds(work, repetitions)

    return answer


def check_equal(samples):
    """Raise `AssertionError` if a side's results differ from ours."""
    for side, sample in samples.items():
        ours = torch.tensor(samples[OURS])
        torch.testing.assert_close(
            torch.tensor(sample), ours, rtol=0, atol=1e-4, msg=side
        )


def matrix_rate(size=2048):
    """Return the rate, in FLOP/s, of one large float32 matrix product."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    return 2 * size**3 / seconds(lambda: torch.mm(a, b), 1)


def import_cost(rounds):
    """Return the median seconds that our import adds to `import torch`."""
    program = (
        "import time, torch; start = time.perf_counter();"
        "import gpt2lib.language_model; print(time.perf_counter() - start)"
    )
    command = [sys.executable, "-c", program]
    outputs = [
        subprocess.run(command, capture_output=True, text=True, check=True).stdout
        for _ in range(rounds)
    ]
    return statistics.median(float(output) for output in outputs)


def measure(case, rounds, folder):
    """Return everything that the report shows of one case."""
    config, batch_size, n_tokens, repetitions, trains = CASES[case]
    sides = [OURS, THEIRS, FUSED, BOTH, PLAIN] if trains else [OURS, THEIRS]
    save_checkpoint(case, folder)
    serving = [sys.executable, __file__, "--serve", case]
    running = {name: Side([*serving, name, folder]) for name in sides}
    check_equal({name: side.ask(0) for name, side in running.items()})
    timers = {name: partial(side.ask, repetitions) for name, side in running.items()}
    times = take_turns(timers | {"rate": matrix_rate}, rounds)
    rate = max(times.pop("rate"))  # what the machine can do when nothing disturbs it
    flops = batch_size * sum(flops_by_part(config, n_tokens).values())
    flops *= 3 if trains else 1  # backward: two products for each of forward's
    return {
        "config": asdict(config),
        "batch_size": batch_size,
        "n_tokens": n_tokens,
        "repetitions": repetitions,
        "seconds": times,
        "times_faster_than": {
            side: times_faster(times[OURS], than=times[side]) for side in sides[1:]
        },
        "flops": flops,
        "matrix_flops_per_second": rate,
        "share_of_matrix_rate": {
            side: flops / statistics.median(times[side]) / rate for side in sides
        },
        "peak_memory_bytes": {name: side.ask(None) for name, side in running.items()},
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_rounds(parser)
    parser.add_argument("--cases", nargs="*", default=list(CASES)[:3], choices=CASES)
    default = HERE / "results" / "forward_and_step.json"
    parser.add_argument("--out", type=Path, default=default)
    parser.add_argument("--serve", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    transformers = import_transformers()
    if args.serve:
        return serve(prepare, *args.serve)
    results = {
        "machine": describe_machine(transformers=transformers.__version__),
        "command": with_rounds("python benchmarks/forward_and_step.py", args.rounds),
        "settings": {
            "rounds": args.rounds,
            "dtype": "float32",
            "optimizer": "AdamW",
            "learning_rate": LEARNING_RATE,
        },
        "import_seconds_over_torch": import_cost(args.rounds // 2),
        "cases": {},
    }
    print(f"import over torch: {results['import_seconds_over_torch']:.3f} s")
    for case in args.cases:
        with tempfile.TemporaryDirectory() as folder:
            results["cases"][case] = measured = measure(case, args.rounds, folder)
        for side, (ratio, low, high) in measured["times_faster_than"].items():
            print(f"{case}: {ratio:.3f} x {side} [{low:.3f}, {high:.3f}]")
        for side, share in measured["share_of_matrix_rate"].items():
            memory = measured["peak_memory_bytes"][side] / 2**20
            took = f"{1e3 * statistics.median(measured['seconds'][side]):.1f} ms"
            print(f"  {side}: {took}, {share:.0%} of the rate, {memory:.0f} MiB")
    args.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
