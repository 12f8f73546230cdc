"""Train by nanoGPT's recipe and by ours, and take our ingredients back one by one.

    python benchmarks/training.py               about fifty minutes on two cores
    python benchmarks/training.py --n-steps 40 --seeds 1 --out /dev/null    a quick look

Every run is the training command in a process of its own; they follow one another.
nanoGPT's recipe and the preset `shakespeare-cpu` run as they are, and our recipe once
more, planned for 40 % of its steps. Each variant lacks one ingredient and has as many
steps as fit into the time of our runs. Time counts training alone, without evaluations
and saves; losses are over the whole validation split. Results go to `results/`.
"""

import argparse
import csv
import json
import shlex
import statistics
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from side_by_side import describe_machine

from gpt2lib.train import TrainConfig, _command

HERE = Path(__file__).resolve().parent
YARDSTICK, OURS, SHORT = "nanogpt-cpu", "shakespeare-cpu", "in 40 % of the steps"
WITHOUT = {  # ingredient: nanoGPT's choice in its place
    "rate of 0.004": {"learning_rate": 1e-3},
    "window of 128": {"block_size": 64, "batch_size": 24},  # as many tokens a step
    "rotary positions": {"position": "learned"},
    "Muon": {"muon_rate": 0.0},
}
QUIET = {"sample_tokens": 0, "save_every": 10**6, "device": "cpu"}


def run(config):
    """Train by the command in a process of its own; return what it measured."""
    with tempfile.TemporaryDirectory() as folder:
        words = shlex.split(_command(config))[1:]
        command = [sys.executable, *words, "--out", folder]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        card = json.loads((Path(folder) / "card.json").read_text())
        with open(Path(folder) / "log.csv", newline="") as file:
            rows = list(csv.DictReader(file))
    curve = [
        [int(r["step"]) + 1, float(r["seconds"]), float(r["validation_loss"])]
        for r in rows
        if r["validation_loss"]
    ]
    settled = rows[len(rows) // 4 :]  # the first steps are slow
    seconds = float(settled[-1]["seconds"]) - float(settled[0]["seconds"])
    print(
        f"{curve[-1][2]:.4f} after {curve[-1][1]:.0f} s: {card['command']}", flush=True
    )
    return {
        "command": card["command"],
        "parameters": card["parameters"],
        "seed": config.seed,
        "steps": config.n_steps,
        "seconds": curve[-1][1],
        "seconds_per_step": seconds / max(1, len(settled) - 1),
        "validation_loss": curve[-1][2],
        "curve": curve,  # step, seconds, validation loss
    }


def run_seeds(preset, seeds, n_evaluations, **changes):
    """Run a preset with some settings changed, once for each seed."""
    config = TrainConfig.preset(preset, **QUIET | changes)
    config = replace(config, eval_every=max(1, config.n_steps // n_evaluations))
    return [run(replace(config, seed=seed)) for seed in range(seeds)]


def steps_in(seconds, changes, n_steps):
    """Return how many steps of our recipe, changed, fit into `seconds`."""
    changes = QUIET | changes | {"n_steps": n_steps, "warm_up": 0, "eval_tokens": 1}
    trial = run(TrainConfig.preset(OURS, **changes))
    return max(1, round(seconds / trial["seconds_per_step"]))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3, help="default: 3")
    parser.add_argument("--n-steps", type=int, help="of all runs, for a quick look")
    default = HERE / "results" / "training.json"
    parser.add_argument("--out", type=Path, default=default)
    args = parser.parse_args()

    few = {"n_steps": args.n_steps, "warm_up": 0} if args.n_steps else {}
    runs = {YARDSTICK: run_seeds(YARDSTICK, args.seeds, 5, **few)}
    runs[OURS] = run_seeds(OURS, args.seeds, 14, **few)
    n_steps = runs[OURS][0]["steps"]
    short = {"n_steps": max(1, n_steps * 2 // 5)} | ({"warm_up": 0} if few else {})
    runs[SHORT] = run_seeds(OURS, args.seeds, 1, **short)
    seconds = statistics.median(result["seconds"] for result in runs[OURS])
    for ingredient, changes in WITHOUT.items():
        fitting = steps_in(seconds, changes, n_steps=max(40, n_steps // 10))
        changes = few | changes | {"n_steps": fitting}
        runs[f"without {ingredient}"] = run_seeds(OURS, args.seeds, 3, **changes)
    command = "python benchmarks/training.py"
    results = {"machine": describe_machine(), "command": command, "runs": runs}
    args.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
