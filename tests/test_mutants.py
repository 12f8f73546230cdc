"""The notebooks' checks against the mistakes that people make: tools/mutants.py."""

import json
import re

import matplotlib
import pytest

from tools import mutation
from tools.mutants import NAMED, RESULTS, notebook, run, what_its_check_says
from tools.slices import Notebook

matplotlib.use("Agg")
pytestmark = pytest.mark.usefixtures("cells_leave_nothing")
STORED = {
    (row["phase"], row["mistake"]): row
    for row in json.loads(RESULTS.read_text("utf-8"))["mutants"]
}


def told(row):
    """What the book says of a mutant; numbers may differ from machine to machine."""
    return {**row, "message": re.sub(r"-?\d[\d.e+-]*", "#", row["message"])}


def test_the_book_lists_these_mistakes():
    names = [(stem, mutant["name"]) for stem, mutant in NAMED]
    assert names == list(STORED), "run `python tools/mutants.py`"
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("stem", "mutant"),
    [pytest.param(*pair, id=f"{pair[0]}: {pair[1]['name']}") for pair in NAMED],
)
def test_named_mutant_is_caught_by_its_check(stem, mutant):
    said = what_its_check_says(stem, mutant)
    assert said is not None, f"{mutant['check']} passes"
    assert mutant["says"] in said
    row = {"phase": stem, "mistake": mutant["name"]}
    row |= {"cell": mutant["cell"], "check": mutant["check"], "message": said}
    stored = STORED[stem, mutant["name"]]
    assert told(row) == told(stored), "run `python tools/mutants.py`"


@pytest.mark.parametrize(
    ("stem", "check"), sorted({(stem, mutant["check"]) for stem, mutant in NAMED})
)
def test_without_a_mistake_the_check_passes(stem, check):
    run(stem, [*notebook(stem).needs(check), check])


def test_what_is_called_equivalent_is_a_change_that_can_be_drawn():
    """Or an entry that no longer fits the code would lie there for good."""
    known = mutation.reasons()
    cells = {(module, cell) for module, cell, _, _ in known}
    drawn = set()
    for path in (mutation.ROOT / "notebooks").glob("*.ipynb"):
        book = Notebook(path)
        for cell, module in mutation.exported(book).items():
            if (module, cell) in cells:
                source = book.sources[cell]
                changes = mutation.mutations_of(module, cell, source)
                drawn |= {mutation.key(c) for c in changes if c.apply(source)}
    assert set(known) <= drawn
