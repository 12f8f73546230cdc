"""The index of questions: each with its answer, and the way to what carries it.

The directive `{questions}` reads them from the notebooks, where the list under a
heading such as *Questions of this phase* has an entry for each:

    - *Why shift?* Without it the model learns to copy: [the check](#shift-check).

`tests/test_questions.py` holds each to its word: a section that is linked to asserts.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

from tools.sections import glued, headings, read_cells, source

from .library import page_link

LISTED = re.compile(r"Questions of this (phase|appendix)")
ENTRY = re.compile(r"- \*(?P<question>[^*]+\?)\* +(?P<answer>\S.*)", re.DOTALL)
LINK = re.compile(r"\]\((?P<page>[^)#\s]*)#(?P<anchor>[\w-]+)\)")
ANY_LINK = re.compile(r"\]\((?P<page>[\w./]*\.(?:ipynb|md)|)(?P<anchor>#[\w-]+|)\)")
GLUE = re.compile(r"\{glue:text\}`(?P<key>[^`:]+)[^`]*`")


@dataclass(frozen=True)
class Question:
    """One entry of a list: `answer` is Markdown, `links` are (notebook, cell id)."""

    notebook: str  # the stem, such as phase1_components
    text: str
    answer: str
    links: tuple


def entries(cells):
    """Yield the entries under the heading of the questions, each as its text."""
    for cell in cells:
        marks = headings(cell)
        for mark, (start, level, title) in enumerate(marks):
            if not LISTED.fullmatch(title):
                continue
            ends = [line for line, other, _ in marks[mark + 1 :] if other <= level]
            lines = source(cell).splitlines()[start + 1 : ends[0] if ends else None]
            yield from re.split(r"^(?=- )", "\n".join(lines), flags=re.M)


def questions_of(path):
    """Return the questions of the notebook at `path`; `ValueError` for another form."""
    found = []
    for entry in filter(str.strip, entries(read_cells(path))):
        match = ENTRY.fullmatch(entry.strip())
        if not match:
            raise ValueError(
                f"{path.name}: a question is '- *Question?* Answer: [words](#cell).', "
                f"not {entry.strip()!r}"
            )
        links = [
            (link["page"].removesuffix(".ipynb") or path.stem, link["anchor"])
            for link in LINK.finditer(match["answer"])
        ]
        found.append(
            Question(path.stem, *match.group("question", "answer"), tuple(links))
        )
    return found


def to_this_folder(text, notebook):
    """Return Markdown of a notebook with its links as a page in `book/` writes them."""

    def link(found):
        page, anchor = found["page"] or f"{notebook}.ipynb", found["anchor"]
        return f"](../notebooks/{page}{anchor})"

    return ANY_LINK.sub(link, text)


def with_numbers(text, numbers):
    """Return Markdown with the text of each output that it quotes in its place."""
    return GLUE.sub(lambda found: numbers[found["key"]], text)


def notebooks(root):
    """Return the notebooks that ask: the phases in order, then the appendices."""
    return [
        path
        for kind in ("phase", "appendix")
        for path in sorted((root / "notebooks").glob(f"{kind}*.ipynb"))
        if questions_of(path)
    ]


class Questions(SphinxDirective):
    """`{questions}`: a section for each notebook, an entry for each question."""

    def run(self):
        return [self.section(path) for path in notebooks(Path(self.env.srcdir))]

    def section(self, path):
        self.env.note_dependency(str(path))
        cells = read_cells(path)
        title = headings(cells[0])[0][2]
        name = f"questions-{path.stem.replace('_', '-')}"
        section = nodes.section(ids=[name], names=[name])
        link = page_link(f"notebooks/{path.stem}", "", title, self.env)
        section += nodes.title("", "", link)
        self.state.document.note_explicit_target(section)
        listed, numbers = nodes.definition_list(classes=["questions"]), glued(cells)
        for question in questions_of(path):
            answer = with_numbers(to_this_folder(question.answer, path.stem), numbers)
            term = nodes.term("", "", *self.parse_inline(question.text)[0])
            body = nodes.definition("", *self.parse_text_to_nodes(answer))
            listed += nodes.definition_list_item("", term, body)
        section += listed
        return section


def setup(app):
    app.add_directive("questions", Questions)
