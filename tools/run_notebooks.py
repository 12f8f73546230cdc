"""Run notebooks from a fresh kernel and store their outputs, clean enough for git.

    python tools/run_notebooks.py                       all of them
    python tools/run_notebooks.py notebooks/phase1.ipynb ...

Outputs are made in book mode (`GPT2LIB_BOOK=1`): interactive figures store their
state, and the site brings the script. Widget state is never stored. A rerun changes
nothing in git but the outputs of cells tagged `nbval-ignore-output`.
"""

import argparse
import os
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbdev.clean import clean_nb

ROOT = Path(__file__).resolve().parent.parent
KEPT = {
    "allowed_cell_metadata_keys": ["tags", "mystnb", "learner"],
    "allowed_out_metadata_keys": ["scrapbook"],
}


def run(path):
    """Execute the notebook at `path` in place."""
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=600,
        coalesce_streams=True,  # or one print is stored in as many parts as it came
        resources={"metadata": {"path": str(path.parent)}},
    )
    client.execute()
    describe(notebook)
    clean(notebook)
    nbformat.write(notebook, path)


def describe(notebook):
    """Give the book the words of figures that describe themselves, as alt text."""
    for cell in notebook["cells"]:
        for output in cell.get("outputs", []):
            alt = output.get("metadata", {}).get("image/svg+xml", {}).get("alt")
            if alt:
                cell["metadata"].setdefault("mystnb", {})["image"] = {"alt": alt}


def clean(notebook):
    """Drop what differs from run to run and what the book must not hold."""
    clean_nb(notebook, clean_ids=False, **KEPT)
    notebook["metadata"].pop("widgets", None)
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for number, cell in enumerate(code, start=1):  # as a fresh kernel counts
        cell["execution_count"] = number
        for output in cell["outputs"]:
            if output["output_type"] == "execute_result":
                output["execution_count"] = number


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebooks", nargs="*", type=Path)
    chosen = parser.parse_args().notebooks
    os.environ["GPT2LIB_BOOK"] = "1"
    for path in chosen or sorted((ROOT / "notebooks").glob("*.ipynb")):
        start = time.perf_counter()
        try:
            run(path)
        except CellExecutionError as error:
            sys.exit(f"{path.name}: {error}")
        print(f"{path.name}: {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
