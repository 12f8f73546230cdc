"""Measure on a GPU: agreement with the CPU, training steps, generation, a whole run.

    python benchmarks/gpu.py                      six minutes on an H100
    python benchmarks/gpu.py --quick --device cpu --out /dev/null    a look, anywhere
    python benchmarks/gpu.py --parts run          one part again, the others kept

Five parts, in this order. `agreement`: logits and losses beside those of the CPU and of
`transformers`. `step`: training steps of GPT-2 124M in bfloat16, ours through the code
of `gpt2lib.train`, beside a model with nanoGPT's choices (`nanogpt_side.py`) and beside
`transformers`. `generation`: one text, greedily, with a cache. `run`: the command with
the preset `shakespeare-gpu`; `long_run`: as many steps as nanoGPT's recipe has. Sides
take turns, see `side_by_side.py`, here in one process; a clock is read when the GPU is
done. Results are written after each part, also where a part fails. Weights and tokens
are random but for the shipped model and the runs.
"""

import argparse
import csv
import gc
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from string import ascii_letters

import numpy as np
import torch
from generation import bytes_read, in_common, write_theirs
from nanogpt_side import PlainGPT
from side_by_side import (
    describe_machine,
    import_transformers,
    take_turns,
    time_tokens,
    times_faster,
)

from gpt2lib import train as trainer
from gpt2lib.config import GPT2Config, flops_by_part
from gpt2lib.data import load_corpus
from gpt2lib.kv_cache import KVCache
from gpt2lib.language_model import GPT2LMHeadModel
from gpt2lib.sampling import generate, generate_stream
from gpt2lib.tokenizer import BPETokenizer, CharTokenizer, find_folder
from gpt2lib.train import TrainConfig
from gpt2lib.training_loop import fit

HERE = Path(__file__).resolve().parent
OURS, NANO, THEIRS = "gpt2lib", "nanoGPT's choices", "transformers"
EAGER = ", not compiled"
SIDES = (OURS, NANO, THEIRS, OURS + EAGER, THEIRS + EAGER)
DATA_SHEET = 989.4e12  # FLOP/s of an H100 SXM in bfloat16, dense
FULL = {  # how much is done
    "config": GPT2Config(dropout=0.0),
    "tokenizer": BPETokenizer.gpt2,
    "texts": 16,  # of a step
    "large": 64,  # the share of one GPU in eight of the preset gpt2-124m
    "steps": 5,  # in one timing
    "rounds": 9,
    "prompt": 64,
    "new": 64,
    "matrix": 8192,
    "run": "",
    "eval_tokens": 0,  # of the shipped model; 0: all
}
QUICK = {
    "config": GPT2Config(2, 2, 32, vocab_size=52, block_size=64, dropout=0.0),
    "tokenizer": lambda: CharTokenizer.train(ascii_letters),
    "texts": 2,
    "large": 4,
    "steps": 1,
    "rounds": 6,
    "prompt": 8,
    "new": 6,
    "matrix": 256,
    "run": (
        "--no-compile --n-layer 1 --n-head 2 --n-embd 16 --block-size 32 --warm-up 0 "
        "--batch-size 4 --n-steps 6 --eval-every 3 --eval-tokens 500"
    ),
    "eval_tokens": 1000,
}


