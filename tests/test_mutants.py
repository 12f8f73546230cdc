"""The checks of the notebooks against the mistakes that people make, one at a time.

`mutants/PHASE.toml` names each: the exported `cell` it stands in, what is `old` there
and what somebody writes instead, the `check` that is meant to find it and what that
`says`. Only the cells that the check needs are run.
"""

import contextlib
import io
import tomllib
from functools import cache
from pathlib import Path

import matplotlib
import pytest
from conftest import NOTEBOOKS
from slices import Notebook

pytestmark = pytest.mark.slow  # until the workbook, whose checks they are for
MUTANTS = sorted((Path(__file__).parent / "mutants").glob("*.toml"))
matplotlib.use("Agg")


@cache
def notebook(stem):
    return Notebook(next(path for path in NOTEBOOKS if path.stem == stem))


FILES = {path.stem: tomllib.loads(path.read_text("utf-8")) for path in MUTANTS}
SLOW = {stem: file.get("slow", []) for stem, file in FILES.items()}
NAMED = [
    pytest.param(stem, mutant, id=f"{stem}: {mutant['name']}")
    for stem, file in FILES.items()
    for mutant in file["mutant"]
]


def mutated(source, mutant):
    """The cell with the mistake in it."""
    edits = mutant.get("edits") or [[mutant["old"], mutant["new"]]]
    for old, new in edits:
        assert source.count(old) == 1, f"{old!r} stands {source.count(old)} times"
        source = source.replace(old, new)
    return source


def checks_before(stem, cell, check):
    """The cells between the two that check the same exported cell and are not slow."""
    book = notebook(stem)
    order = list(book.sources)
    between = order[order.index(cell) + 1 : order.index(check)]
    return [
        i
        for i in between
        if "assert" in book.sources[i] and cell in book.needs(i) and i not in SLOW[stem]
    ]


@cache
def start(stem, cells):
    """The names after these cells, and a copy of them to go back to."""
    space = run_quietly(notebook(stem), cells, None)
    return space, dict(space)


def run_with(stem, cell, wrong, cells):
    """Run `cells`, one of them wrong. Where the file says `share`, what comes before it
    is run once for all its mutants: only if no mistake can change what was made there.
    """
    if not FILES[stem].get("share"):
        return run_quietly(notebook(stem), cells, None, {cell: wrong})
    first, rest = cells[: cells.index(cell)], cells[cells.index(cell) :]
    space, names = start(stem, first)
    space.clear()
    space.update(names)
    return run_quietly(notebook(stem), rest, space, {cell: wrong})


def run_quietly(book, cells, space, instead=None):
    with contextlib.redirect_stdout(io.StringIO()):
        return book.run(cells, space, instead)


@pytest.mark.parametrize(("stem", "mutant"), NAMED)
def test_named_mutant_is_caught_by_its_check(stem, mutant):
    book, cell, check = notebook(stem), mutant["cell"], mutant["check"]
    wrong = mutated(book.sources[cell], mutant)
    assert cell in book.needs(check), f"{check} does not need {cell}"
    checks = checks_before(stem, cell, check)  # must pass
    wanted = {i for one in (*checks, check) for i in book.needs(one)} | {*checks}
    cells = tuple(i for i in book.sources if i in wanted)
    space = run_with(stem, cell, wrong, cells)
    with pytest.raises(AssertionError) as caught:
        run_quietly(book, [check], space)
    assert mutant["says"] in str(caught.value), str(caught.value)


@pytest.mark.parametrize(
    ("stem", "check"),
    sorted({(p.values[0], p.values[1]["check"]) for p in NAMED}),
)
def test_without_a_mistake_the_check_passes(stem, check):
    book = notebook(stem)
    run_quietly(book, [*book.needs(check), check], None)
