"""The workbook: each blank fails its check, each reference passes, and the rest is the
phase's own. Only the cells that a check needs are run."""

import ast
import contextlib
import io
import re
from functools import cache
from types import SimpleNamespace

import matplotlib
import nbformat
import pytest
from conftest import NOTEBOOKS, ROOT
from nbclient import NotebookClient

from gpt2lib.workbook import Workbook, _standing, reference
from tools.learner import EXPORT, blank, exercises, files, relinked
from tools.slices import Notebook, python_of

matplotlib.use("Agg")
pytestmark = pytest.mark.usefixtures("cells_leave_nothing")
PHASES = {path.stem: path for path in NOTEBOOKS if path.stem.startswith("phase")}
EXERCISES = {
    stem: exercises(nbformat.read(path, as_version=4), stem)
    for stem, path in PHASES.items()
}
EACH = [
    pytest.param(stem, one, id=f"{stem}: {one['exercise']}")
    for stem, found in EXERCISES.items()
    for one in found
]


@cache
def phase(stem):
    return Notebook(PHASES[stem])


@cache
def workbook(stem):
    """The cells of a workbook, as they are committed."""
    return nbformat.read(ROOT / "learner" / f"{stem}.ipynb", as_version=4).cells


@cache
def solutions(stem):
    """{id: code} of the exercises that close a phase."""
    cells = phase(stem).sources
    return {i: cells[i] for i in cells if re.fullmatch(r"exercise-\d+-solution", i)}


@cache
def finished(stem):
    """{id: code} of a workbook whose exercises are all put back from the library."""
    code = {c.id: c.source for c in workbook(stem) if c.cell_type == "code"}
    code |= solutions(stem)
    return code | {
        e["cell"]: reference(e["module"], e["cell"]) for e in EXERCISES[stem]
    }


def run(stem, cells, space=None, **instead):
    with contextlib.redirect_stdout(io.StringIO()):
        return phase(stem).run(cells, space, finished(stem) | instead)


def in_order(stem, checks):
    """The cells that the checks need and the checks, in the notebook's order."""
    wanted = {i for check in checks for i in (*phase(stem).needs(check), check)}
    return [i for i in phase(stem).sources if i in wanted]


# Derived, never written -----------------------------------------------------------


def test_what_is_committed_is_what_the_phases_give():
    for path, text in files(ROOT).items():
        assert (ROOT / path).read_text("utf-8") == text, f"run `make export`: {path}"


@pytest.mark.parametrize("stem", PHASES)
def test_a_finished_workbook_is_its_phase(stem):
    """The same cells in the same order, but for marks and what surrounds exercises."""
    names = "|".join(one["cell"] for one in EXERCISES[stem])
    added = re.compile(rf"workbook-.*|({names})-(exercise|show)|.*-folded")
    cells = [cell for cell in workbook(stem) if not added.fullmatch(cell.id)]
    source = nbformat.read(PHASES[stem], as_version=4).cells
    assert [cell.id for cell in cells] == [cell.id for cell in source]
    pages = {path.name for path in PHASES.values()}
    for ours, theirs in zip(cells, source, strict=True):
        if theirs.cell_type == "code":
            code = re.sub(r"\A# check: .*\n", "", finished(stem)[ours.id])
            assert code == EXPORT.sub("", theirs.source), ours.id
        else:
            text = relinked(theirs.source, pages)
            assert ours.source.replace(" (workbook)", "", 1) == text, ours.id


@pytest.mark.parametrize("stem", PHASES)
def test_nothing_is_left_of_outputs_and_metadata(stem):
    for cell in workbook(stem):
        assert not cell.metadata, cell.id
        assert not cell.get("outputs"), cell.id


@pytest.mark.parametrize("stem", PHASES)
def test_links_of_a_workbook_lead_somewhere(stem):
    for cell in workbook(stem):
        for link in re.findall(r"\]\(([^)#\s]+\.(?:ipynb|md))", cell.source):
            assert (ROOT / "learner" / link).exists(), f"{cell.id}: {link}"


def test_every_phase_has_exercises():
    assert all(len(found) >= 5 for found in EXERCISES.values()), {
        stem: len(found) for stem, found in EXERCISES.items()
    }


