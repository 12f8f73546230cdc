"""Run notebooks from a fresh kernel and store their outputs, clean enough for git.

    python tools/run_notebooks.py                       all of them
    python tools/run_notebooks.py notebooks/phase1.ipynb ...
    python tools/run_notebooks.py --changed             those that a change concerns

A change concerns a notebook if its code differs from git's, or that of a module which
it imports, directly or through others.

Outputs are made in book mode (`GPT2LIB_BOOK=1`): interactive figures store their
state, and the site brings the script. Widget state is never stored. A rerun changes
nothing in git but the outputs of cells tagged `nbval-ignore-output`.
"""

import argparse
import ast
import os
import subprocess
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbdev.clean import clean_nb

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tools.slices import python_of  # noqa: E402

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


# --- Which notebooks a change concerns


def modules_in(source):
    """Return the names of the library's modules that some Python imports."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            stem = ("gpt2lib." if node.level else "") + (node.module or "")
            whole = stem.rstrip(".") == "gpt2lib"  # from gpt2lib import block
            names = [f"gpt2lib.{a.name}" for a in node.names] if whole else [stem]
        else:
            continue
        found |= {n.split(".")[1] for n in names if n.startswith("gpt2lib.")}
    return found


def code_of(text):
    """Return the code of a notebook's file, one string."""
    cells = nbformat.reads(text, as_version=4).cells
    return "\n".join(python_of(c.source) for c in cells if c.cell_type == "code")


def concerned(notebooks, modules, changed):
    """Return the names of notebooks that changed or import what did.

    `notebooks` and `modules` map a name to its Python, as it is now; `changed` holds
    the names of those whose Python differs from before.
    """
    reaches = {name: modules_in(source) for name, source in modules.items()}

    def stale(names, seen=frozenset()):
        names = names - seen
        return bool(names & changed) or any(
            stale(reaches.get(name, set()), seen | names) for name in names
        )

    return [
        name
        for name, source in notebooks.items()
        if name in changed or stale(modules_in(source))
    ]


def changed_since_commit():
    """Return the paths of the notebooks that the changes since HEAD concern."""

    def before(path):
        name = path.relative_to(ROOT).as_posix()
        show = ["git", "-C", ROOT, "show", f"HEAD:{name}"]
        return subprocess.run(show, capture_output=True, text=True).stdout

    paths = sorted((ROOT / "notebooks").glob("*.ipynb"))
    notebooks = {path.stem: code_of(path.read_text("utf-8")) for path in paths}
    files = sorted((ROOT / "gpt2lib").glob("*.py"))
    modules = {path.stem: path.read_text("utf-8") for path in files}
    changed = {path.stem for path in files if before(path) != modules[path.stem]}
    for path in paths:
        old = before(path)
        if not old or code_of(old) != notebooks[path.stem]:
            changed.add(path.stem)
    names = concerned(notebooks, modules, changed)
    return [path for path in paths if path.stem in names]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebooks", nargs="*", type=Path)
    parser.add_argument(
        "--changed", action="store_true", help="those that changes since HEAD concern"
    )
    given = parser.parse_args()
    chosen = given.notebooks or sorted((ROOT / "notebooks").glob("*.ipynb"))
    if given.changed:
        chosen = changed_since_commit()
        print(f"{len(chosen)} of the notebooks are concerned by what changed")
    os.environ["GPT2LIB_BOOK"] = "1"
    for path in chosen:
        start = time.perf_counter()
        try:
            run(path)
        except CellExecutionError as error:
            sys.exit(f"{path.name}: {error}")
        print(f"{path.name}: {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