def wait(device):
    """Return once `device` has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def clocked(work, device):
    """Return the seconds that `work` takes, until the device is done."""
    wait(device)
    start = time.perf_counter()
    work()
    wait(device)
    return time.perf_counter() - start


def forget(device):
    """Free memory, and forget what was compiled.

    Or `torch.compile` would make code for sizes that vary as soon as it sees others.
    """
    torch._dynamo.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def load_theirs(folder, device):
    """Return the model of `transformers` in the checkpoint at `folder`."""
    model = import_transformers().GPT2LMHeadModel.from_pretrained(
        folder, attn_implementation="sdpa"
    )
    model.generation_config.eos_token_id = None  # no token ends a text: ours knows none
    return model.to(device)


# Agreement ----------------------------------------------------------------------------


def distance(found, wanted):
    """Return the length of the difference of two tensors over that of the second."""
    found, wanted = found.double().cpu(), wanted.double().cpu()
    return ((found - wanted).norm() / wanted.norm()).item()


@torch.no_grad()
def compare_logits(config, folder, device):
    """Return how far logits on `device` are from ours on the CPU, in each way."""
    model = GPT2LMHeadModel.from_pretrained(folder)
    tokens = torch.randint(config.vocab_size, (2, config.block_size // 4))
    wanted = model(tokens)
    model, tokens = model.to(device), tokens.to(device)
    ways = {"float32": model(tokens)}
    cache = KVCache(config, 2, device=device)
    half = tokens.size(1) // 2
    pieces = tokens[:, :half], tokens[:, half:]
    ways["float32, in two pieces"] = torch.cat(
        [model(piece, cache=cache) for piece in pieces], dim=1
    )
    ways[f"{THEIRS}, float32"] = load_theirs(folder, device).eval()(tokens).logits
    torch.set_float32_matmul_precision("high")
    ways["TF32"] = model(tokens)
    torch.set_float32_matmul_precision("highest")
    with torch.autocast(device.type, torch.bfloat16):
        ways["bfloat16 by autocast"] = model(tokens)
    with torch.autocast(device.type, torch.bfloat16):
        ways["bfloat16 by autocast, compiled"] = torch.compile(model)(tokens)
    ways["bfloat16 weights"] = model.bfloat16()(tokens)
    return {way: distance(logits, wanted) for way, logits in ways.items()}


def compare_shipped(device, n_tokens):
    """Return what the shipped model loses and writes on `device`, beside the CPU."""
    name = "shakespeare-char"
    model = GPT2LMHeadModel.from_pretrained(name)
    corpus = load_corpus("shakespeare")
    prompt = torch.from_numpy(corpus.validation[:20].astype(np.int64))[None]
    on_cpu = generate(model, prompt, 200, greedy=True)[0].tolist()
    model = model.to(device)
    on_device = generate(model, prompt.to(device), 200, greedy=True)[0].tolist()
    card = json.loads((find_folder(name) / "card.json").read_text())
    return {
        "loss": trainer.evaluate(model, corpus.validation, n_tokens),
        "loss_of_card": card["validation_loss"],
        "greedy_tokens_in_common": in_common(on_cpu, on_device) - prompt.size(1),
        "greedy_tokens": 200,
    }


def losses_of(folder):
    with open(Path(folder) / "log.csv", newline="") as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


def compare_resumed(device, folder):
    """Return the largest difference of loss between a whole run and one in two."""
    config = TrainConfig(
        n_steps=40, save_every=20, eval_every=20, eval_tokens=1000, warm_up=5,
        sample_tokens=0, dropout=0.1, device=device.type, out=str(folder / "whole"),
    )  # fmt: skip
    trainer.train(config, watch=None)

    def stop(progress):
        if progress.step >= 30:
            raise KeyboardInterrupt

    halves = replace(config, out=str(folder / "halves"))
    try:
        trainer.train(halves, watch=stop)
    except KeyboardInterrupt:
        trainer.train(halves, resume=True, watch=None)
    pairs = zip(losses_of(config.out), losses_of(halves.out), strict=True)
    return max(abs(a - b) for a, b in pairs)


def train_by_torchrun(device, folder):
    """Return the last loss of `hello-world` in one process that `torchrun` starts."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "1", "-m", "gpt2lib.train", "--preset"]
    command += ["hello-world", "--device", device.type, "--out", str(folder)]
    quiet = {"stdout": subprocess.DEVNULL, "timeout": 90, "check": True}
    subprocess.run(command, **quiet)
    return losses_of(folder)[-1]


