"""What a notebook's cells hold: headings, sections, assertions, numbers for the prose.

Cells are dictionaries, as the notebook's file has them.
"""

import ast
import json
import re

from tools.slices import python_of

HEADING = re.compile(r"^(#{1,6}) +(.+?)\s*$")


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


def place_of(cells, name):
    """Return which of the cells has the id `name`; `KeyError` if none has."""
    for place, cell in enumerate(cells):
        if cell.get("id") == name:
            return place
    raise KeyError(name)


def section_of(cells, place):
    """Return the first and last + 1 of the cells in the section of the cell `place`.

    It goes from the last heading at or before the start of that cell to the next one of
    the same or a higher level.
    """
    marks = [
        (number, line, level)
        for number, cell in enumerate(cells)
        for line, level, _ in headings(cell)
    ]
    before = [mark for mark in marks if mark[:2] <= (place, 0)]
    start, line, level = max(before, default=(0, 0, 1))
    ends = [mark[0] for mark in marks if mark > (start, line, 9) and mark[2] <= level]
    return start, ends[0] if ends else len(cells)


def asserts(cell):
    """Whether a code cell holds an assertion."""
    if cell["cell_type"] != "code":
        return False
    tree = ast.parse(python_of(source(cell)))
    return any(isinstance(node, ast.Assert) for node in ast.walk(tree))


def glued(cells):
    """Return the numbers that outputs offer to the prose: {name: text}."""
    found = {}
    for output in (output for cell in cells for output in cell.get("outputs", [])):
        if record := output.get("metadata", {}).get("scrapbook"):
            text = output["data"][f"{record['mime_prefix']}text/plain"]
            found[record["name"]] = "".join(text)
    return found
