"""Rules that every notebook keeps, read off its file; nbval reruns the cells."""

import ast
import re

import nbformat
import pytest
from conftest import NOTEBOOKS

from tools.run_notebooks import clean
from tools.sections import headings, source
from tools.slices import python_of

TEXT = ("text/plain", "text/html")
PREDICT = re.compile(r"\*predict\b(?! first)", re.IGNORECASE)  # `first`: exercises
ANSWER = re.compile(r"<details\b[^>]*>\s*<summary>(?!Hint)")


def read(path):
    return nbformat.read(path, as_version=4)


def code_cells(path):
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


def tags(cell):
    return cell.metadata.get("tags", [])


def python(cell):
    """Return the parsed cell, magics and shell lines left out."""
    return ast.parse(python_of(cell.source))


def module_of(cell):
    """Return the module that a cell is exported to, or None."""
    mark = re.match(r"#\| export (\w+)", cell.source)
    return mark and mark[1]


def definitions(cell):
    """Return the public names that an exported cell defines at its top level."""
    names = []
    for node in python(cell).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            names.append(node.name)
        elif isinstance(node, ast.Assign):
            names += [t.id for t in node.targets if isinstance(t, ast.Name)]
    return [name for name in names if not name.startswith("_")]


def has_text(cell):
    return any(
        output.output_type == "stream" or any(kind in output.data for kind in TEXT)
        for output in cell.outputs
    )


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request):
    return request.param


def test_stored_as_a_clean_run_leaves_it(path):
    notebook = read(path)
    stored = nbformat.writes(notebook)
    clean(notebook)
    assert nbformat.writes(nbformat.from_dict(notebook)) == stored, (
        f"{path.name} holds metadata or counts that a clean run does not: "
        "run `make notebooks`"
    )


def test_was_executed_without_error_or_warning(path):
    for cell in code_cells(path):
        for output in cell.outputs:
            assert output.output_type != "error", f"{cell.id} stores an error"
            assert output.get("name") != "stderr", f"{cell.id} stores a warning"


def test_holds_no_widget_state_and_no_script(path):
    assert "widgets" not in read(path).metadata
    for cell in code_cells(path):
        for output in cell.outputs:
            data = output.get("data", {})
            assert not any("widget" in kind for kind in data), cell.id
            assert "<script" not in str(data.get("text/html", "")).lower(), cell.id


def test_nine_in_ten_text_outputs_are_compared(path):
    cells = [cell for cell in code_cells(path) if has_text(cell)]
    ignored = [cell.id for cell in cells if "nbval-ignore-output" in tags(cell)]
    assert len(ignored) <= len(cells) / 10, f"not compared: {ignored} of {len(cells)}"


def test_what_is_not_compared_is_asserted(path):
    cells = code_cells(path)
    for place, cell in enumerate(cells):
        if "nbval-ignore-output" in tags(cell):
            compared = [
                c for c in cells[place:] if "nbval-ignore-output" not in tags(c)
            ]
            assert compared, f"{cell.id} is followed by no check"
            assert "assert" in compared[0].source, f"{cell.id} is followed by no check"


def test_images_have_alt_text_and_a_caption(path):
    for cell in code_cells(path):
        kinds = {kind for output in cell.outputs for kind in output.get("data", {})}
        if any(kind.startswith("image/") for kind in kinds):
            given = cell.metadata.get("mystnb", {})
            alt = given.get("image", {}).get("alt", "")
            assert len(alt) > 30, f"{cell.id} needs alt text that says what it shows"
            caption = given.get("figure", {}).get("caption", "")
            assert caption.endswith("."), (
                f"{cell.id} needs a caption that says what to see"
            )


def test_figures_that_describe_themselves_are_described_so_in_the_book(path):
    for cell in code_cells(path):
        for output in cell.outputs:
            said = output.get("data", {}).get("text/plain", "<Figure")
            if "image/svg+xml" in output.get("data", {}) and "<Figure" not in said:
                alt = cell.metadata.get("mystnb", {}).get("image", {}).get("alt")
                assert alt == said, f"{cell.id}: the alt text is not the figure's own"


def test_cell_ids_can_be_anchors(path):
    for cell in read(path).cells:
        assert re.fullmatch(r"[a-z][a-z0-9-]*", cell.id), cell.id


def test_opens_with_the_set_up_cell(path):
    cells = code_cells(path)
    assert cells[0].id == "setup"
    first = next(path for path in NOTEBOOKS if path.stem.startswith("phase0"))
    assert cells[0].source == code_cells(first)[0].source


def test_cells_explore_or_export(path):
    """What a notebook exports, it defines once, checks, and never imports again."""
    cells = code_cells(path)
    exported = {}
    for place, cell in enumerate(cells):
        if module_of(cell):
            for name in definitions(cell):
                assert name not in exported, f"{name} is defined twice"
                exported[name] = place
    asserting = [cell.source for cell in cells if re.search(r"\bassert\b", cell.source)]
    for name in (name for name in exported if not name.isupper()):
        assert any(re.search(rf"\b{name}\b", source) for source in asserting), (
            f"no check cell of {path.name} mentions {name}"
        )
    for place, cell in enumerate(cells):
        for node in ast.walk(python(cell)):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("gpt2lib"):
                for alias in node.names:
                    assert exported.get(alias.name, place) >= place, (
                        f"{cell.id} replaces the reader's {alias.name} by the library's"
                    )


