"""Time the generation of text beside `transformers`, or beside `litgpt`.

    python benchmarks/generation.py
    python benchmarks/generation.py --peer litgpt --python /path/to/its/python
    python benchmarks/generation.py --rounds 6 --cases tiny --out /dev/null

Each side has a process of its own. All load one checkpoint of random weights, continue
the same prompts, greedily, one text at a time, and the program stops if their tokens
differ by more than rounding explains. They take turns, see `side_by_side.py`, which are
timed token by token: the first, which reads the prompt, apart from the others.

To write a token, a CPU reads all weights and what the cache holds. So this machine's
rate of reading, measured in the same run, sets a limit. Results go to `results/`.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, replace
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
    time_tokens,
    times_faster,
    with_rounds,
)

from gpt2lib.config import GPT2Config, parameters_by_part
from gpt2lib.language_model import GPT2LMHeadModel
from gpt2lib.quantize import quantize_int8
from gpt2lib.sampling import generate_stream

HERE = Path(__file__).resolve().parent
GPT2 = GPT2Config(dropout=0.0)
TINY = GPT2Config(1, 1, 8, vocab_size=11, block_size=16, dropout=0.0)

OURS, THEIRS, LITGPT = "gpt2lib", "transformers", "litgpt"
INT8, NO_CACHE, ROTARY = f"{OURS}, int8", f"{OURS}, no cache", f"{OURS}, rotary"
TURNED = (ROTARY, LITGPT)  # litgpt has no learned positions
SAME_MODEL = {THEIRS: OURS, INT8: OURS, NO_CACHE: OURS, LITGPT: ROTARY}
ROUNDING = 1e-4  # logits that differ by less may change places

# name: configuration, tokens of the prompt, new tokens, share of the rounds, sides.
# The last of the sides is the one that the others are compared with.
CASES = {
    "after 64": (GPT2, 64, 128, 1, (OURS, INT8, THEIRS)),
    "after 512": (GPT2, 512, 128, 1, (OURS, INT8, THEIRS)),
    "no cache, after 64": (GPT2, 64, 8, 1 / 3, (OURS, NO_CACHE)),
    "no cache, after 512": (GPT2, 512, 8, 1 / 3, (OURS, NO_CACHE)),
    "tiny": (TINY, 5, 4, 1, (OURS, INT8, NO_CACHE, THEIRS)),
}
PEER_CASES = {
    "after 64": (GPT2, 64, 128, 1, (OURS, ROTARY, LITGPT)),
    "after 512": (GPT2, 512, 128, 1, (OURS, ROTARY, LITGPT)),
    "tiny": (TINY, 5, 4, 1, (OURS, ROTARY, LITGPT)),
}


def our_work(side, folder):
    model = GPT2LMHeadModel.from_pretrained(folder)
    if side == INT8:
        model = quantize_int8(model)

    def work(prompt, n_new, mark):
        options = {"greedy": True, "use_cache": side != NO_CACHE}
        for token in generate_stream(model, prompt, n_new, **options):
            mark(token)

    return work


class Streamer:
    """What `transformers` hands each token to, the prompt first."""

    def __init__(self, mark):
        self.mark, self.prompt_came = mark, False

    def put(self, value):
        if self.prompt_came:
            self.mark(value)
        self.prompt_came = True

    def end(self):
        pass


def write_theirs(model, prompt, n_new, mark):
    """Let a model of `transformers` write greedily; `mark` gets each token."""
    model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        do_sample=False,
        max_new_tokens=n_new,
        streamer=Streamer(mark),
    )


def their_work(folder):
    model = import_transformers().GPT2LMHeadModel.from_pretrained(
        folder, attn_implementation="sdpa"
    )
    model.generation_config.eos_token_id = None  # no token ends a text: ours knows none
    return partial(write_theirs, model)


def prepare(side, folder):
    """Return what answers for `side`: it continues a prompt and says how long it took.

    A request is the prompt's tokens and how many new ones are wanted.
    """
    work = their_work(folder) if side == THEIRS else our_work(side, folder)
    return lambda request: time_tokens(work, torch.tensor([request[0]]), request[1])


def start(side, folder, python):
    """Start the process of `side`, which `python` runs if it is a guest."""
    folder = Path(folder, "rotary" if side in TURNED else "learned")
    if side == LITGPT:
        return Side([python, HERE / "litgpt_side.py", folder])
    return Side([sys.executable, __file__, "--serve", side, folder])


def save_checkpoints(config, sides, folder):
    """Write random weights into `folder`, for either kind of positions that is used."""
    for position in {"rotary" if side in TURNED else "learned" for side in sides}:
        torch.manual_seed(0)
        model = GPT2LMHeadModel(replace(config, position=position))
        model.save_pretrained(Path(folder, position))


def in_common(one, other):
    """Return how many tokens two lists have in common before they part."""
    pairs = enumerate(zip(one, other, strict=True))
    return next((n for n, (a, b) in pairs if a != b), len(one))


def check_tokens(tokens, prompt, folder):
    """Return {side: how many of the first tokens are those of the same model's}.

    Raises `AssertionError` where two sides part although one token was clearly the more
    probable. Rounded weights may part.
    """
    agreed = {}
    for side, wanted in SAME_MODEL.items():
        if side not in tokens:
            continue
        n = agreed[side] = in_common(tokens[side], tokens[wanted])
        if n == len(tokens[side]) or side == INT8:
            continue
        model = GPT2LMHeadModel.from_pretrained(
            Path(folder, "rotary" if side in TURNED else "learned")
        )
        text = torch.tensor([prompt + tokens[wanted][:n]])
        with torch.no_grad():
            logits = model(text, last_only=True)[0, 0]  # (V,)
        gap = logits[tokens[wanted][n]] - logits[tokens[side][n]]
        if abs(gap) > ROUNDING:
            raise AssertionError(f"{side} parts from {wanted} at {n}, gap {gap:.2g}")
    return agreed


def bytes_read(config, side, length):
    """Return the bytes that `side` must read to write one token, by what they are.

    Each weight once: the token embedding as the head, of the table of positions one
    row, which is left out as nothing beside them. Of the cache the keys and values of
    `length` positions.
    """
    parts = parameters_by_part(config)
    C, N, V = config.n_embd, config.n_layer, config.vocab_size
    weights = sum(parts.values()) - parts["position embedding"]
    if side == INT8:
        matrices, outputs = N * 12 * C * C + V * C, N * 9 * C + V
        weights = {
            "weights of eight bits": matrices,
            "their scales": 4 * outputs,
            "other weights": 4 * (weights - matrices),
        }
    else:
        weights = {"weights": 4 * weights}
    return weights | {"cache": int(4 * 2 * N * C * length)}


def make_reader(megabytes=256):
    """Return a function that measures the bytes a second that both threads can read.

    Far more bytes than any cache holds, so they come from memory; the best of three
    passes.
    """
    numbers = torch.ones(megabytes * 2**20 // 4)  # float32
    return lambda: numbers.nbytes / min(seconds(numbers.sum, 1) for _ in range(3))


def measure(case, rounds, folder, python):
    """Return what was measured of one case; `add_limit` does the rest."""
    config, n_prompt, n_new, _, sides = case
    save_checkpoints(config, sides, folder)
    torch.manual_seed(0)
    prompt = torch.randint(config.vocab_size, (n_prompt,)).tolist()
    running = {name: start(name, folder, python) for name in sides}
    request = prompt, n_new
    tokens = {name: side.ask(request)["tokens"] for name, side in running.items()}
    agreed = check_tokens(tokens, prompt, folder)
    timers = {name: partial(side.ask, request) for name, side in running.items()}
    times = take_turns(timers | {"reading": make_reader()}, rounds)
    reading = times.pop("reading")
    first = {side: [turn["first"] for turn in times[side]] for side in sides}
    others = {side: [turn["others"] for turn in times[side]] for side in sides}
    beside = sides[-1]
    return {
        "config": asdict(config),
        "prompt_tokens": n_prompt,
        "new_tokens": n_new,
        "rounds": rounds,
        "tokens_in_common": agreed,
        "seconds_to_first_token": first,
        "seconds_for_the_others": others,
        "tokens_per_second": {
            side: (n_new - 1) / statistics.median(others[side]) for side in sides
        },
        "beside": beside,
        "times_faster": {
            side: times_faster(others[side], than=others[beside]) for side in sides[:-1]
        },
        "first_token_times_faster": {
            side: times_faster(first[side], than=first[beside]) for side in sides[:-1]
        },
        "read_bytes_per_second": reading,
        "peak_memory_bytes": {name: side.ask(None) for name, side in running.items()},
    }


def add_limit(case, rate):
    """Add to what was measured of a case the limit that `rate` of reading sets."""
    config = GPT2Config(**case["config"])
    length = case["prompt_tokens"] + case["new_tokens"] / 2  # read, on average
    speeds = case["tokens_per_second"]
    sides = [side for side in speeds if side != NO_CACHE]  # that one is held up by work
    read = {side: bytes_read(config, side, length) for side in sides}
    limits = {side: rate / sum(read[side].values()) for side in sides}
    case["bytes_read_per_token"] = read
    case["limit_tokens_per_second"] = limits
    case["share_of_limit"] = {side: speeds[side] / limits[side] for side in sides}


def versions(python):
    """Return the versions of the guest's packages."""
    program = (
        "from importlib.metadata import version as v; print(v('litgpt'), v('torch'))"
    )
    command = [python, "-c", program]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return dict(zip((LITGPT, "litgpt_torch"), output.split(), strict=True))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_rounds(parser)
    parser.add_argument(
        "--cases", nargs="*", choices=CASES, help="default: all but tiny"
    )
    parser.add_argument("--peer", choices=[LITGPT], help="beside this, in place of it")
    parser.add_argument("--python", help="the interpreter that has the peer")
    parser.add_argument("--out", type=Path, help="default: in results/")
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if bool(args.peer) != bool(args.python):
        parser.error("--peer and --python go together")
    transformers = import_transformers()
    if args.serve:
        return serve(prepare, *args.serve)
    cases = PEER_CASES if args.peer else CASES
    name = f"generation_{args.peer}.json" if args.peer else "generation.json"
    words = f" --peer {args.peer} --python /path/to/its/python" if args.peer else ""
    guest = versions(args.python) if args.peer else {}
    guest = guest or {THEIRS: transformers.__version__}
    results = {
        "machine": describe_machine(**guest),
        "command": with_rounds(f"python benchmarks/generation.py{words}", args.rounds),
        "settings": {"dtype": "float32", "batch_size": 1, "greedy": True},
        "cases": {},
    }
    for name_of_case in args.cases or [case for case in cases if case != "tiny"]:
        case = cases[name_of_case]
        rounds = max(6, round(args.rounds * case[3]))
        with tempfile.TemporaryDirectory() as folder:
            measured = measure(case, rounds, folder, args.python)
        results["cases"][name_of_case] = measured
        for side, (ratio, low, high) in measured["times_faster"].items():
            first = measured["first_token_times_faster"][side][0]
            print(
                f"{name_of_case}: {side} {ratio:.3f} x {measured['beside']} "
                f"[{low:.3f}, {high:.3f}], first token {first:.3f} x"
            )
    rate = max(max(c["read_bytes_per_second"]) for c in results["cases"].values())
    results["best_read_bytes_per_second"] = rate
    for name_of_case, measured in results["cases"].items():
        add_limit(measured, rate)
        for side, speed in measured["tokens_per_second"].items():
            share = measured["share_of_limit"].get(side, float("nan"))
            print(
                f"{name_of_case}: {side} {speed:.1f} tokens/s, {share:.0%} of the limit"
            )
    out = args.out or HERE / "results" / name
    out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