@pytest.mark.parametrize(("stem", "one"), EACH)
def test_exercise_is_fit_for_a_learner(stem, one):
    assert re.fullmatch(r"[a-z][a-z0-9-]*", one["exercise"])
    assert one["difficulty"] in range(1, 6)
    assert 2 <= one["minutes"] <= 90
    assert len(one["hints"]) >= 2
    assert all(hint.strip() for hint in one["hints"])
    for check in one["checks"]:
        assert re.search(r"\bassert\b|Assertion|refusal", phase(stem).sources[check])
        assert one["cell"] in phase(stem).needs(check), check


def short_messages(source):
    """Return the assertions of a cell whose message has fewer than three words.

    A message that is a name is taken for what the cell says under that name.
    """
    tree, found = ast.parse(python_of(source)), []
    for node in ast.walk(tree):
        if isinstance(node, ast.Assert) and not isinstance(node.msg, ast.Name):
            parts = ast.walk(node.msg) if node.msg else ()
            said = [p.value for p in parts if isinstance(p, ast.Constant)]
            if len(" ".join(map(str, said)).split()) < 3:
                found.append(ast.unparse(node))
    return found


@pytest.mark.parametrize("stem", PHASES)
def test_a_check_names_the_likely_mistake(stem):
    cells = phase(stem).sources
    checks = {check for one in EXERCISES[stem] for check in one["checks"]}
    checks |= {i for i in cells if re.fullmatch(r"exercise-\d+-check", i)}
    short = {i: found for i in checks if (found := short_messages(cells[i]))}
    assert not short, f"say what was likely done wrong, as a question: {short}"


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("assert x == 1", ["assert x == 1"]),
        ("assert x, 'Seed?'", ["assert x, 'Seed?'"]),
        ("if x:\n    assert y, f'{y}'", ["assert y, f'{y}'"]),
        ("%time x\nassert x, f'Is it {x} once?'", []),
        ("assert x, said", []),
    ],
)
def test_an_assertion_that_says_too_little_is_found(source, found):
    assert short_messages(source) == found


@pytest.mark.parametrize(("stem", "one"), EACH)
def test_a_hint_is_no_copy_of_the_solution(stem, one):
    """No hint holds a whole line of the reference, and none all that is blank."""
    source = reference(one["module"], one["cell"])
    kept = blank(source, one["exercise"], one.get("keep", ()))
    lines = set(map(str.strip, source.splitlines())) - set(
        map(str.strip, kept.splitlines())
    )
    code = {re.sub(r"\s+#.*", "", line) for line in lines if len(line) > 50}
    for hint in one["hints"][:-1]:
        assert not [line for line in code if line in hint], hint


# Blank, and reference put back ------------------------------------------------------


@pytest.mark.parametrize(("stem", "one"), EACH)
def test_blank_fails_its_first_check_which_says_so(stem, one):
    empty = next(c.source for c in workbook(stem) if c.id == one["cell"])
    first = one["checks"][0]
    space = run(stem, phase(stem).needs(first), **{one["cell"]: empty})
    with pytest.raises(NotImplementedError) as caught:
        run(stem, [first], space)
    assert f"Exercise '{one['exercise']}': " in str(caught.value)
    assert "is not done yet" in str(caught.value)


@pytest.mark.parametrize(("stem", "one"), EACH)
def test_reference_passes_all_its_checks(stem, one):
    run(stem, in_order(stem, one["checks"]))


LATER = [
    pytest.param(stem, one, check, id=f"{stem}: {one['exercise']}: {check}")
    for stem, found in EXERCISES.items()
    for one in found
    for check in one["checks"][1:]
]


@pytest.mark.parametrize(("stem", "one", "check"), LATER)
def test_blank_passes_no_later_check(stem, one, check):
    empty = next(c.source for c in workbook(stem) if c.id == one["cell"])
    with pytest.raises(NotImplementedError, match=f"'{one['exercise']}'"):
        run(stem, in_order(stem, [check]), **{one["cell"]: empty})


