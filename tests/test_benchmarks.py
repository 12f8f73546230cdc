"""The benchmarks' arithmetic, and that the book says what was measured."""

import json
import math
import random
import statistics
import subprocess
import sys
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

import forward_and_step as bench
import generation
import gpu
import nanogpt_side
import report
import report_training
import side_by_side
import training

from gpt2lib.config import GPT2Config
from gpt2lib.language_model import GPT2LMHeadModel
from gpt2lib.quantize import Int8Linear, quantize_int8
from gpt2lib.train import TRAIN_PRESETS, TrainConfig, train

CPU = torch.device("cpu")
GENERATIONS = {
    "generation": [name for name in generation.CASES if name != "tiny"],
    "generation_litgpt": [name for name in generation.PEER_CASES if name != "tiny"],
}


@pytest.fixture(scope="module")
def results():
    return report.read("forward_and_step")


# What the benchmarks share ------------------------------------------------------------


def test_interval_holds_the_median_as_often_as_it_says():
    rng, held = random.Random(0), 0
    for _ in range(2000):
        values = [rng.random() for _ in range(15)]
        _, low, high = side_by_side.median_and_interval(values)
        held += low <= 0.5 <= high
    assert 0.95 <= held / 2000 <= 0.98


@pytest.mark.parametrize("n", [6, 15, 21, 40])
def test_interval_is_of_order_statistics(n):
    median, low, high = side_by_side.median_and_interval(range(n))
    assert median == (n - 1) / 2
    assert low + high == n - 1
    assert 0 <= low < median < high


def test_times_faster_compares_times_of_one_round():
    ours, theirs = [1.0, 10.0] * 10, [2.0, 20.0] * 10
    assert side_by_side.times_faster(ours, than=theirs) == (2, 2, 2)


def test_sides_take_turns():
    calls = []

    def timer(name):
        calls.append(name)
        return len(calls)

    timers = {name: partial(timer, name) for name in "ab"}
    times = side_by_side.take_turns(timers, rounds=4)
    assert "".join(calls) == "ab" + "ab" + "ba" + "ab" + "ba"
    assert times == {"a": [3, 6, 7, 10], "b": [4, 5, 8, 9]}


def test_a_side_answers_and_says_its_peak():
    program = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'benchmarks')!r})\n"
        "from side_by_side import serve\n"
        "def prepare(more):\n"
        "    print('a library that talks')\n"
        "    def answer(request):\n"
        "        b'x' * (request * 2**20)\n"
        "        return request + int(more)\n"
        "    return answer\n"
        "serve(prepare, '1')"
    )
    side = side_by_side.Side([sys.executable, "-c", program])
    assert [side.ask(30), side.ask(60)] == [31, 61]
    assert 59 <= side.ask(None) / 2**20 < 120
    with pytest.raises((ChildProcessError, BrokenPipeError)):
        side.ask(1)


def test_tokens_are_timed_as_they_come():
    def work(prompt, n_new, mark):
        for token in range(prompt, prompt + n_new):
            mark(torch.tensor([token]))

    timed = side_by_side.time_tokens(work, 7, 3)
    assert timed["tokens"] == [7, 8, 9]
    assert min(timed["first"], timed["others"]) > 0
    with pytest.raises(AssertionError, match="4 tokens were asked for, 3 came"):
        side_by_side.time_tokens(lambda *args: work(7, 3, args[2]), 7, 4)


# Forward pass and training step -------------------------------------------------------


def test_sides_that_disagree_are_not_compared():
    with pytest.raises(AssertionError, match=bench.THEIRS):
        bench.check_equal({bench.OURS: [1.0, 2.0], bench.THEIRS: [1.0, 2.001]})


class Here:
    """In place of a side's process: the same answers, from this one."""

    def __init__(self, prepare, command):
        self.answer = prepare(*command[command.index("--serve") + 1 :])

    def ask(self, request):
        request = json.loads(json.dumps(request))
        return 1 if request is None else json.loads(json.dumps(self.answer(request)))


