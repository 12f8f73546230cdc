"""What several test files share."""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
HOSTILE = "</SCRIPT><img src=x onerror=window.hit=1>'\"&amp;"


@pytest.fixture
def book(monkeypatch):
    """Make outputs for the book's page, which brings style and script."""
    monkeypatch.setenv("GPT2LIB_BOOK", "1")


@pytest.fixture
def elsewhere(monkeypatch):
    """Make outputs that stand alone."""
    monkeypatch.delenv("GPT2LIB_BOOK", raising=False)


@pytest.fixture(scope="module")
def browser():
    from in_browser import running_browser  # Playwright, for the tests that look

    with running_browser() as browser:
        yield browser


# The longest first, or one process would be left alone with them at the end.
LONGEST = ["test_play", "test_gpt2_js", "test_explorer", "test_site", "test_train"]


def pytest_collection_modifyitems(items):
    def place(item):
        name = item.path.stem
        return LONGEST.index(name) if name in LONGEST else len(LONGEST)

    items.sort(key=place)
