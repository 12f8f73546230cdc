"""What each phase adds to the library, read from the text of the exported modules.

The directive `{changes}` makes a section for each notebook: its new names, what they
use of other notebooks' names and where, and which seams open and close. A *seam* is an
argument that nobody gives in the phase that leaves it open, and a later phase does.
"""

import ast
import json
import re
from dataclasses import dataclass, field
from pathlib import Path

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

from .library import Module, Name, modules, page_link, source_link
from .questions import to_this_folder
from .workbook import table

OPENING = re.compile(r"^At the end of this (notebook|appendix)")


@dataclass
class Use:
    """A name of another notebook; `users` are (module, name of a definition, cell)."""

    module: Module
    name: Name
    users: list


@dataclass
class Seam:
    """Keyword arguments: who leaves them open, and who is the first to give them."""

    arguments: list
    owners: list  # (module, name), of one notebook
    givers: list  # (module, name of a definition, cell), of a later one

    def of(self, givers=False):
        return (self.givers if givers else self.owners)[0][0].notebook


@dataclass
class Phase:
    """What one notebook adds."""

    notebook: str
    title: str
    opening: str
    modules: list
    lines: int
    uses: list = field(default_factory=list)  # of notebooks before this one
    awaits: list = field(default_factory=list)  # of notebooks after it
    opens: list = field(default_factory=list)
    closes: list = field(default_factory=list)

    @property
    def names(self):
        return [(module, name) for module in self.modules for name in module.names]


def phases(root):
    """Return what each notebook adds, in the order of the book."""
    found = {}
    for module in modules(root):
        found.setdefault(module.notebook, []).append(module)
    every = [phase(root, notebook, made) for notebook, made in found.items()]
    sources = {m.name: root / "gpt2lib" / f"{m.name}.py" for m in modules(root)}
    trees = {name: ast.parse(path.read_text("utf-8")) for name, path in sources.items()}
    place = {one.notebook: number for number, one in enumerate(every)}
    for number, one in enumerate(every):
        for use in uses(one, every, trees):
            later = place[use.module.notebook] > number
            (one.awaits if later else one.uses).append(use)
    for seam in together(seams(every, trees)):
        every[place[seam.of()]].opens.append(seam)
        every[place[seam.of(givers=True)]].closes.append(seam)
    return every


def phase(root, notebook, made):
    cells = json.loads((root / f"{notebook}.ipynb").read_text("utf-8"))["cells"]
    title, opening = "".join(cells[0]["source"]).split("\n\n")[:2]
    lines = sum(line_count(module) for module in made)
    return Phase(notebook, title.removeprefix("# "), opening, made, lines)


def line_count(module):
    """Return the lines of a module's cells, without the empty ones."""
    lines = (line for cell in module.cells for line in cell.code.splitlines())
    return sum(bool(line.strip()) for line in lines)


def definitions(module, tree):
    """Yield the statements of a module: (name of what is defined or "", cell, node)."""
    for node in tree.body:
        targets = getattr(node, "targets", [getattr(node, "target", None)])
        name = getattr(node, "name", "") or getattr(targets[0], "id", "")
        cell = next((c.id for c in reversed(module.cells) if c.line <= node.lineno), "")
        if cell:
            yield name, cell, node


