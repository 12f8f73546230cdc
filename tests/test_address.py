"""`make address`: the repository's address, changed once and stamped elsewhere."""

import shutil
import subprocess
import sys

import pytest
from conftest import ROOT

from tools.address import address, published, stamp

HERE = address(ROOT)  # of a fork, where that has set its own
FORK = f"{HERE.partition('/')[0]}-too/my.book"
OTHERS = "See https://github.com/karpathy/char-rnn and `repository` there."


@pytest.fixture
def fork(tmp_path):
    """Copy what holds an address, with the address of a fork in `_config.yml`."""
    for name in ("README.md", "_config.yml", "CITATION.cff"):
        shutil.copy(ROOT / name, tmp_path)
    templates = ".github/ISSUE_TEMPLATE"
    shutil.copytree(ROOT / templates, tmp_path / templates)
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    config = tmp_path / "_config.yml"
    config.write_text(config.read_text("utf-8").replace(HERE, FORK), "utf-8")
    readme = tmp_path / "README.md"
    readme.write_text(readme.read_text("utf-8") + OTHERS, "utf-8")
    return tmp_path


def test_a_fork_is_told_and_stamped(fork):
    files = {sentence.partition(":")[0] for sentence in stamp(fork, check=True)}
    alone = {"README.md", "CITATION.cff", ".github/ISSUE_TEMPLATE/config.yml"}
    assert alone | {"notebooks/phase0_foundation.ipynb"} <= files
    stamp(fork)
    assert stamp(fork, check=True) == []
    paths = [*(fork / name for name in alone), *fork.glob("notebooks/*.ipynb")]
    for path in paths:
        assert HERE not in path.read_text("utf-8"), path.name
    online = f"[Read it online]({published(FORK)})"
    assert online in (fork / "README.md").read_text("utf-8")


def test_a_fork_passes_these_tests(fork):
    """What CI checks must be green once the address is set and stamped."""
    stamp(fork)
    for name in ("tests", "tools"):
        leave = shutil.ignore_patterns("__pycache__", "mutants")
        shutil.copytree(ROOT / name, fork / name, ignore=leave)
    shutil.copy(ROOT / "pyproject.toml", fork)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += ["tests/test_address.py", "-k", "not passes_these_tests"]
    result = subprocess.run(command, cwd=fork, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def test_where_pages_serves_a_repository():
    assert published("Some-Body/My.Book") == "https://some-body.github.io/My.Book"
    assert published("me/me.github.io") == "https://me.github.io/"


def test_links_to_other_repositories_stay(fork):
    stamp(fork)
    assert (fork / "README.md").read_text("utf-8").endswith(OTHERS)


def test_stamping_again_changes_nothing(fork):
    stamp(fork)
    before = {path: path.read_bytes() for path in fork.rglob("*.*") if path.is_file()}
    assert stamp(fork) == []
    assert all(path.read_bytes() == data for path, data in before.items())


def test_a_setup_cell_without_an_address_is_told(fork):
    path = fork / "notebooks" / "phase0_foundation.ipynb"
    path.write_text(path.read_text("utf-8").replace("repository =", "there ="), "utf-8")
    assert any("setup cell" in sentence for sentence in stamp(fork, check=True))


@pytest.mark.parametrize(
    ("old", "new"), [("github.com", "example.org"), (FORK, f"{FORK}.git")]
)
def test_an_address_that_colab_cannot_open_is_refused(old, new, fork):
    config = fork / "_config.yml"
    config.write_text(config.read_text("utf-8").replace(old, new))
    with pytest.raises(SystemExit, match="OWNER/NAME"):
        stamp(fork)
