"""Rules that every notebook keeps, read off its file; nbval reruns the cells."""

import ast
import re

import nbformat
import pytest
from conftest import NOTEBOOKS

from tools.run_notebooks import clean
from tools.slices import python_of

TEXT = ("text/plain", "text/html")


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
