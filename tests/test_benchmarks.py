"""The benchmarks' arithmetic, and that the book says what was measured."""

import json
import random
import subprocess
import sys
from functools import partial

import pytest

from benchmarks import forward_and_step as bench
from benchmarks import report


@pytest.fixture(scope="module")
def results():
    return json.loads(report.RESULTS.read_text())


def test_interval_holds_the_median_as_often_as_it_says():
    rng, held = random.Random(0), 0
    for _ in range(2000):
        _, low, high = bench.median_and_interval([rng.random() for _ in range(15)])
        held += low <= 0.5 <= high
    assert 0.95 <= held / 2000 <= 0.98


@pytest.mark.parametrize("n", [6, 15, 21, 40])
def test_interval_is_of_order_statistics(n):
    median, low, high = bench.median_and_interval(range(n))
    assert median == (n - 1) / 2
    assert low + high == n - 1
    assert 0 <= low < median < high


def test_sides_take_turns():
    calls = []

    def timer(name):
        calls.append(name)
        return len(calls)

    times = bench.take_turns({name: partial(timer, name) for name in "ab"}, rounds=4)
    assert "".join(calls) == "ab" + "ab" + "ba" + "ab" + "ba"
    assert times == {"a": [3, 6, 7, 10], "b": [4, 5, 8, 9]}


def test_sides_that_disagree_are_not_compared():
    with pytest.raises(AssertionError, match=bench.THEIRS):
        bench.check_equal({bench.OURS: [1.0, 2.0], bench.THEIRS: [1.0, 2.001]})


def test_a_dry_run_measures_every_side(tmp_path):
    out = tmp_path / "out.json"
    command = [sys.executable, bench.__file__, "--cases", "tiny", "--rounds", "6"]
    subprocess.run([*command, "--out", str(out)], check=True, capture_output=True)
    case = json.loads(out.read_text())["cases"]["tiny"]
    sides = {bench.OURS, bench.THEIRS, bench.FUSED, bench.BOTH, bench.PLAIN}
    assert set(case["seconds"]) == set(case["peak_memory_bytes"]) == sides
    assert all(len(values) == 6 for values in case["seconds"].values())


def test_committed_results_are_whole(results):
    assert set(results["cases"]) == set(report.WHAT)
    assert results["settings"]["rounds"] >= 15
    for case in results["cases"].values():
        for side, stored in case["times_faster_than"].items():
            pairs = zip(case["seconds"][side], case["seconds"][bench.OURS], strict=True)
            ratios = [theirs / ours for theirs, ours in pairs]
            assert list(bench.median_and_interval(ratios)) == pytest.approx(stored)


def test_the_book_says_what_was_measured(results):
    assert report.PAGE.read_text() == report.page(results)
