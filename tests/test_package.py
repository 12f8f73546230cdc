"""The package as people install and import it."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

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


# Other Pythons than the one that runs -------------------------------------------------

VERSIONS = ["3.11", "3.12", "3.13"]
COMPILE = (
    "import pathlib, sys\n"
    "print(*sys.version_info[:2], sep='.')\n"
    "for path in map(pathlib.Path, sys.argv[1:]):\n"
    "    compile(path.read_text('utf-8'), path, 'exec')\n"
)


def interpreters(version):
    """Return the Pythons of that version that this machine may have."""
    found = Path.home().glob(f".pyenv/versions/{version}.*/bin/python")
    return [*filter(None, [shutil.which(f"python{version}")]), *found]


@pytest.mark.slow
@pytest.mark.parametrize("version", VERSIONS)
def test_the_library_compiles(version):
    """Without a warning, too: of an escape that will be an error, for one."""
    paths = sorted((ROOT / "gpt2lib").glob("*.py"))
    for python in interpreters(version):
        command = [python, "-W", "error", "-c", COMPILE, *paths]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.stdout.strip() == version:  # one that starts, and is what it says
            assert result.returncode == 0, result.stderr
            return
    pytest.skip(f"this machine has no Python {version}")


@pytest.fixture(scope="session")
def uv(tmp_path_factory):
    """Return a resolver that knows other Pythons, installed in a place of its own."""
    folder = tmp_path_factory.mktemp("uv")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    command = [folder / "bin" / "python", "-m", "pip", "install", "-q", "uv"]
    subprocess.run(command, check=True)
    return folder / "bin" / "uv"


@pytest.mark.slow
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    "file", ["requirements.txt", "requirements-data.txt", "pyproject.toml"]
)
def test_what_is_required_resolves(uv, tmp_path, version, file):
    flags = {"requirements-data.txt": ["--no-deps"], "pyproject.toml": ["--all-extras"]}
    command = [uv, "pip", "compile", "--python-version", version, ROOT / file]
    command += flags.get(file, [])
    result = subprocess.run(
        [*command, "-o", tmp_path / "all.txt"], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert "==" in (tmp_path / "all.txt").read_text("utf-8")