@pytest.fixture(
    params=["here", pytest.param("in processes", marks=pytest.mark.slow)]  # 35 s of CPU
)
def dry_run(request, tmp_path, monkeypatch):
    """Return a function that runs a benchmark of a tiny model, and its results."""
    out = tmp_path / "out.json"
    words = ["--cases", "tiny", "--rounds", "6", "--out", str(out)]

    def run(program):
        command = [sys.executable, program.__file__, *words]
        if request.param == "here":
            monkeypatch.setattr(program, "Side", partial(Here, program.prepare))
            monkeypatch.setattr(sys, "argv", command[1:])
            program.main()
        else:
            subprocess.run(command, check=True, capture_output=True)
        return json.loads(out.read_text())

    if request.param == "here":  # what only a process of its own can tell or bear
        monkeypatch.setattr(bench, "import_cost", lambda rounds: 0.1)
        monkeypatch.setattr(bench, "keep_freed_memory", lambda: None)
    return run


def test_a_dry_run_measures_every_side(dry_run):
    case = dry_run(bench)["cases"]["tiny"]
    sides = {bench.OURS, bench.THEIRS, bench.FUSED, bench.BOTH, bench.PLAIN}
    assert set(case["seconds"]) == set(case["peak_memory_bytes"]) == sides
    assert all(len(values) == 6 for values in case["seconds"].values())


def test_committed_results_are_whole(results):
    assert set(results["cases"]) == set(report.WHAT)
    assert results["settings"]["rounds"] >= 15
    for case in results["cases"].values():
        for side, stored in case["times_faster_than"].items():
            ours, theirs = case["seconds"][bench.OURS], case["seconds"][side]
            again = side_by_side.times_faster(ours, than=theirs)
            assert list(again) == pytest.approx(stored)


# Generation ---------------------------------------------------------------------------


def test_a_dry_run_of_generation_measures_every_side(dry_run):
    found = dry_run(generation)
    case = found["cases"]["tiny"]
    *_, new, _, sides = generation.CASES["tiny"]
    for part in ("seconds_to_first_token", "seconds_for_the_others"):
        assert set(case[part]) == set(sides)
        assert all(len(values) == 6 for values in case[part].values())
    assert case["tokens_in_common"][generation.THEIRS] == new
    assert case["tokens_in_common"][generation.NO_CACHE] == new
    check_generation(found, ["tiny"])


def check_generation(found, names):
    """Assert that what is derived in results of generation follows from the rest."""
    assert list(found["cases"]) == names
    cases = found["cases"].values()
    rate = max(max(case["read_bytes_per_second"]) for case in cases)
    assert found["best_read_bytes_per_second"] == rate
    for case in cases:
        again = json.loads(json.dumps(case))
        generation.add_limit(again, rate)
        assert again == case
        others, first = case["seconds_for_the_others"], case["seconds_to_first_token"]
        assert {len(values) for values in others.values()} == {case["rounds"]}
        for side, speed in case["tokens_per_second"].items():
            median = statistics.median(others[side])
            assert speed == pytest.approx((case["new_tokens"] - 1) / median)
        for times, stored in [
            (others, case["times_faster"]),
            (first, case["first_token_times_faster"]),
        ]:
            assert set(stored) == set(times) - {case["beside"]}
            for side, value in stored.items():
                ratio = side_by_side.times_faster(times[side], times[case["beside"]])
                assert list(ratio) == pytest.approx(value)


def test_a_byte_is_counted_for_each_weight():
    config = generation.TINY
    model = GPT2LMHeadModel(config)
    table = model.position_embedding.weight
    weights = 4 * (sum(p.numel() for p in model.parameters()) - table.numel())
    cache = 4 * 2 * config.n_layer * config.n_embd * 10
    read = generation.bytes_read(config, generation.OURS, 10)
    assert read == {"weights": weights, "cache": cache}

    quantized = quantize_int8(model)
    layers = [m for m in quantized.modules() if isinstance(m, Int8Linear)]
    read = generation.bytes_read(config, generation.INT8, 10)
    unpacked = [torch.ops.quantized.linear_unpack(m.packed)[0] for m in layers]
    assert read["weights of eight bits"] == sum(w.numel() for w in unpacked)
    assert read["their scales"] == 4 * sum(len(w) for w in unpacked)
    biases = sum(len(w) for w in unpacked) - config.vocab_size  # the head has none
    norms = sum(p.numel() for name, p in model.named_parameters() if "norm" in name)
    assert read["other weights"] == 4 * (biases + norms)


def test_the_limit_is_what_memory_allows():
    case = {
        "config": vars(generation.TINY),
        "prompt_tokens": 5,
        "new_tokens": 4,
        "tokens_per_second": {generation.OURS: 25.0, generation.NO_CACHE: 1.0},
    }
    read = sum(generation.bytes_read(generation.TINY, generation.OURS, 7).values())
    generation.add_limit(case, rate=100.0 * read)
    assert case["limit_tokens_per_second"] == {generation.OURS: pytest.approx(100)}
    assert case["share_of_limit"] == {generation.OURS: pytest.approx(0.25)}


