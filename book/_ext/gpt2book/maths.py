"""Formulas: KaTeX runs in Python at build time, so that pages need no script for them.

TeX that KaTeX cannot read becomes a warning, which fails a build with `-W`.
"""

import functools
import re
from pathlib import Path

import quickjs
from docutils import nodes
from sphinx.util import logging
from sphinx.util.fileutil import copy_asset
from sphinx.util.math import get_node_equation_number
from sphinx.util.osutil import ensuredir

KATEX = Path(__file__).parents[2] / "_vendor" / "katex"
logger = logging.getLogger(__name__)


@functools.cache
def katex():
    """Return KaTeX's renderer as a Python function of the TeX and the display mode."""
    context = quickjs.Context()
    context.eval((KATEX / "katex.min.js").read_text("utf-8"))
    context.eval(
        "function render(tex, displayMode) {"
        "  return katex.renderToString(tex, {displayMode, strict: 'ignore'});"
        "}"
    )
    return context.get("render")


@functools.cache
def render(tex, display):
    return katex()(tex, display)


def html(tex, display, node):
    """Render `tex`; where it is wrong, warn and show the source."""
    try:
        return render(tex, display)
    except quickjs.JSException as error:
        fault = str(error).split("\n")[0].removeprefix("ParseError: ")
        fault = fault.replace("\u0332", "")  # the underline that KaTeX adds
        logger.warning("bad TeX: %s", fault, location=node, type="katex")
        return f"<code>{tex.replace('&', '&amp;').replace('<', '&lt;')}</code>"


def visit_inline(self, node):
    self.body.append(self.starttag(node, "span", "", CLASS="math"))
    self.body.append(html(node.astext(), False, node) + "</span>")
    raise nodes.SkipNode


def visit_block(self, node):
    tex = node.astext().strip()
    if r"\\" in tex and r"\begin" not in tex:
        tex = rf"\begin{{aligned}}{tex}\end{{aligned}}"
    self.body.append(self.starttag(node, "div", CLASS="math"))
    if node.get("number"):
        self.body.append(f'<span class="eqno">({get_node_equation_number(self, node)})')
        self.add_permalink_ref(node, "Link to this equation")
        self.body.append("</span>")
    self.body.append(html(tex, True, node) + "</div>\n")
    raise nodes.SkipNode


def add_style(app, page, template, context, doctree):
    """Load KaTeX's style sheet on the pages that hold a formula."""
    if app.env.get_domain("math").data["has_equations"].get(page):
        app.add_css_file("katex/katex.min.css")


def copy_files(app, error):
    """Write the style sheet and the fonts; woff2 alone, which every browser reads."""
    if error or app.builder.format != "html":
        return
    target = Path(app.outdir) / "_static" / "katex"
    ensuredir(target / "fonts")
    style = (KATEX / "katex.min.css").read_text("utf-8")
    style = re.sub(r',url\(fonts/[^)]+\.(woff|ttf)\) format\("\w+"\)', "", style)
    (target / "katex.min.css").write_text(style, "utf-8")
    copy_asset(KATEX / "fonts", target / "fonts")
    copy_asset(KATEX / "LICENSE", target)


def setup(app):
    app.add_html_math_renderer("katex", (visit_inline, None), (visit_block, None))
    app.connect("html-page-context", add_style)
    app.connect("build-finished", copy_files)
