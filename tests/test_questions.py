"""The index of questions: what the book set out to answer, and what carries each."""

import json
import sys

import pytest
from conftest import NOTEBOOKS, ROOT

sys.path.insert(0, str(ROOT / "book" / "_ext"))
from gpt2book.questions import (
    notebooks,
    questions_of,
    to_this_folder,
    with_numbers,
)

from tools.sections import asserts, glued, place_of, read_cells, section_of

# What the book is for; each must be asked in these words.
HEART = [
    "How does masking enforce autoregression?",
    "LayerNorm before or after?",
    "Why learned positions, and what does that imply for generalisation?",
    "Why shift?",
    "How does causal masking affect generation in practice?",
    "Temperature: why does it matter?",
]
QUESTIONS = [question for path in notebooks(ROOT) for question in questions_of(path)]


def test_each_phase_asks():
    asking = [path.stem[:6] for path in notebooks(ROOT)]
    assert asking[:7] == [f"phase{number}" for number in range(7)]


@pytest.mark.parametrize("question", HEART)
def test_the_heart_of_the_book_is_asked_in_these_words(question):
    assert [asked.text for asked in QUESTIONS].count(question) == 1


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda q: q.text)
def test_each_answer_leads_to_a_section_that_asserts(question):
    assert question.links, f"{question.notebook}: {question.text} leads nowhere"
    for notebook, anchor in question.links:
        cells = read_cells(ROOT / "notebooks" / f"{notebook}.ipynb")
        first, last = section_of(cells, place_of(cells, anchor))
        assert any(map(asserts, cells[first:last])), (
            f"{question.notebook}: the answer to {question.text!r} leads to "
            f"{notebook}#{anchor}, and no cell of that section asserts anything"
        )


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_numbers_in_answers_are_at_hand(path):
    numbers = glued(read_cells(path))
    for question in questions_of(path):
        assert "{glue" not in with_numbers(question.answer, numbers)


# The parts of the check ----------------------------------------------------


def cells(*sources):
    """Return cells named a, b, c...: code if they begin with a space."""
    return [
        {
            "id": "abcdefgh"[n],
            "cell_type": "code" if source.startswith(" ") else "markdown",
            "source": source.removeprefix(" "),
        }
        for n, source in enumerate(sources)
    ]


BOOK = cells(
    "# Title",
    " assert 0",
    "## One\n\nText.",
    " x = 1",
    "Text.\n\n### Deeper\n\nMore.",
    " assert x",
    "```\n## not a heading\n```",
    "## Two",
)


@pytest.mark.parametrize(
    ("anchor", "section"),
    [("a", "abcdefgh"), ("c", "cdefg"), ("e", "cdefg"), ("f", "efg"), ("h", "h")],
)
def test_a_section_ends_at_the_next_heading_of_its_rank(anchor, section):
    first, last = section_of(BOOK, place_of(BOOK, anchor))
    assert "".join(cell["id"] for cell in BOOK[first:last]) == section


def test_a_cell_that_is_not_there_has_no_place():
    with pytest.raises(KeyError, match="nowhere"):
        place_of(BOOK, "nowhere")


@pytest.mark.parametrize(
    ("source", "found"),
    [
        (" assert x", True),
        (" def check():\n    assert x", True),
        (" %pip list\nassert x", True),
        (" # assert x", False),
        (" say('assert x')", False),
        ("assert x", False),
    ],
)
def test_an_assertion_is_a_statement_of_code(source, found):
    assert asserts(cells(source)[0]) is found


@pytest.fixture
def notebook(tmp_path):
    def write(source):
        path = tmp_path / "phase9_none.ipynb"
        path.write_text(json.dumps({"cells": cells(source)}), "utf-8")
        return path

    return write


def test_entries_are_read_with_their_links(notebook):
    path = notebook(
        "## What you built\n\n- *No question.*\n\n## Questions of this phase\n\n"
        "- *Why?* For [one](#a)\n  and [two](phase1_b.ipynb#c-d).\n"
        "- *How?* So: [it](#e).\n\n## Exercises\n\n- *Nor this?* No."
    )
    first, second = questions_of(path)
    assert first.text == "Why?"
    assert first.links == (("phase9_none", "a"), ("phase1_b", "c-d"))
    assert (second.text, second.answer) == ("How?", "So: [it](#e).")


@pytest.mark.parametrize("entry", ["- Why? So.", "- *Why* So.", "Why?", "- *Why?*"])
def test_another_form_is_refused(notebook, entry):
    with pytest.raises(ValueError, match=r"phase9_none.ipynb: a question is"):
        questions_of(notebook(f"## Questions of this phase\n\n{entry}"))


def test_links_and_numbers_are_rewritten_for_the_page():
    text = to_this_folder("[a](#b), [c](phase1_d.ipynb#e), [f](../book/g.md)", "phase0")
    assert text == (
        "[a](../notebooks/phase0.ipynb#b), [c](../notebooks/phase1_d.ipynb#e), "
        "[f](../notebooks/../book/g.md)"
    )
    assert with_numbers("{glue:text}`gap:.2f` off", {"gap": "0.5"}) == "0.5 off"
    with pytest.raises(KeyError, match="none"):
        with_numbers("{glue:text}`none`", {})