def measure_agreement(found, amount, device):
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as place:
        place = Path(place)
        GPT2LMHeadModel(amount["config"]).save_pretrained(place / "model")
        found["logits"] = compare_logits(amount["config"], place / "model", device)
        print(found["logits"], flush=True)
        found["shipped"] = compare_shipped(device, amount["eval_tokens"])
        print(found["shipped"], flush=True)
        found["resumed"] = compare_resumed(device, place)
        print("resumed:", found["resumed"], flush=True)
        torch.set_float32_matmul_precision("highest")
        found["torchrun_loss"] = train_by_torchrun(device, place / "torchrun")
        print("torchrun:", found["torchrun_loss"], flush=True)
        found["tensorboard"] = any(place.glob("whole/tensorboard/*"))


# Steps --------------------------------------------------------------------------------


def write_tokens(folder, tokenizer, n=2**21):
    """Write random tokens into `folder`, as `gpt2lib.data` writes those of a text."""
    tokenizer.save(folder)
    draw = np.random.default_rng(0)
    for name in ("train", "validation"):
        ids = draw.integers(tokenizer.vocab_size, size=n).astype("<u2")
        ids.tofile(folder / f"{name}.bin")
    content = {"train": n, "validation": n, "sha256": "random"}
    (folder / "tokens.json").write_text(json.dumps(content))
    return folder


def step_config(amount, data, out, **changes):
    """Return the settings of `gpt2-124m`, at the size of `amount`."""
    c = amount["config"]
    sizes = {"n_layer": c.n_layer, "n_head": c.n_head, "n_embd": c.n_embd}
    sizes |= {"block_size": c.block_size, "batch_size": amount["texts"]}
    places = {"data": str(data), "out": str(out)}
    return TrainConfig.preset("gpt2-124m", **sizes | places | changes)


def our_steps(config, device):
    """Return a function that trains `n` steps as `gpt2lib.train` does, but for its log.

    It returns the last loss.
    """
    run = trainer._start(config, trainer._Place(0, 1, device), None, False)
    batches, done, losses = trainer._batches(run), 0, {}

    def work(n):
        nonlocal done
        fit(
            batches,
            lambda batch: trainer._loss(run, batch),
            run.optimizers,
            n_steps=done + n,
            first_step=done,
            before_step=lambda step: trainer._before_update(run, step),
            after_step=losses.__setitem__,
        )
        done += n
        return losses[done - 1]

    return work


def other_steps(side, config, amount, device):
    """Return the same for another model: autocast, clipping, the fused AdamW."""
    torch.manual_seed(0)
    if side == NANO:
        model = PlainGPT(amount["config"]).to(device)
    else:
        theirs = import_transformers()
        c = amount["config"]
        sizes = {"n_layer": c.n_layer, "n_head": c.n_head, "n_embd": c.n_embd}
        sizes["vocab_size"] = c.vocab_size
        dropouts = dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), 0.0)
        sizes |= dropouts | {"n_positions": c.block_size, "use_cache": False}
        theirs_config = theirs.GPT2Config(**sizes, attn_implementation="sdpa")
        model = theirs.GPT2LMHeadModel(theirs_config).to(device)
    worker = model.train() if EAGER in side else torch.compile(model.train())
    optimizer = torch.optim.AdamW(
        model.parameters(), config.learning_rate, betas=(0.9, 0.95), fused=True
    )
    tokens, step = load_corpus(config.data).train, 0

    def batch():
        texts = trainer.texts_at(tokens, config, step)
        if device.type == "cuda":
            texts = texts.pin_memory()
        return texts.to(device, non_blocking=True)

    def loss_of(texts):
        with torch.autocast(device.type, torch.bfloat16):
            if side == NANO:
                return worker(texts[:, :-1], texts[:, 1:])
            return worker(texts[:, :-1], labels=texts[:, :-1]).loss

    def work(n):
        nonlocal step
        for _ in range(n):
            optimizer.zero_grad()
            loss = loss_of(batch())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            step += 1
        return loss.detach()

    return work


