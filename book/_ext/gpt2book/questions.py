"""The index of questions: each with its answer, and the way to what carries it.

The directive `{questions}` reads them from the notebooks, where the list under a
heading such as *Questions of this phase* has an entry for each:

    - *Why shift?* Without it the model learns to copy: [the check](#shift-check).

`tests/test_questions.py` holds each to its word: a section that is linked to asserts.
"""

import ast
import json
import re
from dataclasses import dataclass
from pathlib import Path

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

from .library import page_link

HEADING = re.compile(r"^(#{1,6}) +(.+?)\s*$")
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


def read_cells(path):
    return json.loads(path.read_text("utf-8"))["cells"]


def source(cell):
    return "".join(cell["source"])


def headings(cell):
    """Return the headings of a Markdown cell: number of line, level, title."""
    found, fenced = [], False
    if cell["cell_type"] != "markdown":
        return found
    for number, line in enumerate(source(cell).splitlines()):
        fenced ^= line.lstrip().startswith(("```", "~~~"))
        heading = None if fenced else HEADING.match(line)
        if heading:
            found.append((number, len(heading[1]), heading[2]))
    return found


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


def section_of(cells, anchor):
    """Return the cells of the section in which the cell `anchor` stands.

    It goes from the last heading at or before the start of that cell to the next one of
    the same or a higher level. Raises `KeyError` where there is no such cell.
    """
    place = next((n for n, cell in enumerate(cells) if cell.get("id") == anchor), None)
    if place is None:
        raise KeyError(anchor)
    marks = [
        (number, line, level)
        for number, cell in enumerate(cells)
        for line, level, _ in headings(cell)
    ]
    before = [mark for mark in marks if mark[:2] <= (place, 0)]
    start, line, level = max(before, default=(0, 0, 1))
    ends = [mark[0] for mark in marks if mark > (start, line, 9) and mark[2] <= level]
    return cells[start : ends[0] if ends else None]


def asserts(cell):
    """Whether a code cell holds an assertion."""
    if cell["cell_type"] != "code":
        return False
    code = re.sub(r"^(\s*)[%!].*", r"\1pass", source(cell), flags=re.M)
    return any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(code)))


def glued(cells):
    """Return the numbers that outputs offer to the prose: {key: text}."""
    found = {}
    for output in (output for cell in cells for output in cell.get("outputs", [])):
        if record := output.get("metadata", {}).get("scrapbook"):
            text = output["data"][f"{record['mime_prefix']}text/plain"]
            found[record["name"]] = "".join(text)
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
