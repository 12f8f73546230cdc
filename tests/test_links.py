"""Links of the Markdown that is read on GitHub alone: Sphinx does not see them."""

import re

import pytest
from conftest import ROOT

FILES = [*ROOT.glob("*.md"), *ROOT.glob(".github/**/*.md")]


def dead_links(path):
    """Return what the file links to, beside it, and what is not there."""
    links = re.findall(r"\]\(([^)\s#]+)[^)]*\)", path.read_text("utf-8"))
    own = [link for link in links if not re.match(r"\w+:", link)]
    return [link for link in own if not (path.parent / link).exists()]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    assert dead_links(path) == []


def test_a_dead_link_is_found(tmp_path):
    path = tmp_path / "README.md"
    path.write_text("[a](README.md#one) [b](no.md) [c](https://e.org/f) [d](no/e#f)")
    assert dead_links(path) == ["no.md", "no/e"]