def test_tokens_may_part_only_where_two_are_equally_probable(tmp_path):
    generation.save_checkpoints(generation.TINY, [generation.OURS], tmp_path)
    prompt, ours = [1, 2], [3, 4, 5]
    sides = {generation.OURS: ours, generation.THEIRS: list(ours)}
    check = partial(generation.check_tokens, sides, prompt, tmp_path)
    assert check() == {generation.THEIRS: 3}
    sides[generation.THEIRS] = [3, 6, 5]
    with pytest.raises(AssertionError, match="transformers parts from gpt2lib at 1"):
        check()
    model = GPT2LMHeadModel.from_pretrained(tmp_path / "learned")
    with torch.no_grad():
        model.token_embedding.weight[6] = model.token_embedding.weight[4]
    model.save_pretrained(tmp_path / "learned")
    assert check() == {generation.THEIRS: 1}
    sides[generation.INT8] = [8, 8, 8]
    assert check() == {generation.THEIRS: 1, generation.INT8: 0}


@pytest.mark.parametrize("name", GENERATIONS)
def test_committed_results_of_generation_are_whole(name):
    found = report.read_if_measured(name)
    if found is None:
        assert name == "generation_litgpt"
        pytest.skip("not measured yet")
    check_generation(found, GENERATIONS[name])
    assert found["machine"]["threads"] == found["machine"]["cores"]
    for after in report.AFTER:
        assert found["cases"][after]["rounds"] >= 15


# Training -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs():
    return report.read("training")["runs"]


def test_a_curve_reaches_a_loss_between_two_of_its_points():
    curve = [(10.0, 3.0), (20.0, 2.0), (30.0, 1.0), (40.0, 2.5)]
    assert report_training.time_to_reach(curve, 1.5) == 25
    assert report_training.time_to_reach(curve, 2.0) == 20
    with pytest.raises(ValueError, match=r"does not come down to 0\.5"):
        report_training.time_to_reach(curve, 0.5)


def test_a_run_is_what_its_command_measured(monkeypatch):
    monkeypatch.setattr(training, "QUIET", training.QUIET | {"eval_tokens": 100})
    settings = {"n_layer": 1, "n_embd": 8, "n_head": 2, "block_size": 8, "warm_up": 0}
    (run,) = training.run_seeds(training.OURS, 1, 2, n_steps=4, **settings)
    assert [step for step, _, _ in run["curve"]] == [2, 4]
    assert run["validation_loss"] == run["curve"][-1][2]
    assert 0 < run["curve"][0][1] <= run["curve"][1][1]
    assert run["steps"] == 4


def test_committed_training_runs_are_whole(runs):
    without = [f"without {ingredient}" for ingredient in training.WITHOUT]
    assert list(runs) == [training.YARDSTICK, training.OURS, training.SHORT, *without]
    for name, seeds in runs.items():
        assert [run["seed"] for run in seeds] == [0, 1, 2]
        assert len({run["steps"] for run in seeds}) == 1, name
        for run in seeds:
            assert run["curve"][-1][0] == run["steps"]
            assert run["curve"][-1][2] == run["validation_loss"]
    presets = (training.YARDSTICK, training.OURS)
    for name in presets:
        assert runs[name][0]["steps"] == TrainConfig.preset(name).n_steps
    sizes = [runs[name][0]["parameters"] for name in presets]
    assert max(sizes) / min(sizes) < 1.02, "as many parameters"
    ours = report_training.median_seconds(runs[training.OURS])
    for name in without:  # no variant had much less time than ours
        assert report_training.median_seconds(runs[name]) > 0.95 * ours


@pytest.mark.parametrize("name", [training.YARDSTICK, training.OURS])
def test_presets_promise_what_was_measured(runs, name):
    promise = TRAIN_PRESETS[name][0]
    loss = report_training.mean_loss(runs[name])
    seconds = report_training.median_seconds(runs[name])
    assert f"{loss:.2f} in {seconds / 60:.1f} minutes" in promise


# On a GPU -----------------------------------------------------------------------------


