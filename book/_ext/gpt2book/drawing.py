"""The map of GPT-2 on a page: the drawing of `gpt2lib.figures`, its parts made links.

    ```{gpt2-map}
    attention: attention.MultiHeadSelfAttention
      (B, T, C) -> (B, T, C)
      Each position gathers what it needs from the positions before it.
    ```

Each part has the name that builds it, its shapes and a description. `book/map.md` holds
this list. There, each part of the drawing leads to the cell that defines the name, to
its code or to its shapes, as the reader chooses above it, and the list stands below.
`{gpt2-map}` with `:bare:` is the drawing alone, its parts links to the cells, and so is
the map at the top of a phase, whose stored drawing has no links.

`tests/test_map.py` measures the shapes.
"""

import re
from html import escape
from pathlib import Path

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

from .library import modules, page_link, source_link

logger = logging.getLogger(__name__)

PAGE = "book/map"
LIST = re.compile(r"^```\{gpt2-map\}\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r'<a href="">(<g .*?</g>)</a>', re.DOTALL)
STORED = re.compile(r'aria-labelledby="gpt2-map((?:-\w+)*)-title"')
SHAPE = re.compile(r"\([^()]*\)")
WAYS = {"cell": "the cell", "code": "its code", "shapes": "its shapes"}


class drawing(nodes.General, nodes.Element):
    """Where the drawing goes; with `ways`, its parts lead three ways."""


def parts_of(text):
    """Return what a list says of each part: {part: (name, shapes, description)}."""
    parts = {}
    for line in filter(str.strip, text.splitlines()):
        if not line[0].isspace():
            part, _, name = line.partition(":")
            parts[part] = (name.strip(), "", "")
            continue
        part, (name, shapes, said) = parts.popitem()
        if "->" in line:
            shapes = line.strip()
        else:
            said = f"{said} {line.strip()}".strip()
        parts[part] = (name, shapes, said)
    return parts


def parts_of_page(root):
    return parts_of(LIST.search((root / f"{PAGE}.md").read_text("utf-8"))[1])


def cells_of_library(root):
    """Return where each public name is: {"module.name": (module, name)}."""
    return {
        f"{module.name}.{name.name}": (module, name)
        for module in modules(root)
        for name in module.names
    }


def label(part):
    return re.sub(r"_|(?=\d)", " ", part)


class Map(SphinxDirective):
    has_content = True
    option_spec = {"bare": directives.flag}  # noqa: RUF012 (docutils' way)

    def run(self):
        if "bare" in self.options:
            self.env.note_dependency(f"{PAGE}.md")
            return [drawing()]
        cells = cells_of_library(Path(self.env.srcdir))
        entries = nodes.definition_list(classes=["map-parts"])
        for part, (name, shapes, text) in parts_of("\n".join(self.content)).items():
            if name not in cells:
                raise self.error(f"{part}: gpt2lib has no {name!r}")
            term = nodes.term("", label(part), ids=[f"part-{part}"])
            found = [*self.parse_text_to_nodes(text), self.shapes(shapes)]
            body = nodes.definition("", *found, self.links(*cells[name]))
            entries += nodes.definition_list_item("", term, body)
        return [drawing(ways=True), entries]

    def shapes(self, text):
        """Return a part's shapes, `(B, T) -> (B, T, C)`, the tuples as formulas."""
        text = SHAPE.sub(lambda found: f"${found[0]}$", text).replace("->", "→")
        text = text.replace(",)$", "{,})$")
        [line] = self.parse_text_to_nodes(text)
        line["classes"].append("map-shapes")
        return line

    def links(self, module, found):
        links = nodes.paragraph(classes=["made-in"])
        full = f"gpt2lib.{module.name}.{found.name}"
        links += nodes.literal(full, full)
        for link in (
            page_link(module.notebook, found.cell, "the cell that builds it", self.env),
            source_link(module.name, found.cell, "source"),
        ):
            links += [nodes.Text(" · "), link]
        return links


class Drawings(SphinxPostTransform):
    default_priority = 8  # before links are resolved
    formats = ("html",)

    def run(self):
        if PAGE not in self.env.found_docs:
            return
        for node in list(self.document.findall(nodes.raw)):
            stored = STORED.search(node.astext())
            if stored:
                self.put(node, stored[1].split("-")[1:])
        for node in list(self.document.findall(drawing)):
            self.put(node, (), ways="ways" in node)

    def put(self, node, lit, ways=False):
        """Put the drawing in place of `node`, its parts made links."""
        ways_of = self.ways_of_parts()
        html = picture(lit, links=dict.fromkeys(ways_of, ""))
        html = LINK.sub(lambda found: linked(found[1], ways_of, ways), html)
        choice = [nodes.raw("", CHOICE, format="html")] if ways else []
        figure = nodes.raw("", html, format="html")
        node.replace_self(nodes.container("", *choice, figure, classes=["map"]))

    def ways_of_parts(self):
        """Return where each part can lead: {part: {way: (address, its name)}}."""
        root, found = Path(self.env.srcdir), {}
        cells = cells_of_library(root)
        for part, (name, shapes, _) in parts_of_page(root).items():
            module, cell = cells[name][0], cells[name][1].cell
            slugs = self.env.metadata[module.notebook].get("myst_slugs", {})
            if cell not in slugs:
                text = "the map links to %s#%s, which is missing"
                logger.warning(text, module.notebook, cell)
            found[part] = {
                "cell": (self.uri(module.notebook, cell), "the cell that builds it"),
                "code": (
                    self.uri(f"gpt2lib/{module.name}", cell),
                    f"its code, gpt2lib.{name}",
                ),
                "shapes": (
                    self.uri(PAGE, f"part-{part}"),
                    f"its shapes, {shapes.replace('->', 'to')}",
                ),
            }
        return found

    def uri(self, page, anchor):
        here = self.env.docname
        builder = self.app.builder
        path = "" if page == here else builder.get_relative_uri(here, page)
        return f"{path}#{anchor}"


def linked(group, ways_of, ways):
    """Return a part of the drawing as a link that has a name: one for each way."""
    part = re.search(r'data-part="(\w+)"', group)[1]
    found = []
    for way in WAYS if ways else ("cell",):
        uri, name = ways_of[part][way]
        title = f"<title>{escape(f'{label(part)}: {name}')}</title>"
        found.append(f'<a class="to-{way}" href="{escape(uri)}">{title}{group}</a>')
    return "".join(found)


CHOICE = "".join(
    [
        '<fieldset class="map-ways"><legend>Each part leads to</legend>',
        *(
            f'<label><input type="radio" name="map-way" value="{way}"'
            f"{' checked' if way == 'cell' else ''}> {words}</label>"
            for way, words in WAYS.items()
        ),
        "</fieldset>",
    ]
)


def picture(lit, links):
    from gpt2lib.figures import gpt2_map  # brings matplotlib: only where a map is drawn

    return gpt2_map(lit, links=links)._repr_mimebundle_()["text/html"]


def add_style(app, page, template, context, doctree):
    """Load the map's style where there is a map with links."""
    if 'class="to-cell"' in context.get("body", ""):
        app.add_css_file("map.css")


def setup(app):
    app.add_node(drawing)
    app.add_directive("gpt2-map", Map)
    app.add_post_transform(Drawings)
    app.connect("html-page-context", add_style)
