"""The map of GPT-2 on a page: the drawing of `gpt2lib.figures`, its parts made links.

    ```{gpt2-map}
    attention: attention.MultiHeadSelfAttention
      Each position gathers what it needs from the positions before it.
    sampling:
      Draws the next token from the logits. Comes with Phase 4.
    ```

Each part of the content becomes a link in the drawing, to the cell that defines the
name, and an entry of the list below it. With `:bare:` the list is left out.
"""

import re
from pathlib import Path

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

from .library import modules, page_link, source_link

logger = logging.getLogger(__name__)


class drawing(nodes.General, nodes.Element):
    """Where the drawing goes; `targets` holds a page and an anchor for each part."""


class Map(SphinxDirective):
    has_content = True
    option_spec = {"bare": directives.flag}  # noqa: RUF012 (docutils' way)

    def run(self):
        parts = self.read_parts()
        cells = {
            f"{module.name}.{name.name}": (module, name)
            for module in modules(Path(self.env.srcdir))
            for name in module.names
        }
        targets, entries = {}, nodes.definition_list(classes=["map-parts"])
        for part, (name, text) in parts.items():
            if name and name not in cells:
                raise self.error(f"{part}: gpt2lib has no {name}")
            links = []
            if name:
                module, found = cells[name]
                targets[part] = (module.notebook, found.cell)
                links = self.links(module, found)
            label = re.sub(r"_|(?=\d)", " ", part)
            term = nodes.term("", label, ids=[f"part-{part}"])
            body = nodes.definition("", *self.parse_text_to_nodes(text), *links)
            entries += nodes.definition_list_item("", term, body)
        found = drawing(targets=targets)
        return [found] if "bare" in self.options else [found, entries]

    def read_parts(self):
        """Return {part: (name or "", description)}."""
        parts = {}
        for line in self.content:
            if line and not line[0].isspace():
                part, _, name = line.partition(":")
                parts[part] = (name.strip(), "")
            elif line.strip():
                part, (name, text) = parts.popitem()
                parts[part] = (name, f"{text} {line.strip()}".strip())
        return parts

    def links(self, module, found):
        links = nodes.paragraph(classes=["made-in"])
        full = f"gpt2lib.{module.name}.{found.name}"
        links += nodes.literal(full, full)
        for link in (
            page_link(module.notebook, found.cell, "the cell that builds it", self.env),
            source_link(module.name, found.cell, "source"),
        ):
            links += [nodes.Text(" · "), link]
        return [links]


class Drawings(SphinxPostTransform):
    default_priority = 8  # before links are resolved
    formats = ("html",)

    def run(self):
        for node in list(self.document.findall(drawing)):
            links = {
                part: self.uri(page, anchor, node)
                for part, (page, anchor) in node["targets"].items()
            }
            figure = nodes.raw("", picture(links), format="html")
            node.replace_self(nodes.container("", figure, classes=["map"]))

    def uri(self, page, anchor, node):
        if anchor not in self.env.metadata[page].get("myst_slugs", {}):
            logger.warning("the map links to %s#%s, which is missing", page, anchor)
        return f"{self.app.builder.get_relative_uri(self.env.docname, page)}#{anchor}"


def picture(links):
    from gpt2lib.figures import gpt2_map  # brings matplotlib: only where a map is drawn

    return gpt2_map(links=links)._repr_mimebundle_()["text/html"]


def setup(app):
    app.add_node(drawing)
    app.add_directive("gpt2-map", Map)
    app.add_post_transform(Drawings)
