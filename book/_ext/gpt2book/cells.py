"""Notebook cells in the book: each has an anchor, and exported ones say where they go.

The anchor is the cell's id in the notebook: `phase1_components.html#attention-class`.
Links work from any page, `[text](phase1_components.ipynb#attention-class)`, and within
the notebook, `[text](#attention-class)`.
"""

import json
import re
from pathlib import Path

from docutils import nodes
from myst_nb.sphinx_ import HideCodeCellNode
from sphinx.transforms import SphinxTransform
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util import logging

LABELS = {"input": "Code", "all": "Solution"}  # of what hide-input, hide-cell fold away
EXPORT = re.compile(r"#\|\s*export\s+(\w+)")
logger = logging.getLogger(__name__)


def code_cells(document):
    return (n for n in document.findall(nodes.container) if "cell_index" in n)


class CellAnchors(SphinxTransform):
    """Give every cell its id as an anchor; take the `#|` lines out of the code."""

    default_priority = 870  # before MyST resolves links, at 879

    def apply(self):
        path = Path(self.env.doc2path(self.env.docname))
        if path.suffix != ".ipynb":
            return
        self.slugs = dict(getattr(self.document, "myst_slugs", {}))
        cells = json.loads(path.read_text("utf-8"))["cells"]
        ids = [cell.get("id") for cell in cells]
        for node in code_cells(self.document):
            self.take_id(ids[node["cell_index"]], node)
            self.take_directives(node)
            node["prompt_show"] = LABELS.get(node.get("hide_mode"), "Output")
            self.demand_alt_text(node, ids[node["cell_index"]])
        for index, node in self.first_nodes():
            if index < len(cells) and cells[index]["cell_type"] == "markdown":
                self.take_id(ids[index], node)
        self.document.myst_slugs = self.slugs
        self.env.metadata[self.env.docname]["myst_slugs"] = self.slugs

    def first_nodes(self):
        """Yield each cell's index and first node: MyST counts 10,000 lines a cell."""
        seen = set()
        for node in self.document.findall(nodes.Element):
            index = (node.line or 0) // 10_000 - 1
            if index >= 0 and index not in seen:
                seen.add(index)
                yield index, node

    def take_id(self, name, node):
        """Make `name` an anchor of `node`, and a link target."""
        owner = self.document.ids.get(name)
        if owner is not None and owner is not node:  # a heading of that name gives way
            owner["ids"] = [f"{name}-section" if i == name else i for i in owner["ids"]]
            self.document.ids[f"{name}-section"] = owner
            for slug, (line, target, title) in self.slugs.items():
                if target == name:
                    self.slugs[slug] = (line, f"{name}-section", title)
        if isinstance(node, nodes.raw | nodes.comment):
            anchor = nodes.target()
            node.parent.insert(node.parent.index(node), anchor)
            node = anchor
        if name not in node["ids"]:
            node["ids"].append(name)
        self.document.ids[name] = node
        self.slugs[name] = (node.line, name, name)

    def take_directives(self, cell):
        """Move `#| export attention` from the code to the cell's attribute `module`."""
        for block in cell.findall(nodes.literal_block):
            if block.parent.get("nb_element") != "cell_code_source":
                continue
            code = block.astext()
            module = EXPORT.match(code)
            if module:
                cell["module"] = module[1]
                cell["classes"].append("exported")
            code = re.sub(r"\A(#\|.*\n?)+\n*", "", code)
            block.rawsource = code
            block[:] = [nodes.Text(code)]

    def demand_alt_text(self, cell, name):
        for image in cell.findall(nodes.image):
            if not image.get("alt"):
                logger.warning("cell %s: image without alt text", name, location=cell)


class ExportMarks(SphinxPostTransform):
    """Put a line over each exported cell: its module, linked to the source."""

    default_priority = 200  # after myst-nb has folded inputs away, at 199
    formats = ("html",)

    def run(self):
        for cell in list(code_cells(self.document)):
            if module := cell.get("module"):
                cell.insert(0, mark(self, module, cell["ids"][0]))


def mark(transform, module, anchor):
    builder, page = transform.app.builder, transform.env.docname
    uri = builder.get_relative_uri(page, f"gpt2lib/{module}")
    link = nodes.reference("", "", internal=True, refuri=f"{uri}#{anchor}")
    link += nodes.literal("", f"gpt2lib/{module}.py")
    return nodes.paragraph("", "exported to ", link, classes=["export-mark"])


def visit_fold(self, node):
    """Write a fold as the notebooks write theirs: `<details>` and one label."""
    label = self.encode(node["prompt_show"])
    self.body.append(f'<details class="fold"><summary>{label}</summary>\n')


def depart_fold(self, node):
    self.body.append("</details>\n")


def setup(app):
    app.setup_extension("myst_nb")
    app.add_node(HideCodeCellNode, override=True, html=(visit_fold, depart_fold))
    app.add_transform(CellAnchors)
    app.add_post_transform(ExportMarks)