def test_the_model_with_nanogpts_choices_is_causal_and_starts_even():
    """As many parameters as GPT-2 without biases, its tables of tokens rounded up."""
    config = GPT2Config(2, 2, 16, vocab_size=50, block_size=8, dropout=0.0)
    torch.manual_seed(0)
    model = nanogpt_side.PlainGPT(config)
    norms, table = (2 * 2 + 1) * 16, (64 + 8) * 16
    found = sum(p.numel() for p in model.parameters())
    assert found == table + 2 * 12 * 16 * 16 + norms
    tokens = torch.arange(16).view(2, 8)
    assert model(tokens, tokens + 20).item() == pytest.approx(math.log(64), abs=0.2)
    hidden = model.blocks(model.tokens(tokens))
    tokens[:, -1] = 49
    again = model.blocks(model.tokens(tokens))
    assert torch.equal(hidden[:, :-1], again[:, :-1])


def test_our_steps_are_those_of_the_command(tmp_path):
    amount = gpu.QUICK | {"texts": 2}
    data = gpu.write_tokens(tmp_path / "tokens", amount["tokenizer"](), n=2000)
    changes = {"compile": False, "precision": "float32", "n_steps": 3, "warm_up": 0}
    changes |= {"device": "cpu", "eval_tokens": 10, "sample_tokens": 0}
    config = gpu.step_config(amount, data, tmp_path / "command", **changes)
    train(config, watch=None)
    work = gpu.our_steps(replace(config, out=str(tmp_path / "ours")), CPU)
    assert work(3).item() == pytest.approx(gpu.losses_of(config.out)[-1])
    other = gpu.other_steps(gpu.NANO + gpu.EAGER, config, amount, CPU)
    assert other(1).item() == pytest.approx(math.log(64), abs=0.3)


def test_results_of_steps_follow_from_their_times():
    found = report.read("gpu")["step"]
    again = json.loads(json.dumps(found))
    amount = gpu.FULL | {"config": GPT2Config(**found["config"])}
    timed = {
        side: SimpleNamespace(first_loss=found["first_loss"][side], peak=peak)
        for side, peak in found["peak_memory_bytes"].items()
    }
    gpu.add_step_results(again, amount, timed, found["seconds"])
    assert json.loads(json.dumps(again)) == found
    assert {len(times) for times in found["seconds"].values()} == {found["rounds"]}


def test_committed_results_of_a_gpu_agree_with_the_cpu():
    found = report.read("gpu")
    logits, shipped = found["agreement"]["logits"], found["agreement"]["shipped"]
    for way, distance in logits.items():
        most = 1e-5 if "float32" in way else 1e-3 if way == "TF32" else 2e-2
        assert distance < most, way
    assert shipped["loss"] == pytest.approx(shipped["loss_of_card"], abs=1e-4)
    assert found["agreement"]["torchrun_loss"] < 0.01
    assert found["generation"]["tokens_in_common"]["float32"] == gpu.FULL["new"]


def test_the_preset_for_a_gpu_promises_what_was_measured():
    found = report.read("gpu")["run"]
    assert found["steps"] == TrainConfig.preset("shakespeare-gpu").n_steps
    assert found["curve"][-1] == found["best"]
    _, seconds, loss = found["best"]
    assert loss <= 1.47
    promise = TRAIN_PRESETS["shakespeare-gpu"][0]
    assert f"{loss:.2f} in {seconds:.0f} seconds" in promise


# The book -----------------------------------------------------------------------------


def test_committed_results_of_the_model_in_the_page_are_as_promised():
    found = report.read("play")
    ways = found["writing"]
    for runs in (runs for way in ways.values() for runs in way.values()):
        assert len(runs) >= 10
    rate = {
        way: statistics.median(runs["tokens_per_second"]) for way, runs in ways.items()
    }
    work = statistics.median(ways["1,000 tokens"]["multiply_adds_per_second"])
    assert work >= 500e6
    assert min(ways["1,000 tokens"]["slowest"]) >= 250
    assert rate["128, with the cache"] >= 10 * rate["128, anew"]
    assert max(found["ready_ms"]) <= 500
    assert found["long_tasks_ms"] == []
    assert found["agreement"]["prompts"] >= 100
    assert found["agreement"]["largest_error"] < 1e-4
    assert found["file_bytes"] <= 2_500_000


@pytest.mark.parametrize("path", report.PAGES, ids=lambda path: path.name)
def test_the_book_says_what_was_measured(path):
    assert path.read_text() == report.PAGES[path]()
