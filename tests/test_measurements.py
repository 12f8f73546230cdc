"""The page Numbers: its tables, the results they read, the programs behind them."""

import json
import re
import sys

import nbformat
import pytest
from conftest import NOTEBOOKS, ROOT

sys.path.insert(0, str(ROOT / "book" / "_ext"))
sys.path.insert(0, str(ROOT / "benchmarks"))

import notebook_times
import page_loads
import parity
import report_training
from gpt2book import numbers
from side_by_side import ROUNDS

# The page -----------------------------------------------------------------------------

RESULTS = sorted((ROOT / numbers.RESULTS).glob("*.json"))
PAGE = (ROOT / "book" / "numbers.md").read_text("utf-8")


def rows(name, read):
    """Return the rows of a table, without its heads."""
    heads, *found = numbers.TABLES[name](read)
    assert all(len(row) == len(heads) + 1 for row in found), "a cell for each head"
    return found


class Changed(numbers.Results):
    """Results in which each number differs from what was measured."""

    def __call__(self, name):
        return changed(super().__call__(name))


def changed(found):
    match found:
        case dict():
            return {key: changed(value) for key, value in found.items()}
        case list():
            return [changed(value) for value in found]
        case bool() | str() | None:
            return found
    return found * 3 + (1 if isinstance(found, int) else 0.0123)


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.name)
def test_results_say_how_and_where_they_were_measured(path):
    found = json.loads(path.read_text("utf-8"))
    program = re.match(r"python (\S+\.py)\b", found["command"])[1]
    assert (ROOT / program).is_file()
    if path.stem != "mutants":  # which no machine changes
        assert {"cpu", "cores", "threads", "torch", "date"} <= set(found["machine"])


@pytest.mark.parametrize("name", numbers.TABLES)
def test_the_page_has_each_table_and_each_row_its_command(name):
    assert f"{{numbers}} {name}\n" in PAGE
    for subject, command, *cells in rows(name, numbers.Results(ROOT)):
        assert re.match(r"python (\w+/\w+\.py|-m gpt2lib\.)|wc -l|ls -l", command)
        assert subject
        assert all(cells)


@pytest.mark.parametrize("name", ["parity", "speed", "training", "notebooks", "pages"])
def test_numbers_of_a_table_come_from_the_results(name):
    """Every row says something else if every result does."""
    told = rows(name, numbers.Results(ROOT))
    others = rows(name, Changed(ROOT))
    assert len(told) == len(others) > 4
    assert not set(told) & set(others)


def test_sizes_are_counted_in_the_files(tmp_path):
    told = rows("sizes", numbers.Results(ROOT))
    library = {path.stem: path for path in (ROOT / "gpt2lib").glob("[!_]*.py")}
    said = dict(re.findall(r"`(\w+)` ([\d,]*\d)", " ".join(row[2] for row in told)))
    assert set(said) == set(library), "each module once"
    for name, path in library.items():
        assert said[name] == f"{len(path.read_text('utf-8').splitlines()):,}"


def test_a_result_that_is_missing_stops_the_build(tmp_path):
    for name in ("parity", "speed", "training", "notebooks", "pages"):
        with pytest.raises(FileNotFoundError):
            rows(name, numbers.Results(tmp_path))
    (tmp_path / numbers.RESULTS).mkdir(parents=True)
    (tmp_path / numbers.RESULTS / "pages.json").write_text('{"pages": {"a": {}}}')
    with pytest.raises(KeyError):
        rows("pages", numbers.Results(tmp_path))


def test_results_hold_every_notebook_and_every_page():
    read = numbers.Results(ROOT)
    stems = [path.stem for path in NOTEBOOKS]
    assert list(read("notebooks")["notebooks"]) == stems, "run notebook_times.py"
    assert list(read("pages")["pages"]) == page_loads.pages_of_book(), "page_loads.py"


# What a title cell says, and the seconds that it may take at most.
PROMISED = {
    "a few seconds": 15,
    "half a minute": 30,
    "a minute": 60,
    "two minutes": 120,
    "three minutes": 180,
}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_as_fast_as_it_says(path):
    title = nbformat.read(path, as_version=4).cells[0].source
    said = re.search(r"\*Runs\* within (.+?)(?: on two cores)?[;.]", title)
    if said is None:
        assert path.stem == "play", "which has nothing to read"
        return
    found = numbers.Results(ROOT)("notebooks")["notebooks"][path.stem]
    assert min(found["seconds"]) <= PROMISED[said[1]]