LONG = {"phase6_go_deeper": {"exercise-4-solution"}}  # its check trains models
CLOSING = [
    pytest.param(
        stem,
        solution,
        id=f"{stem}: {solution}",
        marks=[pytest.mark.slow] if solution in LONG.get(stem, ()) else [],
    )
    for stem in PHASES
    for solution in solutions(stem)
]


@pytest.mark.parametrize(("stem", "solution"), CLOSING)
def test_closing_exercise_fails_its_check_until_it_is_done(stem, solution):
    empty = next(c.source for c in workbook(stem) if c.id == solution)
    check = solution.replace("solution", "check")
    number = solution.split("-")[1]
    with pytest.raises(NotImplementedError, match=rf"Exercise {number}\b.* not done"):
        run(stem, in_order(stem, [check]), **{solution: empty})


# The whole workbook -----------------------------------------------------------------


def texts(outputs):
    """What nbval compares too: text, but no figure."""
    return [
        output.get("text") or output.data.get("text/plain")
        for output in outputs
        if output.output_type == "stream"
        or not any(kind.startswith("image/") for kind in output.get("data", {}))
    ]


@pytest.mark.parametrize(
    "stem",
    [
        pytest.param(stem, marks=[] if stem.startswith("phase0") else pytest.mark.slow)
        for stem in PHASES
    ],
)
def test_workbook_shown_from_end_to_end_gives_the_phases_results(stem, monkeypatch):
    """As a learner who gives up at every exercise runs it, in a kernel of its own."""
    monkeypatch.setenv("GPT2LIB_BOOK", "1")
    path = ROOT / "learner" / f"{stem}.ipynb"
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.id.endswith("-show") and cell.source.startswith("# show_me("):
            cell.source = cell.source.removeprefix("# ")
        cell.source = solutions(stem).get(cell.id, cell.source)
    NotebookClient(
        notebook,
        timeout=600,
        coalesce_streams=True,
        resources={"metadata": {"path": str(path.parent)}},
    ).execute()
    ran = {cell.id: cell for cell in notebook.cells}
    count = len(EXERCISES[stem])
    assert (
        ran["workbook-summary"]
        .outputs[0]
        .text.startswith(
            f"{count} of {count} exercises stand, {count} of them as shown."
        )
    )
    for cell in nbformat.read(PHASES[stem], as_version=4).cells:
        ignored = "nbval-ignore-output" in cell.metadata.get("tags", ())
        if cell.cell_type == "code" and not ignored:
            assert texts(ran[cell.id].outputs) == texts(cell.outputs), cell.id


# Blanks, from small cells -----------------------------------------------------------


def test_a_blank_keeps_what_a_learner_needs():
    source = '''@dataclass
class Thing(nn.Module):
    """A thing."""

    size: int = 3

    def __init__(self, size):
        super().__init__()
        # a comment that gives it away
        self.layer = nn.Linear(size, size)
        self.size = size

    @property
    def width(self):
        return self.size

    @width.setter
    def width(self, size):
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        """Docstring."""
        _check_shape(x, self.size)
        if x.ndim != 3:
            raise ValueError("bad")
        y = self.layer(x)  # (B, T, C)
        z = y + 1  # one more
        return z.sum(-1)  # (B, T)


def helper(x):
    return x
'''
    made = blank(source, "thing", keep=["helper"])
    assert (
        made
        == '''@dataclass
class Thing(nn.Module):
    """A thing."""

    size: int = 3

    def __init__(self, size):
        super().__init__()
        # sets self.layer, self.size
        raise NotImplementedError("Exercise 'thing': Thing.__init__ is not done yet")

    @property
    def width(self):
        raise NotImplementedError("Exercise 'thing': Thing.width is not done yet")

    @width.setter
    def width(self, size):
        raise NotImplementedError("Exercise 'thing': Thing.width is not done yet")

    def forward(self, x: Tensor) -> Tensor:
        """Docstring."""
        _check_shape(x, self.size)
        if x.ndim != 3:
            raise ValueError("bad")
        # y: (B, T, C)
        # returns (B, T)
        raise NotImplementedError("Exercise 'thing': Thing.forward is not done yet")


def helper(x):
    return x'''
    )


