"""Run notebooks as Colab would: a fresh environment, an empty folder, no repository.

    python tools/colab.py                        all of them
    python tools/colab.py phase0_foundation ...
    python tools/colab.py --keep FOLDER          leave the environment for the next run

The environment holds what Colab brings (torch, NumPy, Matplotlib, a kernel) and a
stand-in for the package `google.colab`, which every Python started in it has imported.
Each notebook is copied alone into a folder of its own. One thing in it is changed: the
repository's address in its set-up cell becomes that of a folder on this disk, where
`archive/refs/heads/main.zip` is a zip of this checkout, as GitHub would make it. So the
cell's own `%pip` lines install the library. After each notebook, what it installed is
taken away again; a package that Colab brings and that has another version then is an
error.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import zipfile
from collections import namedtuple
from pathlib import Path

import nbformat
from jupyter_client import KernelManager
from jupyter_client.kernelspec import KernelSpecManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

ROOT = Path(__file__).resolve().parent.parent
BROUGHT = ["numpy", "matplotlib", "ipykernel"]  # and torch, as requirements.txt caps it
ARCHIVE = "archive/refs/heads/main.zip"
ADDRESS = re.compile(r'(?<=repository = ")https://github\.com/[\w.-]+/[\w.-]+(?=")')
# Of the settings here, those that a package installer may need, and no others.
KEPT = re.compile(r"PATH|LANG|LC_.*|TMPDIR|SSL_.*|PIP_.*|.*_PROXY|OMP_.*|OPENBLAS_.*")

Ran = namedtuple("Ran", "name seconds setup fault")


def archive(folder):
    """Zip what git would hold of the checkout, as it is now; return the address."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, check=True).stdout
    path = folder / ARCHIVE
    path.parent.mkdir(parents=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as held:
        for name in names.decode().split("\0"):
            if name and (ROOT / name).is_file():
                held.write(ROOT / name, f"gpt2-main/{name}")
    return folder.as_uri()


def environment(folder):
    """Make the environment, unless it is there; return its Python."""
    python, made = folder / "bin" / "python", folder / "made"
    if made.exists():  # to its end
        return python
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    wanted = re.findall(r"^torch\b.*", (ROOT / "requirements.txt").read_text(), re.M)
    pip(python, "install", *wanted, *BROUGHT)
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    found = subprocess.run([python, "-c", code], capture_output=True, text=True)
    packages = Path(found.stdout.strip())
    (packages / "google" / "colab").mkdir(parents=True, exist_ok=True)
    (packages / "google" / "colab" / "__init__.py").write_text("")
    (packages / "colab.pth").write_text("import google.colab\n")
    made.touch()
    return python


def pip(python, *words):
    """Call the environment's pip; return what it prints."""
    command = [python, "-m", "pip", "--disable-pip-version-check", *words]
    result = subprocess.run(command, capture_output=True, text=True, env=settings())
    if result.returncode:
        sys.exit(result.stderr)
    return result.stdout


def packages(python):
    """Return {name: version} of what the environment holds."""
    listed = json.loads(pip(python, "list", "--format=json"))
    return {package["name"]: package["version"] for package in listed}


def settings():
    return {name: value for name, value in os.environ.items() if KEPT.fullmatch(name)}


class Kernels(KernelSpecManager):
    """Knows one kernel: that of the environment whose Python is `python`."""

    def get_kernel_spec(self, name):
        argv = [str(self.python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        return self.kernel_spec_class(argv=argv, display_name=name, language="python")


def moved(path, address):
    """Return the notebook at `path` with another address in its set-up cell."""
    notebook = nbformat.read(path, as_version=4)
    cell = next(cell for cell in notebook.cells if cell.id == "setup")
    cell.source, count = ADDRESS.subn(lambda _: address, cell.source)
    assert count == 1, f"{path.name}: its setup cell holds {count} addresses, not one"
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    return notebook


def run(path, python, address, folder):
    """Run a notebook from top to bottom in an empty folder; return how it went."""
    notebook = moved(path, address)
    folder.mkdir(parents=True)
    nbformat.write(notebook, folder / path.name)
    kernels = Kernels()
    kernels.python = python
    manager = KernelManager(kernel_name="colab", kernel_spec_manager=kernels)
    times = {}

    def note(cell, cell_index, execute_reply):
        times[cell.id] = time.perf_counter()

    client = NotebookClient(notebook, km=manager, timeout=900, on_cell_executed=note)
    start, fault = time.perf_counter(), ""
    try:
        client.execute(cwd=str(folder), env=settings() | {"HOME": str(folder.parent)})
    except CellExecutionError as error:
        fault = re.sub(r"\x1b\[[\d;]*m", "", str(error))
    finally:
        manager.shutdown_kernel(now=True)
    seconds = time.perf_counter() - start
    return Ran(path.name, seconds, times.get("setup", start) - start, fault)


def imitate(paths, folder, kept=None):
    """Yield how each notebook went, in an environment in `folder`, or in `kept`."""
    address, python = archive(folder / "gpt2"), environment((kept or folder) / "colab")
    before = packages(python)
    for path in paths:
        ran = run(path, python, address, folder / "content" / path.stem)
        after = packages(python)
        replaced = [
            f"{name} {version} became {after.get(name)}"
            for name, version in before.items()
            if after.get(name) != version
        ]
        if replaced:
            ran = ran._replace(fault="\n".join([ran.fault, *replaced]).strip())
        yield ran
        if new := set(after) - set(before):
            pip(python, "uninstall", "-y", *sorted(new))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebooks", nargs="*", help="names, without a suffix")
    parser.add_argument("--keep", type=Path, metavar="FOLDER")
    given = parser.parse_args()
    paths = sorted((ROOT / "notebooks").glob("*.ipynb"))
    if given.notebooks:
        paths = [path for path in paths if path.stem in given.notebooks]
    faults = []
    with tempfile.TemporaryDirectory() as folder:
        for ran in imitate(paths, Path(folder), given.keep):
            told = f"{ran.seconds:.0f} s, of which {ran.setup:.0f} s to install"
            print(f"{ran.name}: {told}", flush=True)
            faults += [f"{ran.name}: {ran.fault}"] if ran.fault else []
    sys.exit("\n\n".join(faults) or 0)


if __name__ == "__main__":
    main()