@pytest.mark.parametrize(
    "name", ["forward_and_step", "generation", "generation_litgpt"]
)
def test_a_stored_command_times_as_often_as_was_timed(name):
    found = numbers.Results(ROOT)(name)
    settings = [found.get("settings", {}), *found["cases"].values()]
    most = max(one.get("rounds", 0) for one in settings)
    said = re.search(r" --rounds (\d+)", found["command"])
    assert most == (int(said[1]) if said else ROUNDS)


def test_parity_is_rounding_alone():
    found = numbers.Results(ROOT)("parity")
    for one in found["logits"].values():
        assert one["float32"] < 2e-6
        assert one["float64"] < 1e-14
    assert all(one["differ"] == 0 for one in found["tokenizer"].values())


def test_curves_run_as_their_description_says():
    read = numbers.Results(ROOT)
    runs, on_gpu = read("training")["runs"], read("gpu")
    ours, theirs = (
        report_training.mean_curve(runs[name])
        for name in (report_training.OURS, report_training.YARDSTICK)
    )
    for seconds, loss in theirs:
        assert (
            max(late for when, late in ours if when >= min(seconds, ours[-1][0])) < loss
        )
    short, long = (on_gpu[name] for name in ("run", "long_run"))
    assert short["curve"][-1] == short["best"], "ends at its lowest point"
    assert long["best"][2] < long["curve"][-1][2], "rises again"
    slowest = max(run["curve"][-1][1] for run in (short, long))
    lowest = max(run["best"][2] for run in (short, long))
    assert slowest < ours[-1][0] < theirs[-1][0], "in less time"
    assert lowest < ours[-1][1] < theirs[-1][1], "further"


# The programs behind it ---------------------------------------------------------------


def test_a_dry_run_of_parity(tmp_path, monkeypatch):
    out = tmp_path / "out.json"
    words = ["--models", "tiny", "--texts", "50", "--out", str(out)]
    monkeypatch.setattr("sys.argv", ["parity.py", *words])
    monkeypatch.setattr(parity, "load_shakespeare", lambda: "To be,\nor not to be.\n")
    parity.main()
    found = json.loads(out.read_text())
    assert found["logits"]["tiny"]["float32"] < 1e-6
    assert found["tokenizer"]["random Unicode"]["texts"] == 50
    assert found["tokenizer"]["the nine plays, line by line"] == {
        "texts": 2,
        "tokens": 10,
        "differ": 0,
    }


def test_parity_sees_a_model_that_differs(monkeypatch):
    load = parity.GPT2LMHeadModel.from_pretrained

    def faulty(folder):
        model = load(folder)
        with parity.torch.no_grad():
            model.transformer.blocks[0].norm2.bias += 1e-3
        return model

    monkeypatch.setattr(parity.GPT2LMHeadModel, "from_pretrained", staticmethod(faulty))
    found = parity.compare_logits(*parity.MODELS["tiny"], parity.import_transformers())
    assert found["float64"] > 1e-6


def test_a_notebook_is_timed_from_a_fresh_kernel(tmp_path):
    path = tmp_path / "a.ipynb"
    cells = [nbformat.v4.new_code_cell("import time; time.sleep(0.5)")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    before = path.read_bytes()
    found = notebook_times.measure(path, 1)
    assert found["code_cells"] == 1
    assert found["seconds"][0] > 0.5
    assert path.read_bytes() == before


def test_a_page_is_weighed_with_all_that_it_loads(tmp_path, browser):
    lazy = '<p style="height: 5000px"></p><img src="b.svg" loading="lazy" alt="">'
    (tmp_path / "a.html").write_text(f"<script src=a.js></script>{lazy}")
    (tmp_path / "a.js").write_text(f"/* {'x' * 20_000} */")
    (tmp_path / "b.svg").write_text(f"<!-- {'x' * 30_000} -->")
    (tmp_path / "favicon.ico").write_bytes(b"")
    with page_loads.served(tmp_path) as base:
        found = page_loads.measure(browser, base, "a", visits=2)
    assert found["requests"] >= 3
    assert 50_000 < found["bytes"] < 53_000
    assert len(found["load_ms"]) == 2
    assert min(found["load_ms"]) > 0
