"""The page of changes says what the exported modules hold, and follows them."""

import ast
import json
import re
import subprocess
import sys
from collections import Counter

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "book" / "_ext"))
from gpt2book.changes import phases
from gpt2book.library import public_names

CONFIG = f"""
import sys
sys.path.insert(0, {str(ROOT / "book" / "_ext")!r})
extensions = ["myst_nb", "gpt2book.library", "gpt2book.changes"]
html_theme = "basic"
nb_execution_mode = "off"
nb_ipywidgets_js = {{}}
exclude_patterns = ["notebooks"]
"""
HEAD = '''"""{doc}"""

__all__ = {names}

# %% ../notebooks/{notebook}.ipynb #head
'''
LIBRARY = {
    "parts": (
        "phase1_parts",
        ["Part", "wire"],
        """
class Part(Module):
    '''A part.

    More of it.
    '''

    def __init__(self, size: int = 3):
        self.size = size

    def forward(self, x, *, cache=None, mask=None):
        return x

# %% ../notebooks/phase1_parts.ipynb #wire
def wire(part: Part, *, colour="red"):
    '''Join.'''
    from gpt2lib.extra import Extra

    return Extra(part)
""",
    ),
    "whole": (
        "phase2_whole",
        ["Whole"],
        """
from gpt2lib.parts import Part, wire as join

class Whole(Module):
    '''All parts.'''

    def forward(self, x, *, cache=None):
        return self.part(x, cache=cache, mask=None)

def _helper(part):
    return join(part, colour="blue")
""",
    ),
    "extra": (
        "phase3_extra",
        ["Extra", "SIZES"],
        """
from .whole import Whole

SIZES = {"small": 1, "large": 2}

class Extra:
    '''What comes late.'''

    def run(self, x):
        model = Whole()
        return model(x, cache=self)
""",
    ),
}


def write_library(root):
    """Write a library of three modules, by three notebooks, into the folder `root`."""
    (root / "gpt2lib").mkdir()
    (root / "notebooks").mkdir()
    for module, (notebook, names, code) in LIBRARY.items():
        head = HEAD.format(doc=f"Of {module}.", names=names, notebook=notebook)
        (root / "gpt2lib" / f"{module}.py").write_text(head + code, "utf-8")
        title = (
            f"# {notebook}\n\nAt the end of this notebook you can see [it](#head).\n"
        )
        cell = {"id": "title", "cell_type": "markdown", "metadata": {}, "source": title}
        page = {"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
        path = root / "notebooks" / f"{notebook}.ipynb"
        path.write_text(json.dumps(page), "utf-8")


@pytest.fixture
def library(tmp_path):
    write_library(tmp_path)
    return tmp_path


def used(found):
    return [(use.name.name, [name for _, name, _ in use.users]) for use in found]


def told(found):
    return [
        (
            seam.arguments,
            [name.name for _, name in seam.owners],
            [name for _, name, _ in seam.givers],
        )
        for seam in found
    ]


def test_what_each_phase_adds_uses_and_leaves_open(library):
    first, second, third = phases(library)
    assert [name.name for _, name in first.names] == ["Part", "wire"]
    assert first.lines == 12
    assert (used(first.uses), used(first.awaits)) == ([], [("Extra", ["wire"])])
    assert used(second.uses) == [("Part", []), ("wire", ["_helper"])]
    assert used(third.uses) == [("Whole", ["Extra"])]
    # `Whole` hands `cache` on, so only `Extra` gives it; `mask` and `colour` it gives.
    cache, mask = (["cache"], ["Part"], ["Extra"]), (["mask"], ["Part"], ["Whole"])
    colour = (["colour"], ["wire"], ["_helper"])
    assert sorted(told(first.opens)) == sorted([cache, mask, colour])
    assert sorted(told(second.closes)) == sorted([mask, colour])
    assert told(second.opens) == [(["cache"], ["Whole"], ["Extra"])]
    assert told(third.closes) == [cache, (["cache"], ["Whole"], ["Extra"])]


def test_the_cache_of_this_book_waits_for_generation():
    every = {one.notebook.rpartition("/")[2][:6]: one for one in phases(ROOT)}
    waiting = [s for s in every["phase1"].opens if s.arguments == ["cache"]]
    assert [seam.of(givers=True) for seam in waiting] == [every["phase4"].notebook]
    assert waiting[0] in every["phase4"].closes
    assert "KVCache" in dict(used(every["phase4"].awaits))
    assert "RotaryEmbedding" in dict(used(every["phase1"].awaits))


def test_each_public_name_is_new_once():
    public = Counter(
        f"{path.stem}.{name}"
        for path in (ROOT / "gpt2lib").glob("*.py")
        for name in public_names(ast.parse(path.read_text("utf-8")))
    )
    new = (f"{m.name}.{n.name}" for one in phases(ROOT) for m, n in one.names)
    assert Counter(new) == public
    assert set(public.values()) == {1}
    assert len(public) > 90


def build(root):
    """Build the page of changes of the library in the folder `root`; return it."""
    (root / "conf.py").write_text(CONFIG, "utf-8")
    (root / "index.md").write_text("# Changes\n\n```{changes}\n```\n", "utf-8")
    command = [sys.executable, "-m", "sphinx", "-q", "-E", root, root / "out"]
    subprocess.run(command, capture_output=True, check=True)
    return (root / "out" / "index.html").read_text("utf-8")


def test_the_page_follows_the_library(library):
    before = build(library)
    assert re.findall(r'<dt id="new-([\w.]+)"', before) == [
        "parts.Part",
        "parts.wire",
        "whole.Whole",
        "extra.SIZES",
        "extra.Extra",
    ]
    text = re.sub(r"<[^>]+>", "", before)
    assert "Part(size=3)" in text
    assert "A part." in text
    assert "More of it." not in text
    assert "By its end you can see it." in text
    assert "A table of 2 entries." in text
    path = library / "gpt2lib" / "whole.py"
    code = path.read_text("utf-8").replace("['Whole']", "['Whole', 'half']")
    path.write_text(f"{code}\ndef half(x):\n    '''A half.'''\n", "utf-8")
    extra = (library / "gpt2lib" / "extra.py").read_text("utf-8")
    more = extra.replace("SIZES", "LIMITS").replace("Extra", "More")
    (library / "gpt2lib" / "more.py").write_text(more, "utf-8")
    after = re.findall(r'<dt id="new-([\w.]+)"', build(library))
    assert set(after) == {
        *re.findall(r'<dt id="new-([\w.]+)"', before),
        "whole.half",
        "more.More",
        "more.LIMITS",
    }


def test_the_page_of_this_book_lists_each_name_once_and_links_it(site):
    page = (site / "book" / "changes.html").read_text("utf-8")
    new = re.findall(r'<dt id="new-([\w.]+)">(.*?)</dt>', page, re.DOTALL)
    wanted = {
        f"{module.name}.{name.name}": f"../{module.notebook}.html#{name.cell}"
        for one in phases(ROOT)
        for module, name in one.names
    }
    assert [name for name, _ in new] == list(wanted)
    for name, term in new:
        assert f'href="{wanted[name]}"' in term, name
