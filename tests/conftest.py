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
