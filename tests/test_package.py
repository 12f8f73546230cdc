"""The package as people install and import it."""

import subprocess
import sys
import zipfile

import pytest
from conftest import ROOT

import gpt2lib


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    """Build the wheel from a copy of what git tracks, as a user's pip would."""
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    files = subprocess.run(
        ["git", "ls-files", "gpt2lib", "pyproject.toml", "README.md", "LICENSE"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    for name in files:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", str(source)]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return next(folder.glob("*.whl")), files


def test_wheel_holds_every_module_and_asset(wheel):
    path, files = wheel
    assert path.name.startswith(f"gpt2lib-{gpt2lib.__version__}-")
    with zipfile.ZipFile(path) as archive:
        held = set(archive.namelist())
    missing = {name for name in files if name.startswith("gpt2lib/")} - held
    assert not missing


def test_wheel_works_away_from_the_repository(wheel, tmp_path):
    path, _ = wheel
    program = (
        "import gpt2lib, gpt2lib.figures as figures, gpt2lib.language_model as lm;"
        "from gpt2lib.config import GPT2Config;"
        "figures.use_style(); repr(figures.gpt2_map());"
        "lm.GPT2LMHeadModel(GPT2Config(1, 1, 8, 9, 4)); print(gpt2lib.__file__)"
    )
    # Assets are read from a real folder: unpack, as pip does.
    with zipfile.ZipFile(path) as archive:
        archive.extractall(tmp_path / "site")
    result = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path / "site"), "HOME": str(tmp_path), "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert str(tmp_path / "site") in result.stdout


def test_importing_the_model_imports_little_else():
    """Start-up cost is measured in benchmarks/; here we name what must stay out."""
    program = (
        "import sys, torch; before = set(sys.modules); import gpt2lib.language_model;"
        "print(*{name.split('.')[0] for name in set(sys.modules) - before})"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    heavy = {"matplotlib", "transformers", "huggingface_hub", "ipywidgets"}
    assert not heavy & set(result.stdout.split())
