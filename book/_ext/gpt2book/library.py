"""The library in the book, read from the text of `gpt2lib/*.py`; nothing is imported.

The directive `{library}` lists each module's public names with signature, docstring and
two links: to the cell that defines the name, and to its source. The source of a module
is a page of its own, `gpt2lib/NAME.html`, cut into the cells that it came from.
"""

import ast
import functools
import re
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from docutils import nodes
from sphinx import addnodes
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util.docutils import SphinxDirective

CELL = re.compile(r"^# %% \.\./(notebooks/\w+)\.ipynb #([\w-]+)\n", re.M)


@dataclass
class Cell:
    """One exported cell: its id, its first line in the module, its code."""

    id: str
    line: int
    code: str


@dataclass
class Name:
    """One public name."""

    name: str
    kind: str  # class, function, method, property or data
    signature: tuple | None  # the arguments as text, and the result
    doc: str
    cell: str
    members: list = field(default_factory=list)


@dataclass
class Module:
    name: str
    doc: str
    notebook: str  # the page of its notebook, such as notebooks/phase1_components
    cells: list
    names: list


@functools.cache
def read_module(path):
    """Return the `Module` in the file `path`, or None if no notebook made it."""
    text = path.read_text("utf-8")
    marks = list(CELL.finditer(text))
    if not marks:
        return None
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    cells = [
        Cell(mark[2], text.count("\n", 0, mark.end()) + 1, text[mark.end() : end])
        for mark, end in zip(marks, ends, strict=True)
    ]
    tree = ast.parse(text)
    names = [
        described
        for node in tree.body
        for name in public_names(tree)
        if (described := describe(node, name, cells))
    ]
    return Module(path.stem, ast.get_docstring(tree) or "", marks[0][1], cells, names)


def public_names(tree):
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return ast.literal_eval(node.value)
    return []


def describe(node, name, cells):
    """Return what the book says of `name` if `node` defines it, else None."""
    line = getattr(node, "lineno", 0)
    cell = next((cell.id for cell in reversed(cells) if cell.line <= line), "")
    match node:
        case ast.FunctionDef(name=found) if found == name:
            doc = ast.get_docstring(node) or ""
            return Name(name, "function", signature(node), doc, cell)
        case ast.ClassDef(name=found) if found == name:
            doc = ast.get_docstring(node) or ""
            return Name(name, "class", of_class(node), doc, cell, members(node, cell))
        case ast.Assign(targets=[ast.Name(id=found)]) if found == name:
            return Name(name, "data", None, "", cell)
    return None


def signature(node, drop=0):
    """Return a function's arguments, without the first `drop`, and its result."""
    found = node.args
    plain = found.posonlyargs + found.args
    defaults = [None] * (len(plain) - len(found.defaults)) + found.defaults
    parts = [argument(*pair) for pair in zip(plain, defaults, strict=True)]
    if found.vararg:
        parts.append(f"*{argument(found.vararg)}")
    elif found.kwonlyargs:
        parts.append("*")
    parts += map(argument, found.kwonlyargs, found.kw_defaults)
    if found.kwarg:
        parts.append(f"**{argument(found.kwarg)}")
    return parts[drop:], ast.unparse(node.returns) if node.returns else ""


def argument(node, default=None):
    """Return `name`, `name: type`, `name=default` or `name: type = default`."""
    if default is None:
        return ast.unparse(node)
    equals = " = " if node.annotation else "="
    return f"{ast.unparse(node)}{equals}{ast.unparse(default)}"


def of_class(node):
    """Return the arguments of a class: of its `__init__`, or a dataclass's fields."""
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and item.name == "__init__":
            return signature(item, drop=1)
    if any("dataclass" in ast.unparse(mark) for mark in node.decorator_list):
        fields = [item for item in node.body if isinstance(item, ast.AnnAssign)]
        return [ast.unparse(item) for item in fields], ""
    return None


def members(node, cell):
    """Yield the public methods and properties of a class."""
    found = []
    for item in node.body:
        if not isinstance(item, ast.FunctionDef):
            continue
        if item.name.startswith("_") and item.name != "__call__":
            continue
        marks = {ast.unparse(mark) for mark in item.decorator_list}
        if f"{item.name}.setter" in marks:
            continue  # its property is listed
        doc = ast.get_docstring(item) or ""
        if marks & {"property", "cached_property", "functools.cached_property"}:
            found.append(Name(item.name, "property", None, doc, cell))
        else:
            drop = 0 if "staticmethod" in marks else 1
            kind = "class method" if "classmethod" in marks else "method"
            found.append(Name(item.name, kind, signature(item, drop), doc, cell))
    return found


def modules(root):
    """Return the modules in the order in which the notebooks make them."""
    found = [read_module(path) for path in sorted((root / "gpt2lib").glob("*.py"))]
    found = [module for module in found if module]
    return sorted(found, key=lambda m: ("appendix" in m.notebook, m.notebook))


