"""What several test files share."""

import gc
import warnings
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


# What takes longest starts first, so that no process is left alone with it at the end.
LONGEST = [
    "test_mutants",
    "test_learner",
    "phase6_go_deeper",
    "test_play",
    "test_train",
    "test_explorer",
    "test_gpt2_js",
    "test_site",
    "phase5_debugging_tools",
    "test_jupyterlab",
    "test_sampling_panel",
    "test_generation",
    "phase4_sampling",
    "phase3_language_model",
]


def pytest_collection_modifyitems(items):
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(LONGEST)))


@pytest.fixture(scope="module")
def site():
    from in_browser import built_site

    return built_site()


@pytest.fixture(scope="module")
def server(site):
    from in_browser import served

    with served(site) as address:
        yield address


@pytest.fixture(scope="module")
def cells_leave_nothing():
    """Notebooks' cells run in this module: drop their figures, style and folders."""
    import matplotlib.pyplot as plt

    from tools.mutants import start

    with plt.rc_context():
        yield
    plt.close("all")
    start.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a folder that a cell left to the collector
        gc.collect()