def make_steps(side, config, amount, device):
    """Return a function that trains a side's model `n` steps; see `our_steps`."""
    if side.startswith(OURS):
        return our_steps(replace(config, compile=EAGER not in side), device)
    return other_steps(side, config, amount, device)


def matrix_rate(size, device):
    """Return the rate, in FLOP/s, of large bfloat16 matrix products."""
    kind = {"dtype": torch.bfloat16, "device": device}
    a, b = torch.randn(size, size, **kind), torch.randn(size, size, **kind)
    return 2 * size**3 * 5 / clocked(lambda: [a @ b for _ in range(5)], device)


def held(device):
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


class Timed:
    """Steps of one side, their first losses, their times and the memory they take."""

    def __init__(self, work, n_steps, device):
        self.work, self.n_steps, self.device, self.peak = work, n_steps, device, 0

    def warm_up(self):
        """Compile and settle; return the seconds that it took, keep the first loss."""
        start, before = time.perf_counter(), held(self.device)
        self.first_loss = self.work(1).item()
        self.work(3)
        wait(self.device)
        self.kept = held(self.device) - before
        return time.perf_counter() - start

    def __call__(self):
        """Return the seconds of one step, the mean of some."""
        on_gpu, before = self.device.type == "cuda", held(self.device)
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(self.device)
        seconds = clocked(lambda: self.work(self.n_steps), self.device) / self.n_steps
        if on_gpu:
            peak = torch.cuda.max_memory_allocated(self.device)
            self.peak = max(self.peak, self.kept + peak - before)
        return seconds


def measure_large(found, config, amount, device):
    """Add what a step of as many texts as the preset gives to each of eight GPUs takes.

    Where memory is not enough, that is the result.
    """
    large = replace(config, batch_size=amount["large"], out=config.out + "-large")
    try:
        before = held(device)
        timed = Timed(our_steps(large, device), 2, device)
        timed.kept = 0
        timed.warm_up()
        timed.kept = held(device) - before  # with weights and averages
        seconds = [timed() for _ in range(3)]
    except torch.OutOfMemoryError as error:
        found["large"] = {"texts": amount["large"], "error": str(error).split(".")[0]}
    else:
        found["large"] = {
            "texts": amount["large"],
            "seconds": seconds,
            "peak_memory_bytes": timed.peak,
        }
    print("large:", found["large"], flush=True)


def add_step_results(found, amount, timed, times):
    """Add to `found` what follows from `times`, seconds of a step by side."""
    config = amount["config"]
    n_tokens = amount["texts"] * config.block_size
    flops = 3 * amount["texts"] * sum(flops_by_part(config).values())
    median = {side: statistics.median(values) for side, values in times.items()}
    rate = found["matrix_flops_per_second"]
    found |= {
        "config": asdict(config),
        "texts": amount["texts"],
        "rounds": amount["rounds"],
        "flops": flops,
        "seconds": times,
        "tokens_per_second": {side: n_tokens / s for side, s in median.items()},
        "share_of_matrix_rate": {s: flops / t / rate for s, t in median.items()},
        "share_of_data_sheet": {s: flops / t / DATA_SHEET for s, t in median.items()},
        "times_faster_than": {
            side: times_faster(times[OURS], than=times[side])
            for side in times
            if side != OURS and OURS in times
        },
        "first_loss": {side: one.first_loss for side, one in timed.items()},
        "peak_memory_bytes": {side: one.peak for side, one in timed.items()},
    }
    return found


