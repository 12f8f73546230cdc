"""The page of the workbook: what there is to write, and what its checks catch.

- `{workbooks}`   the notebooks of `learner/`, their exercises and minutes
- `{mutants}`     the mistakes that the checks were run against, phase by phase
- `{mutation}`    how many changes at random they noticed, module by module

All are read from `gpt2lib/static/workbook.json` and `benchmarks/results/`.
"""

import json
from pathlib import Path

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

from .library import page_link

LIST = "gpt2lib/static/workbook.json"
MUTANTS = "benchmarks/results/mutants.json"
MUTATION = "benchmarks/results/mutation.json"


def table(heads, widths, rows, classes=()):
    """Return a table with a head; each cell is a list of paragraphs."""
    group = nodes.tgroup(cols=len(heads))
    group += [nodes.colspec(colwidth=width) for width in widths]
    head, body = nodes.row(), nodes.tbody()
    head += [nodes.entry("", nodes.paragraph(text, text)) for text in heads]
    group += nodes.thead("", head)
    for cells in rows:
        row = nodes.row()
        row += [nodes.entry("", *cell) for cell in cells]
        body += row
    group += body
    return nodes.table("", group, classes=list(classes))


class _Listed(SphinxDirective):
    """What the directives share: a file, and the names of its phases."""

    def read(self, file):
        self.env.note_dependency(file)
        return json.loads((Path(self.env.srcdir) / file).read_text("utf-8"))

    def phase(self, stem):
        """Return a link to the notebook of a phase, which shows its title."""
        return page_link(f"notebooks/{stem}", "", "", self.env)


class Workbooks(_Listed):
    """`{workbooks}`: a row for each notebook of the workbook."""

    def run(self):
        address = self.config.html_theme_options["repository_url"]
        name = address.removeprefix("https://github.com/")
        colab = f"https://colab.research.google.com/github/{name}/blob/main/learner"
        rows = []
        for stem, found in self.read(LIST).items():
            minutes = sum(one["minutes"] for one in found)
            opened = nodes.reference(
                "", "open in Colab", refuri=f"{colab}/{stem}.ipynb"
            )
            numbers = [nodes.Text(str(number)) for number in (len(found), minutes)]
            cells = (self.phase(stem), *numbers, opened)
            rows.append([[nodes.paragraph("", "", cell)] for cell in cells])
        heads = ("notebook", "exercises", "minutes, about", "workbook")
        return [table(heads, (4, 2, 2, 3), rows)]


class Mutants(_Listed):
    """`{mutants}`: a section for each phase, a row for each mistake."""

    def run(self):
        phases = {}
        for row in self.read(MUTANTS)["mutants"]:
            phases.setdefault(row["phase"], []).append(row)
        return [self.section(stem, rows) for stem, rows in phases.items()]

    def section(self, stem, rows):
        name = f"mistakes-{stem.replace('_', '-')}"
        section = nodes.section(ids=[name], names=[name])
        title = f"{stem.split('_')[0].replace('phase', 'Phase ')}: {len(rows)} mistakes"
        section += nodes.title(title, title)
        self.state.document.note_explicit_target(section)
        heads = (
            "the mistake, and its cell",
            "what the check says, and which it is",
        )
        cells = [[self.told(stem, row, *pair) for pair in PAIRS] for row in rows]
        section += table(heads, (1, 1), cells, ["mistakes"])
        return section

    def told(self, stem, row, said, cell):
        """Return what was done or said, and below it the cell that it is about."""
        link = page_link(f"notebooks/{stem}", row[cell], row[cell], self.env)
        place = nodes.paragraph("", "", link, classes=["made-in"])
        return [nodes.paragraph(row[said], row[said]), place]


class Mutation(_Listed):
    """`{mutation}`: what became of spots that were changed at random, and a table."""

    def run(self):
        found = self.read(MUTATION)
        everything = found["all"]
        said = (
            f"Of {found['spots']:,} spots, {everything['mutations']} were drawn and "
            f"changed. {everything['equivalent']} of the changes cannot matter: "
            "`tests/mutants/equivalent.toml` says why. Of the others the checks "
            f"noticed {everything['share killed']:.1%}. "
            f"Measured by `{found['command']}`."
        )
        rows = []
        for module, counts in found["modules"].items():
            able = counts["mutations"] - counts["equivalent"]
            noticed = counts["killed"] + counts["out of time"]
            words = (f"gpt2lib.{module}", str(able), str(noticed))
            rows.append([[nodes.paragraph(word, word)] for word in words])
        heads = ("module", "changes that matter", "noticed")
        return [*self.parse_text_to_nodes(said), table(heads, (3, 2, 2), rows)]


PAIRS = (("mistake", "cell"), ("message", "check"))


def setup(app):
    app.add_directive("workbooks", Workbooks)
    app.add_directive("mutants", Mutants)
    app.add_directive("mutation", Mutation)