def imported(tree):
    """Yield the imports from the library: (module, name, the name it has here)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            whole = f"{'gpt2lib.' if node.level else ''}{node.module or ''}"
            if whole.startswith("gpt2lib."):
                for alias in node.names:
                    here = alias.asname or alias.name
                    yield whole.removeprefix("gpt2lib."), alias.name, here


def uses(one, every, trees):
    """Yield each public name that a phase takes from another, with those who use it."""
    public = {
        (module.name, name.name): (module, name)
        for other in every
        if other is not one
        for module, name in other.names
    }
    found = {}
    for module in one.modules:
        tree = trees[module.name]
        for source, original, here in imported(tree):
            if (source, original) not in public:
                continue
            users = found.setdefault((source, original), {})
            for name, cell, node in definitions(module, tree):
                read = (n.id for n in ast.walk(node) if isinstance(n, ast.Name))
                if name and here in read:
                    users[module.name, name] = (module, name, cell)
    for key in public:  # in the order of the book
        if key in found:
            yield Use(*public[key], list(found[key].values()))


def seams(every, trees):
    """Yield each argument that one phase leaves open and a later one gives."""
    for number, one in enumerate(every):
        for argument, (owners, callees) in open_arguments(one, trees).items():
            for other in every[number:]:
                found = givers(argument, callees, other, trees)
                if found:
                    break
            if found and other is not one:
                yield Seam([argument], owners, found)


def together(seams):
    """Return the seams, those of the same names in one."""
    found = []
    for seam in seams:
        same = [s for s in found if (s.owners, s.givers) == (seam.owners, seam.givers)]
        if same:
            same[0].arguments.extend(seam.arguments)
        else:
            found.append(seam)
    return found


def open_arguments(one, trees):
    """Return the optional keyword arguments of a phase's names, and who takes them.

    That is {argument: (owners, what a call of them may be written as)}. A module is
    called by any name, so an argument of a `forward` allows any: `None` stands for it.
    """
    found = {}
    for module, name in one.names:
        for defined, _, node in definitions(module, trees[module.name]):
            for function in callables(node) if defined == name.name else []:
                for argument in optional(function):
                    owners, callees = found.setdefault(argument, ([], set()))
                    owners.append((module, name))
                    callees.add(None if function.name == "forward" else name.name)
    return found


def callables(node):
    """Return what runs when a name is called: itself, or `__init__` and `forward`."""
    if isinstance(node, ast.FunctionDef):
        return [node]
    body = node.body if isinstance(node, ast.ClassDef) else []
    methods = [item for item in body if isinstance(item, ast.FunctionDef)]
    return [n for n in methods if n.name in ("__init__", "forward")]


def optional(function):
    """Return the keyword-only arguments that a call may leave out."""
    pairs = zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True)
    return [argument.arg for argument, default in pairs if default is not None]


def givers(argument, callees, one, trees):
    """Return the definitions of a phase that call one of `callees` with `argument`."""
    found = []
    for module in one.modules:
        tree = trees[module.name]
        original = {here: name for _, name, here in imported(tree)}
        for name, cell, node in definitions(module, tree):
            called = {call_of(call, original) for call in calls(node, argument)}
            if called & callees or (called and None in callees):
                found.append((module, name, cell))
    return found


def call_of(call, original):
    """Return the last name of what is called, as it is called at home."""
    name = ast.unparse(call.func).rpartition(".")[2]
    return original.get(name, name)


def calls(node, argument):
    """Yield the calls that give `argument`, but for those that hand on their own."""
    if any(argument in optional(function) for function in callables(node)):
        return
    if isinstance(node, ast.Call) and argument in (word.arg for word in node.keywords):
        yield node
    for child in ast.iter_child_nodes(node):
        yield from calls(child, argument)


class Changes(SphinxDirective):
    """`{changes}`: what there is after each phase, and a section for each."""

    def run(self):
        root = Path(self.env.srcdir)
        every = phases(root)
        for one in every:
            self.env.note_dependency(str(root / f"{one.notebook}.ipynb"))
            for module in one.modules:
                self.env.note_dependency(str(root / "gpt2lib" / f"{module.name}.py"))
        return [self.summary(every), *map(self.section, every)]

    def summary(self, every):
        rows, names, lines = [], 0, 0
        for one in every:
            names, lines = names + len(one.names), lines + one.lines
            title = nodes.reference("", one.title, internal=True, refid=anchor_of(one))
            new = nodes.Text(f"{len(one.names)} names, {one.lines:,} lines")
            whole = nodes.Text(f"{names} names, {lines:,} lines")
            cells = [nodes.paragraph("", "", cell) for cell in (title, new, whole)]
            rows.append([[cell] for cell in cells])
        return table(("after", "new", "you have"), (5, 4, 4), rows)

    def section(self, one):
        anchor = anchor_of(one)
        section = nodes.section(ids=[anchor], names=[anchor])
        section += nodes.title(one.title, one.title)
        self.state.document.note_explicit_target(section)
        stem = one.notebook.rpartition("/")[2]
        text = OPENING.sub("By its end", to_this_folder(one.opening, stem))
        section += self.parse_text_to_nodes(text)
        for module in one.modules:
            section += self.module(module)
        section += self.used("It uses, of what was there:", one.uses)
        section += self.used("It leaves to a later phase:", one.awaits)
        section += self.seams(one)
        return section

    def module(self, module):
        """Return a module's name and purpose, and an entry for each of its names."""
        full = f"gpt2lib.{module.name}"
        [head] = self.parse_text_to_nodes(module.doc.partition("\n\n")[0])
        head.insert(0, [source_link(module.name, "", full), nodes.Text(": ")])
        names = nodes.definition_list(classes=["new-names"])
        for name in module.names:
            term = nodes.term(ids=[f"new-{module.name}.{name.name}"])
            term += code_link(module.notebook, name.cell, name.name, self.env)
            if name.signature:
                term += nodes.literal("", f"({arguments(name.signature[0])})")
            text = name.doc.partition("\n")[0] or constant(module, name)
            body = nodes.definition("", *self.parse_text_to_nodes(text))
            names += nodes.definition_list_item("", term, body)
        return [head, names]

    def used(self, title, found):
        """Return a table of names from elsewhere, each with what uses it."""
        if not found:
            return []
        rows = []
        for use in found:
            taken = self.cell(use.module, use.name.name, use.name.cell)
            place = page_link(use.module.notebook, "", "", self.env)
            users = between([self.cell(*user) for user in use.users], ", ")
            cells = ([taken], [place], users)
            rows.append([[nodes.paragraph("", "", *cell)] for cell in cells])
        heads = ("name", "from", "for")
        return [nodes.paragraph(title, title), table(heads, (3, 3, 6), rows)]

    def seams(self, one):
        items = [
            *(self.seam(seam, one) for seam in one.closes),
            *(self.seam(seam, one) for seam in one.opens),
        ]
        listed = nodes.bullet_list("", *(nodes.list_item("", item) for item in items))
        title = "What it leaves open, or closes:"
        return [nodes.paragraph(title, title), listed] if items else []

    def seam(self, seam, one):
        """Say in a sentence where an argument waits, and where it is first given."""
        arguments = [nodes.literal(text, text) for text in seam.arguments]
        owners = [self.cell(module, n.name, n.cell) for module, n in seam.owners]
        givers = [self.cell(*giver) for giver in seam.givers]
        closed = seam in one.closes
        words = ("open since ", ", given in ") if closed else ("open until ", ", in ")
        return nodes.paragraph(
            "",
            "",
            *between(arguments, ", "),
            nodes.Text(" of "),
            *between(owners, ", "),
            nodes.Text(f": {words[0]}"),
            page_link(seam.of(givers=not closed), "", "", self.env),
            nodes.Text(words[1]),
            *between(givers, ", "),
        )

    def cell(self, module, name, cell):
        return code_link(module.notebook, cell, name, self.env)