def measure_step(found, amount, device, sides=SIDES):
    torch.set_float32_matmul_precision("high")  # as the command does on a GPU
    with tempfile.TemporaryDirectory() as place:
        data = write_tokens(Path(place, "tokens"), amount["tokenizer"]())
        timed, found["warm_up_seconds"] = {}, {}
        for n, side in enumerate(sides):
            config = step_config(amount, data, Path(place, str(n)))
            before = held(device)
            one = Timed(
                make_steps(side, config, amount, device), amount["steps"], device
            )
            weights = held(device) - before
            found["warm_up_seconds"][side] = one.warm_up()
            one.kept += weights
            timed[side] = one
            print(
                f"{side}: ready in {found['warm_up_seconds'][side]:.1f} s", flush=True
            )
        for side, one in timed.items():
            if abs(one.first_loss - math.log(amount["config"].vocab_size)) > 0.5:
                raise AssertionError(f"{side}: first loss {one.first_loss}")
        rates = "rate"
        timers = timed | {rates: lambda: matrix_rate(amount["matrix"], device)}
        times = take_turns(timers, amount["rounds"])
        found["matrix_flops_per_second"] = max(times.pop(rates))
        found.update(add_step_results(dict(found), amount, timed, times))
        for side, speed in found["tokens_per_second"].items():
            print(
                f"{side}: {speed:,.0f} tokens/s, "
                f"{found['share_of_data_sheet'][side]:.1%} of the data sheet, "
                f"{found['share_of_matrix_rate'][side]:.1%} of the rate, "
                f"{found['peak_memory_bytes'][side] / 2**30:.1f} GiB",
                flush=True,
            )
        timers.clear()
        timed.clear()
        one = None  # the last of them
        forget(device)
        measure_large(
            found, step_config(amount, data, Path(place, "l")), amount, device
        )
    torch.set_float32_matmul_precision("highest")


# Generation ---------------------------------------------------------------------------


def writers(folder, device):
    """Return {side: a function for `time_tokens`}, for each model and precision."""
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        ours = GPT2LMHeadModel.from_pretrained(folder).to(device, dtype)
        theirs = load_theirs(folder, device).to(dtype).eval()
        words = str(dtype).removeprefix("torch.")

        def our_work(prompt, n_new, mark, model=ours):
            for token in generate_stream(model, prompt, n_new, greedy=True):
                mark(token.item())  # waits for the GPU

        found[f"{OURS}, {words}"] = our_work
        found[f"{THEIRS}, {words}"] = partial(write_theirs, theirs)
    return found


