"""The Sphinx extension of this book's site.

- `maths`     formulas become HTML and MathML when the book is built
- `cells`     every notebook cell can be linked to; exported cells say where they go
- `library`   the page of public names and the source of each module
- `mirror`    the model in JavaScript beside the Python that it mirrors
- `drawing`   the map of GPT-2, with links
- `numbers`   what was measured, each number with its command
- `questions` the index of questions, each with its answer and its experiment
- `changes`   what each phase adds to the library
- `progress`  ticks for finished sections
- `workbook`  what there is to write in the workbook, and what its checks catch
- `pages`     scripts, style sheets, the trained model, mends of the finished pages
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[3]))  # of tools/

from . import (
    cells,
    changes,
    drawing,
    library,
    maths,
    mirror,
    numbers,
    pages,
    progress,
    questions,
    workbook,
)

PARTS = (maths, cells, library, mirror, drawing, questions, changes, numbers, progress)


def setup(app):
    for part in (*PARTS, workbook, pages):
        part.setup(app)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
