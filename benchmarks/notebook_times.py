"""Time every notebook from a fresh kernel to its last cell; nothing is stored in them.

    python benchmarks/notebook_times.py                    all, minutes on two cores
    python benchmarks/notebook_times.py phase0_foundation  one; results are left alone

A notebook runs as JupyterLab would run it, in its own folder, without the environment
variable of the book. `seconds` has every run, the start of the kernel included.
"""

import argparse
import json
import os
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from side_by_side import describe_machine

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "benchmarks" / "results" / "notebooks.json"


def seconds(path):
    """Return how long the notebook at `path` takes from a fresh kernel."""
    notebook = nbformat.read(path, as_version=4)
    where = {"metadata": {"path": str(path.parent)}}
    client = NotebookClient(notebook, timeout=600, resources=where)
    start = time.perf_counter()
    client.execute()
    return time.perf_counter() - start


def measure(path, runs):
    code = [
        c for c in nbformat.read(path, as_version=4).cells if c["cell_type"] == "code"
    ]
    found = {"code_cells": len(code), "seconds": [seconds(path) for _ in range(runs)]}
    print(f"{path.stem}: {min(found['seconds']):.1f} s at best", flush=True)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="all, if none is named")
    parser.add_argument("--runs", type=int, default=1, help="default: 1")
    parser.add_argument(
        "--out", type=Path, help="default: in results/, if none is named"
    )
    args = parser.parse_args()
    os.environ.pop("GPT2LIB_BOOK", None)
    paths = {path.stem: path for path in sorted(ROOT.glob("notebooks/*.ipynb"))}
    if unknown := set(args.names) - set(paths):
        parser.error(f"no notebook {', '.join(unknown)}; there are {', '.join(paths)}")
    results = {
        "machine": describe_machine(),
        "command": "python benchmarks/notebook_times.py",
        "load_before": round(os.getloadavg()[0], 2),
        "notebooks": {
            name: measure(paths[name], args.runs) for name in args.names or paths
        },
    }
    if args.out or not args.names:
        (args.out or OUT).write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