def copy_rate(device, n_bytes=2**31):
    """Return the bytes a second, read and written, of a copy on the device."""
    if device.type == "cpu":
        n_bytes = 2**24
    a = torch.randn(n_bytes // 4, device=device)
    b = torch.empty_like(a)
    b.copy_(a)
    return 2 * n_bytes / min(clocked(lambda: b.copy_(a), device) for _ in range(10))


def measure_generation(found, amount, device):
    torch.set_float32_matmul_precision("highest")
    config, n_new = amount["config"], amount["new"]
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        GPT2LMHeadModel(config).save_pretrained(folder)
        sides = writers(folder, device)
    prompt = torch.randint(config.vocab_size, (1, amount["prompt"])).to(device)
    timers = {
        side: lambda work=work: time_tokens(work, prompt, n_new)
        for side, work in sides.items()
    }
    times = take_turns(timers, amount["rounds"])
    tokens = {side: found[0]["tokens"] for side, found in times.items()}
    others = {side: [turn["others"] for turn in times[side]] for side in sides}
    first = {side: [turn["first"] for turn in times[side]] for side in sides}
    rate = copy_rate(device)
    length = amount["prompt"] + n_new / 2
    read = sum(bytes_read(config, OURS, length).values())  # in float32
    found |= {
        "config": asdict(config),
        "prompt_tokens": amount["prompt"],
        "new_tokens": n_new,
        "rounds": amount["rounds"],
        "seconds_for_the_others": others,
        "seconds_to_first_token": first,
        "tokens_per_second": {
            side: (n_new - 1) / statistics.median(others[side]) for side in sides
        },
        "copy_bytes_per_second": rate,
        "limit_tokens_per_second": {
            "float32": rate / read,
            "bfloat16": 2 * rate / read,
        },
        "times_faster": {},
        "tokens_in_common": {},
    }
    for words in ("float32", "bfloat16"):
        ours, theirs = f"{OURS}, {words}", f"{THEIRS}, {words}"
        found["times_faster"][words] = times_faster(others[ours], than=others[theirs])
        found["tokens_in_common"][words] = in_common(tokens[ours], tokens[theirs])
    print({side: round(v) for side, v in found["tokens_per_second"].items()})
    print(found["times_faster"], found["tokens_in_common"], flush=True)


# A whole run --------------------------------------------------------------------------


def measure_run(found, amount, device, *options):
    """Train by the command in a process of its own, for `run_seconds` at most."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "run")
        command = [sys.executable, "-m", "gpt2lib.train", "--preset", "shakespeare-gpu"]
        command += ["--device", device.type, "--out", str(folder)]
        command += [*options, *amount["run"].split()]
        start = time.perf_counter()
        try:
            subprocess.run(command, check=True, timeout=amount["run_seconds"])
        except subprocess.TimeoutExpired:
            found["stopped_after_seconds"] = amount["run_seconds"]
        finally:
            found["wall_seconds"] = time.perf_counter() - start
            if (folder / "card.json").exists():
                read_run(found, folder)
    print(found["curve"], f"{found['wall_seconds']:.0f} s in all", flush=True)


def measure_long_run(found, amount, device):
    measure_run(found, amount, device, "--n-steps", "5000")


def read_run(found, folder):
    """Add what the run in `folder` has logged so far."""
    card = json.loads((folder / "card.json").read_text())
    with open(folder / "log.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    settled = rows[len(rows) // 10 :]  # the first steps compile
    seconds = float(settled[-1]["seconds"]) - float(settled[0]["seconds"])
    settings = card["settings"]
    n_tokens = (len(settled) - 1) * settings["batch_size"] * settings["block_size"]
    curve = [
        [int(r["step"]) + 1, float(r["seconds"]), float(r["validation_loss"])]
        for r in rows
        if r["validation_loss"]
    ]
    kept = ("command", "parameters", "machine", "torch", "date")
    found |= {name: card[name] for name in kept}
    found |= {
        "steps": len(rows),
        "seconds": float(rows[-1]["seconds"]),
        "seconds_per_step": seconds / max(1, len(settled) - 1),
        "tokens_per_second": n_tokens / max(seconds, 1e-9),
        "best": min(curve, key=lambda point: point[2]),
        "curve": curve,  # step, seconds, validation loss
    }


# All ----------------------------------------------------------------------------------

PARTS = {
    "agreement": measure_agreement,
    "step": measure_step,
    "generation": measure_generation,
    "run": measure_run,
    "long_run": measure_long_run,
}


def describe(device):
    """Return what the numbers were measured on."""
    versions = {"transformers": import_transformers().__version__}
    if device.type == "cuda":
        versions["gpu"] = torch.cuda.get_device_name(device)
        versions["cuda"] = torch.version.cuda
    return describe_machine(**versions)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="*", default=list(PARTS), choices=PARTS)
    parser.add_argument("--quick", action="store_true", help="tiny models, few steps")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--run-seconds", type=int, default=300, help="at most, each")
    default = HERE / "results" / "gpu.json"
    parser.add_argument("--out", type=Path, default=default)
    args = parser.parse_args()
    device = torch.device(args.device, 0 if args.device == "cuda" else None)
    amount = (QUICK if args.quick else FULL) | {"run_seconds": args.run_seconds}
    results, failed = {}, []
    if args.out.is_file():
        results = json.loads(args.out.read_text())
    results["machine"] = describe(device)
    results["command"] = "python benchmarks/gpu.py"
    for name in args.parts:
        results[name] = found = {}
        start = time.perf_counter()
        forget(device)
        try:
            PARTS[name](found, amount, device)
        except Exception:
            traceback.print_exc()
            failed.append(name)
        print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)
        args.out.write_text(json.dumps(results, indent=1) + "\n")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