def test_a_name_to_keep_that_is_not_there_is_refused():
    with pytest.raises(SystemExit, match="nowhere"):
        blank("def f():\n    return 1", "f", keep=["nowhere"])


@pytest.mark.parametrize(
    ("marks", "says"),
    [
        ({"checks": []}, "no check cells"),
        ({"checks": ["nowhere"]}, "nowhere"),
        ({"hint": "one"}, "`learner` must hold"),
        ({"checks": ["first"]}, "not in the notebook's order"),
    ],
)
def test_marks_that_cannot_be_are_refused(marks, says):
    cells = [nbformat.v4.new_code_cell(s) for s in ("x", "#| export a\ny", "z")]
    for cell, name in zip(cells, ("first", "cell", "check"), strict=True):
        cell.id = name
    good = dict(exercise="e", difficulty=1, minutes=5, checks=["check"], hints=["a"])
    cells[1].metadata["learner"] = good
    notebook = nbformat.v4.new_notebook(cells=cells)
    assert [one["cell"] for one in exercises(notebook, "phase")] == ["cell"]
    cells[1].metadata["learner"] = good | marks
    with pytest.raises(SystemExit, match=says):
        exercises(notebook, "phase")


# What stands ------------------------------------------------------------------------


class Listeners:
    def __init__(self):
        self.events, self.code = self, []

    def register(self, event, listener):
        assert event == "post_run_cell"
        self.tell = listener

    def run_cell(self, code, store_history):
        self.code.append(code)
        return SimpleNamespace(success=True)

    def run(self, cell, error=None, before=None):
        info = SimpleNamespace(raw_cell=cell)
        result = dict(info=info, error_in_exec=error, error_before_exec=before)
        self.tell(SimpleNamespace(**result))


@pytest.fixture
def shell():
    return Listeners()


@pytest.fixture
def book(shell):
    return Workbook("phase1_components", shell)


def state(book, name):
    one = book.exercises[name]
    return _standing(book.state[name], book.said[name], one["checks"])


def test_cells_without_marks_and_unknown_exercises_change_nothing(book, shell):
    before = dict(book.state)
    for cell in ("", None, "x = 1", "# exercise: nowhere\n1", "# check: no (1 of 1)\n"):
        shell.run(cell)
    assert book.state == before
    assert not any(book.said.values())


def test_a_check_of_two_exercises_counts_for_both(book, shell):
    first, second = list(book.exercises)[:2]
    for name in (first, second):
        shell.run(f"# exercise: {name}\npass")
    shell.run(f"# check: {first} (1 of 9), {second} (1 of 9)\n", ValueError("no"))
    for name in (first, second):
        assert state(book, name)[2] == "its check says: ValueError: no"


def test_a_cell_that_python_cannot_read_is_no_pass(book, shell):
    name = next(iter(book.exercises))
    shell.run(f"# exercise: {name}\npass")
    shell.run(f"# check: {name} (1 of 1)\n(", before=SyntaxError("never closed"))
    assert "never closed" in state(book, name)[2]


def test_an_exercise_that_stops_half_way_does_not_stand(book, shell):
    name = next(iter(book.exercises))
    shell.run(f"# exercise: {name}\n1 / 0", ZeroDivisionError("division by zero"))
    for number in range(1, book.exercises[name]["checks"] + 1):
        shell.run(f"# check: {name} ({number} of 9)\n")
    assert not state(book, name)[0]
    assert "division by zero" in state(book, name)[2]


def test_the_summary_names_the_first_that_does_not_stand(book, shell, capsys):
    first, second = list(book.exercises)[:2]
    shell.run(f"# exercise: {first}\npass")
    for number in range(1, book.exercises[first]["checks"] + 1):
        shell.run(f"# check: {first} ({number} of 9)\n")
    book.summary()
    said = capsys.readouterr().out
    assert said.startswith(f"1 of {len(book.exercises)} exercises stand, 0 of them")
    assert f"[x] {first}" in said
    assert f"Next: {second}, about {book.exercises[second]['minutes']} minutes" in said


def test_no_other_phase_is_opened(shell):
    with pytest.raises(ValueError, match=r"phase must be one of .*got 'phase9'"):
        Workbook("phase9", shell)
