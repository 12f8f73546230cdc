"""Finished sections of the phases can be ticked: the places for that on the pages.

What is ticked is known to the reader's browser alone: `book/_static/progress.js`. The
places are written here, so that the page does not move when the script fills them.
"""

import json
import re
from html import escape
from pathlib import Path

from docutils import nodes
from sphinx.transforms.post_transforms import SphinxPostTransform

PHASE = re.compile(r"notebooks/(phase\d_\w+)")
SCRIPT = Path(__file__).parents[2] / "_static" / "progress.js"
TABLE = "const SECTIONS = {};"


class PageProgress(nodes.Element):
    """How many of the page's sections are done."""


class SectionEnd(nodes.Element):
    """The checkbox at the end of a section."""


class AddProgress(SphinxPostTransform):
    """Put the places into the phases, on the site alone."""

    default_priority = 900
    builders = ("html",)

    def run(self):
        if not PHASE.fullmatch(self.env.docname):
            return
        page = next(self.document.findall(nodes.section))
        sections = [node for node in page if isinstance(node, nodes.section)]
        for section in sections:
            title = section.next_node(nodes.title).astext()
            section += SectionEnd(section=section["ids"][0], title=title)
        title = page.first_child_matching_class(nodes.title)
        page.insert(title + 1, PageProgress(total=len(sections)))


def visit_page(self, node):
    self.body.append(
        '<p class="page-done pst-js-only"><span role="status">'
        f"0 of {node['total']} sections done: tick each at its end.</span> "
        '<button type="button" hidden>Clear these ticks</button></p>\n'
    )
    raise nodes.SkipNode


def visit_section(self, node):
    section, title = escape(node["section"]), escape(node["title"])
    self.body.append(
        '<p class="section-done pst-js-only"><label><input type="checkbox" '
        f'autocomplete="off" data-section="{section}">'
        f"<span>Done with “{title}”</span></label></p>\n"
    )
    raise nodes.SkipNode


def sections_of(toc):
    """Return the ids of a page's second-level sections, from its contents."""
    lists = (node for node in toc[0] if isinstance(node, nodes.bullet_list))
    items = [item for entries in lists for item in entries]
    links = (item.next_node(nodes.reference) for item in items)
    return [link["anchorname"].removeprefix("#") for link in links]


def write_script(app, builder):
    """Tell the script which sections there are: the navigation counts on every page."""
    if builder.name != "html":
        return
    table = {
        found[1]: sections_of(app.env.tocs[name])
        for name in sorted(app.env.found_docs)
        if (found := PHASE.fullmatch(name))
    }
    text = SCRIPT.read_text("utf-8")
    assert TABLE in text
    path = Path(app.doctreedir) / "scripts" / SCRIPT.name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        text.replace(TABLE, f"const SECTIONS = {json.dumps(table)};"), "utf-8"
    )
    app.config.html_static_path.append(str(path))  # in place of the file without them


def setup(app):
    app.add_node(PageProgress, html=(visit_page, None))
    app.add_node(SectionEnd, html=(visit_section, None))
    app.add_post_transform(AddProgress)
    app.add_js_file("progress.js", loading_method="defer")
    app.connect("write-started", write_script)
