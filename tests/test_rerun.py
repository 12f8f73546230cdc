"""A reader mends a cell and runs it again: each cell of a phase may run twice.

Not those whose output cannot repeat: training that runs again goes on where it was.
"""

import nbclient
import nbformat
import pytest
from conftest import NOTEBOOKS
from nbformat.v4 import new_code_cell

pytestmark = pytest.mark.slow
PHASES = [path for path in NOTEBOOKS if path.stem.startswith("phase")]


@pytest.mark.parametrize("path", PHASES, ids=lambda path: path.stem)
def test_each_cell_may_run_twice(path, monkeypatch):
    monkeypatch.setenv("GPT2LIB_BOOK", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(path, 4)
    twice = []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            twice.append(cell)
            if "nbval-ignore-output" not in cell.metadata.get("tags", []):
                twice.append(new_code_cell(cell.source, metadata=cell.metadata))
    notebook.cells = twice
    client = nbclient.NotebookClient(
        notebook, timeout=600, resources={"metadata": {"path": path.parent}}
    )
    client.execute()
