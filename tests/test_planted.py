"""Faults planted in a copy of the repository: what `make test` runs must find each.

Every test runs a command of the Makefile, in a copy with one fault, and reads what it
says: it must fail, and name the file, the cell or the page.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

COPIED = ["_config.yml", "_toc.yml", "README.md", "pyproject.toml", "CITATION.cff"]
COPIED += ["book", "gpt2lib", "learner", "notebooks", "tests", "tools", "benchmarks"]
PHASE = "notebooks/phase1_components.ipynb"


@pytest.fixture
def copy(tmp_path):
    """A copy of what the checks read."""
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__", ".*")
            shutil.copytree(source, tmp_path / name, ignore=ignored)
        else:
            shutil.copy(source, tmp_path)
    return tmp_path


def said_by(copy, *command):
    """Run a command in the copy, which must fail; return what it says."""
    python = Path(sys.executable)
    if command[0].endswith(".py"):
        command = (python, *command)
    else:
        command = (python.with_name(command[0]), *command[1:])
    result = subprocess.run(command, cwd=copy, capture_output=True, text=True)
    said = result.stdout + result.stderr
    assert result.returncode, f"nobody noticed: {said}"
    return said


def in_notebook(copy, name, cell, change):
    """Change one cell of a notebook in the copy."""
    path = copy / name
    notebook = json.loads(path.read_text("utf-8"))
    (found,) = [one for one in notebook["cells"] if one["id"] == cell]
    change(found)
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", "utf-8")


def in_text(copy, name, old, new):
    path = copy / name
    text = path.read_text("utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), "utf-8")


def edited(old, new):
    def change(cell):
        source = "".join(cell["source"])
        assert old in source
        cell["source"] = source.replace(old, new, 1).splitlines(keepends=True)

    return change


def test_a_notebook_out_of_step_with_the_library(copy):
    in_notebook(copy, PHASE, "attention-class", edited("self.proj(", "self.proj(1 * "))
    said = said_by(copy, "tools/export.py", "--check")
    assert "gpt2lib/attention.py differs from what its notebook exports" in said


def test_a_library_out_of_step_with_its_notebook(copy):
    in_text(copy, "gpt2lib/block.py", "self.", "self .")
    said = said_by(copy, "tools/export.py", "--check")
    assert "gpt2lib/block.py differs from what its notebook exports" in said


def test_a_workbook_out_of_step(copy):
    in_notebook(copy, PHASE, "need", edited("\n", "\n\nOne more line.\n"))
    said = said_by(copy, "tools/learner.py", "--check")
    assert "learner/phase1_components.ipynb" in said


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("image", "scale-figure needs alt text that says what it shows"),
        ("figure", "scale-figure needs a caption that says what to see"),
    ],
    ids=["alt text", "caption"],
)
def test_a_figure_that_lacks(key, said, copy):
    in_notebook(
        copy, PHASE, "scale-figure", lambda cell: cell["metadata"]["mystnb"].pop(key)
    )
    test = "tests/test_notebooks.py::test_images_have_alt_text_and_a_caption"
    test += f"[{Path(PHASE).stem}]"
    told = said_by(copy, "pytest", "-q", "-p", "no:cacheprovider", test)
    assert said in told


def test_a_number_that_nothing_carries(copy):
    in_notebook(copy, PHASE, "need", edited("\n", "\n\nThat takes 12.3 ms.\n"))
    said = said_by(copy, "tools/unbound.py")
    (line,) = [line for line in said.splitlines() if "12.3 ms" in line]
    assert PHASE in line
    assert "need" in line


def test_a_stale_output(copy):
    def change(cell):
        (output,) = cell["outputs"]
        output["text"] = ["something else\n"]

    name = "notebooks/phase0_foundation.ipynb"
    in_notebook(copy, name, "head-dim-check", change)
    notebook = json.loads((copy / name).read_text("utf-8"))
    ids = [cell["id"] for cell in notebook["cells"]]
    del notebook["cells"][ids.index("head-dim-check") + 1 :]  # the rest takes longer
    (copy / name).write_text(json.dumps(notebook), "utf-8")
    said = said_by(copy, "pytest", "-q", "-p", "no:cacheprovider", "--nbval", name)
    assert f"{name}::Cell" in said
    assert "something else" in said


@pytest.mark.slow  # it builds the whole book; tests/test_book.py builds one page
def test_a_dead_link(copy):
    in_text(copy, "book/reading.md", "](map.md)", "](mop.md)")
    options = ["--all", "-W", "-n", "--keep-going", "-q"]
    said = said_by(copy, "jupyter-book", "build", ".", *options)
    assert "reading.md" in said
    assert "mop.md" in said
