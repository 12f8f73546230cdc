"""The chapter of the model in JavaScript: pieces of `gpt2.js` beside Python's.

    ```{mirror} LayerCache
    :python: gpt2lib.kv_cache.LayerCache
    :note: The same buffer, without the axis of texts.
    ```

The argument names symbols of `gpt2lib/static/gpt2.js` that stand in a row there. The
option `python` names what they mirror, in the library or, as
`notebooks.phase1_components.layer_norm`, in a notebook; `note` stands over it, or in
its place. Both sides are read from their files when the book is built, so that neither
can fall behind. Every script of the library is also a page of the book, such as
`gpt2lib/static/gpt2.js.html`, to which the role {script}`gpt2.js` leads.
"""

import ast
import json
import re
import textwrap
from pathlib import Path

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective, SphinxRole

from .library import page_link, read_module, source_link

SCRIPTS = "gpt2lib/static"
SCRIPT = f"{SCRIPTS}/gpt2.js"
DECLARATION = re.compile(r"(?:export )?(?:const|let|class|function\*?) (\w+)")
DOCUMENTED = (ast.ClassDef, ast.FunctionDef)
logger = logging.getLogger(__name__)


def symbols(script):
    """Return {name: [first line, last line]} of a script's top level, from 1.

    A comment belongs to what follows it; with an empty line between, it is a heading.
    """
    found, name, comment = {}, None, None
    for n, line in enumerate(script.splitlines(), 1):
        if declared := DECLARATION.match(line):
            name = declared[1]
            found[name] = [comment or n, n]
            comment = None
        elif line.startswith("//"):
            name, comment = None, comment or n
        elif not line:
            comment = None
        elif name:
            found[name][1] = n
    return found


def definitions(tree):
    """Return {name: node} of a module's top level, methods as `Class.method`."""
    found = {}
    for node in tree.body:
        match node:
            case ast.FunctionDef():
                found[node.name] = node
            case ast.ClassDef():
                methods = (m for m in node.body if isinstance(m, ast.FunctionDef))
                found[node.name] = node
                found |= {f"{node.name}.{method.name}": method for method in methods}
            case ast.Assign(targets=[ast.Tuple(elts=names)]):
                found |= {ast.unparse(name): node for name in names}
            case ast.Assign(targets=[name]):
                found[ast.unparse(name)] = node
    return found


def code_of(node, text):
    """Return the lines of `node` in `text`, without docstrings."""
    lines, left_out = text.splitlines(), set()
    for item in ast.walk(node):
        if isinstance(item, DOCUMENTED) and ast.get_docstring(item) and item.body[1:]:
            doc = item.body[0]
            blank = not lines[doc.end_lineno].strip()  # the line after it
            left_out |= set(range(doc.lineno, doc.end_lineno + 1 + blank))
    marks = getattr(node, "decorator_list", [])
    first = marks[0].lineno if marks else node.lineno
    kept = [n for n in range(first, node.end_lineno + 1) if n not in left_out]
    return textwrap.dedent("\n".join(lines[n - 1] for n in kept))


def in_library(root, name, path):
    """Return the page, the cell and the code of `name` in the module at `path`."""
    module, text = read_module(root / path), (root / path).read_text("utf-8")
    node = definitions(ast.parse(text))[name]
    cells = [cell.id for cell in module.cells if cell.line <= node.lineno]
    return module.notebook, cells[-1], code_of(node, text)


def in_notebook(root, name, path):
    """Return the same for what a cell of the notebook at `path` defines."""
    for cell in json.loads((root / path).read_text("utf-8"))["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] != "code" or re.search(r"^\s*[%!]", text, re.M):
            continue  # prose, or not Python alone
        node = definitions(ast.parse(text)).get(name)
        if node:
            return path.removesuffix(".ipynb"), cell["id"], code_of(node, text)
    raise KeyError(name)


class Mirror(SphinxDirective):
    required_arguments = 1
    final_argument_whitespace = True
    option_spec = {  # noqa: RUF012 (docutils' way)
        "python": directives.unchanged_required,
        "note": directives.unchanged_required,
    }

    def run(self):
        ours = nodes.container(classes=["mirror-side"])
        if note := self.options.get("note"):
            ours.extend(self.parse_text_to_nodes(note))
        for name in self.options.get("python", "").split():
            ours.extend(self.python(name))
        theirs = nodes.container(classes=["mirror-side"])
        theirs.extend(self.javascript(self.arguments[0].split()))
        sides = [ours, theirs] if ours.children else [theirs]
        return [nodes.container("", *sides, classes=["mirror"])]

    def python(self, full):
        """Return the code of `gpt2lib.attention.causal_attention` and its heading."""
        folder, module, name = full.split(".", 2)
        in_python = folder == "gpt2lib"
        path = f"{folder}/{module}.{'py' if in_python else 'ipynb'}"
        look = in_library if in_python else in_notebook
        self.env.note_dependency(path)
        try:
            page, cell, code = look(Path(self.env.srcdir), name, path)
        except (KeyError, OSError):
            raise self.error(f"{path} does not define {name}") from None
        label = full if in_python else f"{name}, {module}.ipynb"
        return piece(page_link(page, cell, label, self.env), code, "python")

    def javascript(self, names):
        """Return the code of symbols that stand in a row, and its heading."""
        self.env.note_dependency(SCRIPT)
        text = (Path(self.env.srcdir) / SCRIPT).read_text("utf-8")
        places = symbols(text)
        there = list(places)
        start = there.index(names[0]) if names[0] in there else 0
        if there[start : start + len(names)] != names:
            raise self.error(f"{SCRIPT} does not define, in a row: {', '.join(names)}")
        first, last = places[names[0]][0], places[names[-1]][1]
        code = "\n".join(text.splitlines()[first - 1 : last])
        label = f"gpt2.js, lines {first} to {last}"
        return piece(source_link("static/gpt2.js", f"line-{first}", label), code, "js")


def piece(link, code, language):
    """Return a piece of code under a heading that leads to where it is from."""
    return [
        nodes.paragraph("", "", link, classes=["mirror-mark", language]),
        nodes.literal_block(code, code, language=language),
    ]


class Script(SphinxRole):
    def run(self):
        if not (Path(self.env.srcdir) / SCRIPTS / self.text).is_file():
            logger.warning("no script %s", self.text, location=self.get_location())
        link = source_link(f"static/{self.text}", "", "")
        link += nodes.literal(self.text, self.text)
        return [link], []


def script_pages(app):
    """Yield the page of each script, its lines numbered and addressable."""
    if app.builder.format != "html":
        return
    paths = sorted((Path(app.srcdir) / SCRIPTS).glob("*.js"))
    for path in paths:
        page = f"{SCRIPTS}/{path.name}"
        chapter = app.builder.get_relative_uri(page, "book/javascript")
        others = ", ".join(
            f'<a href="{other.name}.html"><code>{other.name}</code></a>'
            for other in paths
            if other != path
        )
        code = app.builder.highlighter.highlight_block(
            path.read_text("utf-8"),
            "js",
            force=True,  # Pygments takes some regular expressions for divisions
            linenos="inline",
            linespans="line",
        )
        body = (
            f"<h1>{page}</h1><p>A script of this book's pages. "
            f'<a href="{chapter}">The model in JavaScript</a> explains '
            f"<code>gpt2.js</code>. The other scripts: {others}.</p>{code}"
        )
        yield page, {"title": page, "body": body}, "page.html"


def setup(app):
    app.add_directive("mirror", Mirror)
    app.add_role("script", Script())
    app.connect("html-collect-pages", script_pages)