def anchor_of(phase):
    return f"changes-{phase.notebook.rpartition('/')[2].replace('_', '-')}"


def code_link(page, anchor, text, env):
    """Return a link to a cell whose words are code."""
    return nodes.literal("", "", page_link(page, anchor, text, env))


def between(parts, text):
    """Return the nodes with a text between each two."""
    return [node for part in parts for node in (nodes.Text(text), part)][1:]


def constant(module, name):
    """Say what a name without a docstring holds."""
    cell = next(cell for cell in module.cells if cell.id == name.cell)
    for node in ast.parse(cell.code).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name.name:
            if hasattr(node.value, "elts"):
                return f"A list of {len(node.value.elts)} entries."
            if isinstance(node.value, ast.Dict):
                return f"A table of {len(node.value.keys)} entries."
            if isinstance(node.value, ast.Constant):
                return f"A constant, `{ast.unparse(node.value)}`."
            if isinstance(node.value, ast.Call):
                return f"What `{ast.unparse(node.value.func)}` makes."
    return "A constant."


def arguments(signature, most=120):
    """Return a signature without types; of a very long one, the start."""
    parts = [plain(argument) for argument in signature]
    if len(", ".join(parts)) > most:
        parts = [part.partition("=")[0] for part in parts]
    while len(", ".join(parts)) > most:
        parts = [*parts[:-2], "..."]
    return ", ".join(parts)


def plain(argument):
    """Return an argument without its type: `name`, `name=default` or `*`."""
    left, equals, default = argument.partition("=")
    return left.partition(":")[0].strip() + (f"={default.strip()}" if equals else "")


def setup(app):
    app.add_directive("changes", Changes)