class Library(SphinxDirective):
    """`{library}`: every module of gpt2lib, a section each."""

    def run(self):
        sections = []
        for module in modules(Path(self.env.srcdir)):
            self.env.note_dependency(f"gpt2lib/{module.name}.py")
            sections.append(self.module_section(module))
        return sections

    def module_section(self, module):
        title = f"gpt2lib.{module.name}"
        section = nodes.section(ids=[title], names=[title])
        section += nodes.title("", "", nodes.literal(title, title))
        self.state.document.note_explicit_target(section)
        section += self.markdown(module.doc)
        made = nodes.paragraph(classes=["made-in"])
        made += [nodes.Text("Made in "), page_link(module.notebook, "", "", self.env)]
        made += [nodes.Text("; "), source_link(module.name, "", "source")]
        section += made
        for name in module.names:
            section += self.entry(module, name)
        return section

    def entry(self, module, name, owner=""):
        """Return the description of one name, in the form Sphinx gives its own."""
        full = f"gpt2lib.{module.name}.{owner}{name.name}"
        kind = name.kind.replace(" ", "")
        entry = addnodes.desc(domain="py", objtype=kind, classes=["py"])
        head = addnodes.desc_signature(ids=[full], classes=["sig", "sig-object"])
        if name.kind not in ("function", "method"):
            head += addnodes.desc_annotation("", f"{name.kind} ")
        head += addnodes.desc_name(name.name, name.name)
        head += self.in_brackets(name.signature) if name.signature else []
        entry += head
        domain = self.env.get_domain("py")
        domain.note_object(full, kind, full, location=head)
        content = addnodes.desc_content()
        content += self.markdown(name.doc)
        if not owner:
            links = nodes.paragraph(classes=["made-in"])
            text = "the cell that defines it"
            links += page_link(module.notebook, name.cell, text, self.env)
            links += nodes.Text(" · ")
            links += source_link(module.name, name.cell, "source")
            content += links
        for member in name.members:
            content += self.entry(module, member, f"{name.name}.")
        entry += content
        return entry

    def in_brackets(self, signature):
        """Return the nodes of a signature; the style sheet breaks long ones."""
        parts, result = signature
        place = "long" if sum(map(len, parts)) > 64 else "short"
        found = [nodes.inline("", "(", classes=["sig-paren"])]
        for part in parts:
            comma = "" if part is parts[-1] else ","
            text = f"{part}{comma} " if comma else part
            found.append(nodes.inline("", text, classes=["sig-param", place]))
        found.append(nodes.inline("", ")", classes=["sig-paren"]))
        return [*found, nodes.Text(f" → {result}")] if result else found

    def markdown(self, text):
        """Return a docstring as nodes."""
        return self.parse_text_to_nodes(text) if text else []


def page_link(page, anchor, text, env):
    """Return a link to a page's title or anchor, which MyST resolves and checks."""
    return addnodes.pending_xref(
        "",
        nodes.inline(text, text),
        refdoc=env.docname,
        refdomain="doc",
        reftype="myst",
        reftarget=page,
        reftargetid=anchor or None,
        refexplicit=bool(text),
    )


def source_link(module, anchor, text):
    return nodes.reference("", text, internal=True, refuri="", gpt2lib=(module, anchor))


class SourceLinks(SphinxPostTransform):
    """Give the links made by `source_link` their addresses."""

    default_priority = 200
    formats = ("html",)

    def run(self):
        for link in self.document.findall(nodes.reference):
            if "gpt2lib" in link:
                module, anchor = link["gpt2lib"]
                builder, page = self.app.builder, self.env.docname
                uri = builder.get_relative_uri(page, f"gpt2lib/{module}")
                link["refuri"] = f"{uri}#{anchor}" if anchor else uri


def source_pages(app):
    """Yield the page of each module: its source, cell by cell."""
    if app.builder.format != "html":
        return
    for module in modules(Path(app.srcdir)):
        page = f"gpt2lib/{module.name}"
        uri = functools.partial(app.builder.get_relative_uri, page)
        known = module.notebook in app.env.titles
        title = app.env.titles[module.notebook].astext() if known else page
        name, notebook = f"gpt2lib/{module.name}.py", uri(module.notebook)
        entry = f"{uri('book/library')}#gpt2lib.{module.name}"
        body = [
            f"<h1>{name}</h1>",
            f'<p>Exported from <a href="{notebook}">{escape(title)}</a>. Its public '
            f'names are described in <a href="{entry}">the library</a>.</p>',
        ]
        for cell in module.cells:
            code = app.builder.highlighter.highlight_block(cell.code.strip(), "python")
            body.append(
                f'<div class="source-cell" id="{cell.id}">'
                f'<p class="export-mark">cell <a href="{notebook}#{cell.id}">'
                f"<code>{cell.id}</code></a></p>{code}</div>"
            )
        yield page, {"title": name, "body": "\n".join(body)}, "page.html"


def setup(app):
    app.add_directive("library", Library)
    app.add_post_transform(SourceLinks)
    app.connect("html-collect-pages", source_pages)
