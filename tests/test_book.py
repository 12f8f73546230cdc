"""The book's pages and its Sphinx extension, without a browser."""

import json
import re
import subprocess
import sys

import pytest
from conftest import ROOT

PAGES = sorted((ROOT / "book").glob("*.md"))
CODE = re.compile(r"^```python\n(.*?)^```", re.M | re.S)

CONFIG = f"""
import sys
sys.path.insert(0, {str(ROOT / "book" / "_ext")!r})
extensions = ["myst_nb", "gpt2book"]
html_theme = "basic"
html_math_renderer = "katex"
myst_enable_extensions = ["dollarmath"]
nb_execution_mode = "off"
nb_ipywidgets_js = {{}}
"""


def cell(kind, name, source, **more):
    return {"cell_type": kind, "id": name, "metadata": {}, "source": source} | more


def image():
    data = {"image/svg+xml": "<svg xmlns='http://www.w3.org/2000/svg'/>"}
    return {"output_type": "display_data", "metadata": {}, "data": data}


def exported(**more):
    source = "#| export attention\nx = 1"
    return cell("code", "made", source, execution_count=1, **more)


GOOD = [
    cell("markdown", "title", "# A title\n\nSee [the code](#made) and [why](#why)."),
    cell("markdown", "same", "## Made\n\nA heading of the same name as a cell."),
    exported(outputs=[]),
    cell("markdown", "why", "Because $x^2$."),
]
BAD = [
    cell("markdown", "title", "# A title\n\nSee [nothing](#nowhere)."),
    cell("markdown", "unfinished", r"$\frac{a$"),
    cell("markdown", "unknown", r"$\nosuch$"),
    exported(outputs=[image()]),
]
WARNINGS = [
    "target not found: 'nowhere'",
    "bad TeX: .*Unexpected end of input",
    r"bad TeX: .*\\nosuch",
    "cell made: image without alt text",
]


def write_notebook(path, cells):
    notebook = {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    path.write_text(json.dumps(notebook), "utf-8")


def build(folder, cells):
    """Build a book of one notebook; return its page and the warnings."""
    (folder / "conf.py").write_text(CONFIG, "utf-8")
    write_notebook(folder / "index.ipynb", cells)
    command = [sys.executable, "-m", "sphinx", "-q", "-n", folder, folder / "out"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return (folder / "out" / "index.html").read_text("utf-8"), result.stderr


def test_cells_are_anchors_and_exports_are_marked(tmp_path):
    page, warnings = build(tmp_path, GOOD)
    # Outside Jupyter Book there is no lexer for a notebook without a kernel.
    assert not [line for line in warnings.splitlines() if "lexer" not in line]
    assert re.findall(r'<(\w+)[^>]* id="made"', page) == ["div"]
    assert 'id="why"' in page
    assert 'href="#made"' in page
    assert 'href="gpt2lib/attention.html#made"' in page
    assert "#| export" not in page
    assert 'class="katex"' in page


def test_every_fault_is_a_warning(tmp_path):
    _, warnings = build(tmp_path, BAD)
    missed = [wanted for wanted in WARNINGS if not re.search(wanted, warnings)]
    assert not missed, warnings


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_examples_in_the_pages_run(path):
    for example in CODE.findall(path.read_text("utf-8")):
        exec(compile(example, str(path), "exec"), {})
