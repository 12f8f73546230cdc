"""What the benchmarks share: sides that take turns, each in a process of its own.

Sides of one comparison are asked one after the other, in an order that changes from
round to round, so that whatever else the machine does falls on all of them. Reported is
the median over rounds of the ratio of two times from the same round, with its 95 %
interval. Needs Linux.
"""

import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from datetime import date
from math import comb
from pathlib import Path

import torch


def seconds(work, repetitions):
    start = time.perf_counter()
    for _ in range(repetitions):
        work()
    return (time.perf_counter() - start) / repetitions


def time_tokens(work, prompt, n_new):
    """Return the new tokens that `work` makes, and the seconds that they took.

    `work(prompt, n_new, mark)` must call `mark(token)` for each as soon as it is there.
    Returns `tokens`, seconds to the `first` and from there to the last, the `others`.
    """
    tokens, times = [], []

    def mark(token):
        times.append(time.perf_counter())
        tokens.append(token)

    start = time.perf_counter()
    work(prompt, n_new, mark)
    if len(tokens) != n_new:
        raise AssertionError(f"{n_new} tokens were asked for, {len(tokens)} came")
    return {
        "tokens": [int(token) for token in tokens],
        "first": times[0] - start,
        "others": times[-1] - times[0],
    }


def resident(field):
    """Return this process's resident memory in bytes: "VmRSS" now, "VmHWM" at most."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{field}:\s+(\d+) kB", status)[1]) * 1024


class Side:
    """The process of one side, started by `command`. It rests unless it is asked."""

    def __init__(self, command):
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)

    def ask(self, request):
        """Return the answer to `request`; for None the peak of memory, then it ends."""
        time.sleep(0.02)  # until the threads of whoever worked before are at rest
        print(json.dumps(request), file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            raise ChildProcessError(f"no answer from {self.process.args}")
        return json.loads(answer)


def serve(prepare, *arguments):
    """Be a side: make `answer = prepare(*arguments)`, then answer each request.

    A request is a line of JSON, and so is its answer. None asks for the peak of memory:
    of what `prepare` left and of the work, without imports and without loading.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    before = resident("VmRSS")
    answer = prepare(*arguments)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    for request in map(json.loads, sys.stdin):
        done = request is None
        result = resident("VmHWM") - before if done else answer(request)
        print(json.dumps(result), file=answers, flush=True)
        if done:
            break


def import_transformers():
    """Import `transformers` whole and quiet; by every side, so that it counts for none.

    Returns the module.
    """
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    transformers.GPT2LMHeadModel  # noqa: B018  it is imported on first use
    return transformers


def take_turns(timers, rounds):
    """Return {side: what its timer returned in each round}, after one call to warm up.

    Every side is timed once a round.
    """
    times = {side: [] for side in timers}
    for timer in timers.values():
        timer()
    sides = list(timers)
    for turn in range(rounds):
        first = turn % len(sides)
        for side in sides[first:] + sides[:first]:
            times[side].append(timers[side]())
    return times


def median_and_interval(values):
    """Return the median and the order statistics that hold it with 95 % confidence."""
    ordered, n = sorted(values), len(values)
    cut, tail = 0, 0.5**n  # chance that at most `cut` values lie below the median
    while tail + comb(n, cut + 1) * 0.5**n <= 0.025:
        cut += 1
        tail += comb(n, cut) * 0.5**n
    return statistics.median(ordered), ordered[cut], ordered[n - 1 - cut]


def times_faster(times, than):
    """Return `median_and_interval` of the ratios `than` / `times`, round by round."""
    return median_and_interval([b / a for a, b in zip(times, than, strict=True)])


ROUNDS = 21


def with_rounds(command, rounds):
    """Return the command that times each side so often."""
    return command if rounds == ROUNDS else f"{command} --rounds {rounds}"


def add_rounds(parser):
    """Give `parser` the option that says how often each side is timed."""

    def rounds(text):
        if int(text) < 6:
            raise ValueError("fewer give no 95 % interval")
        return int(text)

    rounds.__name__ = "number from 6 on"  # as the parser's complaint says it
    parser.add_argument(
        "--rounds", type=rounds, default=ROUNDS, help=f"default: {ROUNDS}"
    )


def describe_machine(**versions):
    """Return what the numbers were measured on, and `versions` of the other sides."""
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return {
        "cpu": cpu[1] if cpu else platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        **versions,
        "date": date.today().isoformat(),
    }