def test_exported_names_end_as_the_readers_own(path):
    """Run the exported cells in order: each name must then be `__main__`'s."""
    cells = [cell for cell in code_cells(path) if module_of(cell)]
    space = {"__name__": "__main__"}
    for cell in cells:
        exec(cell.source, space)
    for cell in cells:
        for name in definitions(cell):
            if isinstance(space[name], type) or callable(space[name]):
                assert space[name].__module__ == "__main__", name


# The prose ----------------------------------------------------------------------------


def prose(cells):
    """Yield (id, line before, line, level and title of a heading) of what is no code.

    A code cell comes as one line of its own; so does a fenced block's every line, which
    is never a heading.
    """
    for cell in cells:
        marks = {number: mark for number, *mark in headings(cell)}
        text = source(cell) if cell["cell_type"] == "markdown" else "(code)"
        before = ""
        for number, line in enumerate(text.splitlines()):
            yield cell["id"], before, line, marks.get(number)
            before = line


def stray_predictions(cells):
    """Return the cells in which a prediction is asked for within a paragraph."""
    return [
        name
        for name, before, line, _ in prose(cells)
        for asked in PREDICT.finditer(line)
        if before.strip() or asked.start() != 1 or not line.startswith("**Predict.** ")
    ]


def open_predictions(cells):
    """Return the cells whose prediction meets no folded answer in its section."""
    found, waiting = [], None
    for name, _, line, heading in prose(cells):
        asks = PREDICT.search(line)
        if asks or (heading and heading[0] <= 2):
            found += [waiting] if waiting else []
            waiting = name if asks else None
        elif ANSWER.search(line):
            waiting = None
    return found + ([waiting] if waiting else [])


def bare_headings(cells):
    """Return (cell, heading, the next) where nothing stands between two headings."""
    found, last = [], None
    for name, _, line, heading in prose(cells):
        if heading:
            found += [(name, last, heading[1])] if last else []
            last = heading[1]
        elif line.strip():
            last = None
    return found


def test_predictions_begin_a_paragraph(path):
    stray = stray_predictions(read(path).cells)
    assert not stray, (
        f"{path.name}: in {stray} a prediction is asked for in passing; a paragraph of "
        "its own, which begins with **Predict.**, stops the reader"
    )


def test_predictions_have_a_folded_answer(path):
    unanswered = open_predictions(read(path).cells)
    assert not unanswered, (
        f"{path.name}: no <details> with an answer follows the prediction of "
        f"{unanswered} before the next prediction or section"
    )


def test_headings_have_something_under_them(path):
    bare = bare_headings(read(path).cells)
    assert not bare, f"{path.name}: a sentence is missing between " + "; ".join(
        f"{one!r} and {two!r} ({cell})" for cell, one, two in bare
    )


FOLD = "<details><summary>Answer</summary>\n\nNo.\n\n</details>"
HINT = FOLD.replace("Answer", "Hint 1")


def markdown(*sources):
    """Return cells named a, b, c...: code if they begin with a space."""
    return [
        {
            "id": "abcdefgh"[number],
            "cell_type": "code" if text.startswith(" ") else "markdown",
            "source": text,
        }
        for number, text in enumerate(sources)
    ]


@pytest.mark.parametrize(
    ("text", "stray"),
    [
        ("## Why?\n\n**Predict.** Is it so?", []),
        ("It may be. **Predict.** Is it so?", ["a"]),
        ("It may be.\n**Predict.** Is it so?", ["a"]),
        ("**Predict:** is it so?", ["a"]),
        ("**Predict** whether.", ["a"]),
        ("*Predict* whether.", ["a"]),
        ("*Difficulty 1/5.* **Predict first:** is it so?", []),
        ("It predicts.", []),
    ],
)
def test_a_prediction_in_passing_is_found(text, stray):
    assert stray_predictions(markdown(text)) == stray


ASKED = "**Predict.** Is it so?"


@pytest.mark.parametrize(
    ("sources", "unanswered"),
    [
        ([ASKED, " run()", FOLD], []),
        ([ASKED, "### By hand", FOLD], []),
        ([ASKED, " run()", "No."], ["a"]),
        ([ASKED, " run()", HINT], ["a"]),
        ([ASKED, "## Next\n\nText.", FOLD], ["a"]),
        ([ASKED, ASKED, FOLD], ["a"]),
        ([ASKED, f"{FOLD}\n\n{ASKED}", " run()"], ["b"]),
        (["**Predict first:** is it so?"], []),
    ],
)
def test_a_prediction_without_an_answer_is_found(sources, unanswered):
    assert open_predictions(markdown(*sources)) == unanswered


@pytest.mark.parametrize(
    ("sources", "bare"),
    [
        (["## One\n\nText.\n\n### Two"], []),
        (["## One", " run()", "## Two"], []),
        (["## One\n\n### Two"], [("a", "One", "Two")]),
        (["## One", "## Two\n\nText."], [("b", "One", "Two")]),
        (["## One\n\n```\n## no heading\n```", "## Two"], []),
    ],
)
def test_a_heading_with_nothing_under_it_is_found(sources, bare):
    assert bare_headings(markdown(*sources)) == bare
