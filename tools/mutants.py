"""Run the notebooks' checks against the mistakes that people make, one at a time.

    python tools/mutants.py    run them all, and write benchmarks/results/mutants.json

`tests/mutants/PHASE.toml` names each mistake: the exported `cell` it stands in, what is
`old` there and what somebody writes instead, the `check` that is meant to find it and
words that this must say. The checks before it, those for the same cell, must pass. Only
the cells that a check needs are run.
"""

import argparse
import contextlib
import io
import json
import re
import sys
import tempfile
import tomllib
from functools import cache
from pathlib import Path

import matplotlib

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tools.slices import Notebook  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "mutants.json"
FILES = {
    path.stem: tomllib.loads(path.read_text("utf-8"))
    for path in sorted((ROOT / "tests" / "mutants").glob("phase*.toml"))
}
NAMED = [(stem, mutant) for stem, file in FILES.items() for mutant in file["mutant"]]


@cache
def notebook(stem):
    return Notebook(ROOT / "notebooks" / f"{stem}.ipynb")


def mutated(source, mutant):
    """The cell with the mistake in it."""
    edits = mutant.get("edits") or [[mutant["old"], mutant["new"]]]
    for old, new in edits:
        assert source.count(old) == 1, f"{old!r} stands {source.count(old)} times"
        source = source.replace(old, new)
    return source


def checks_before(stem, cell, check):
    """The cells between the two that check the same exported cell and are not slow."""
    book, slow = notebook(stem), FILES[stem].get("slow", ())
    order = list(book.sources)
    between = order[order.index(cell) + 1 : order.index(check)]
    return [
        i
        for i in between
        if "assert" in book.sources[i] and cell in book.needs(i) and i not in slow
    ]


def run(stem, cells, space=None, instead=None):
    """Run these cells, without what they print."""
    with contextlib.redirect_stdout(io.StringIO()):
        return notebook(stem).run(cells, space, instead)


@cache
def start(stem, cells):
    """The names after these cells, and a copy of them to go back to."""
    space = run(stem, cells)
    return space, dict(space)


def run_with(stem, cell, wrong, cells):
    """Run `cells`, one of them wrong. Where the file says `share`, what comes before it
    is run once for all its mutants: only if no mistake can change what was made there.
    """
    if not FILES[stem].get("share"):
        return run(stem, cells, instead={cell: wrong})
    first, rest = cells[: cells.index(cell)], cells[cells.index(cell) :]
    space, names = start(stem, first)
    space.clear()
    space.update(names)
    return run(stem, rest, space, {cell: wrong})


def what_its_check_says(stem, mutant):
    """Return the message of the check that is meant for a mutant, or None if it passes.

    Whatever else stops, a check before it or a cell that it needs, is raised.
    """
    book, cell, check = notebook(stem), mutant["cell"], mutant["check"]
    wrong = mutated(book.sources[cell], mutant)
    assert cell in book.needs(check), f"{check} does not need {cell}"
    checks = checks_before(stem, cell, check)
    wanted = {i for one in (*checks, check) for i in book.needs(one)} | {*checks}
    cells = tuple(i for i in book.sources if i in wanted)
    space = run_with(stem, cell, wrong, cells)
    try:
        run(stem, [check], space)
    except AssertionError as error:
        return re.sub(rf"{tempfile.gettempdir()}/\w+", "FOLDER", str(error))
    return None


def main():
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    matplotlib.use("Agg")
    rows = []
    for stem, mutant in NAMED:
        said = what_its_check_says(stem, mutant)
        if said is None or mutant["says"] not in said:
            sys.exit(f"{stem}: {mutant['name']}: not caught as meant, but: {said}")
        row = {"phase": stem, "mistake": mutant["name"]}
        row |= {"cell": mutant["cell"], "check": mutant["check"], "message": said}
        rows.append(row)
    results = {"command": "python tools/mutants.py", "mutants": rows}
    RESULTS.write_text(
        json.dumps(results, indent=1, ensure_ascii=False) + "\n", "utf-8"
    )
    print(f"all {len(rows)} mistakes are caught, each by the check meant for it")


if __name__ == "__main__":
    main()
