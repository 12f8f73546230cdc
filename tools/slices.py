"""The cells of a notebook that one cell needs: a check then runs without the rest."""

import ast
import re
from functools import cache, cached_property
from pathlib import Path

import nbformat


def python_of(source):
    """The cell's code, magics and shell lines left out."""
    return re.sub(r"^(\s*)[%!].*$", r"\1pass", source, flags=re.M)


class _Names:
    """What a cell makes at its top level, what it changes, and what it is given."""

    def __init__(self, tree):
        self.made, self.changed, self.read = set(), set(), set()
        self.imported, self.defined = set(), set()
        self._later = set()  # read inside functions, which run once the cell has
        self._block(tree.body)
        self.later = self._later - self.made
        self.read |= self.later
        self.made.discard("_")
        self.read.discard("_")

    def _block(self, statements):
        for statement in statements:
            self._statement(statement)

    def _statement(self, node):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            self._later |= _free(node)
            for part in (*node.decorator_list, *getattr(node, "bases", ())):
                self.read |= _free(part) - self.made
            self.made.add(node.name)
            self.defined.add(node.name)
            return
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = {a.asname or a.name.split(".")[0] for a in node.names}
            self.made |= names
            self.imported |= names
            return
        inner = [c for c in ast.iter_child_nodes(node) if not isinstance(c, ast.stmt)]
        for part in inner:
            if isinstance(part, ast.Lambda):
                self._later |= _free(part)
            elif not isinstance(part, ast.ExceptHandler | ast.match_case):
                self.read |= _free(part) - self.made
        for part in inner:
            self._targets(part)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            self._effects(node.value)
        if isinstance(node, ast.AugAssign):
            self.read |= (
                _free(ast.copy_location(_loaded(node.target), node)) - self.made
            )
            self._change(node.target)
        for name in ("body", "handlers", "orelse", "finalbody", "cases"):
            for child in getattr(node, name, ()):
                if isinstance(child, ast.stmt):
                    self._statement(child)
                else:
                    self._block(child.body)

    def _effects(self, call):
        """A call whose result is dropped: rows.append(row), model.eval()."""
        name = getattr(call.func, "attr", getattr(call.func, "id", ""))
        if name == "print" or name.startswith("assert"):
            return
        if isinstance(call.func, ast.Attribute):
            self._change(call.func.value)
        for part in (*call.args, *(k.value for k in call.keywords)):
            self._change(part)

    def _targets(self, part):
        """Names that are set anywhere in this part, and objects that are changed."""
        for node in ast.walk(part):
            context = getattr(node, "ctx", None)
            if not isinstance(context, ast.Store | ast.Del):
                continue
            if isinstance(node, ast.Name):
                self.made.add(node.id)
            elif isinstance(node, ast.Subscript | ast.Attribute):
                self._change(node)  # x[0] = 1, x.y = 1

    def _change(self, target):
        inside = {ast.Call: "func", ast.BinOp: "left"}  # (folder / name).write_text(x)
        while isinstance(target, ast.Subscript | ast.Attribute | ast.Call | ast.BinOp):
            target = getattr(target, inside.get(type(target), "value"))
        if isinstance(target, ast.Name):
            self.changed.add(target.id)


def _loaded(target):
    return ast.Name(target.id, ast.Load()) if isinstance(target, ast.Name) else target


def _free(node):
    """Names that this part of a program reads and does not set itself."""
    names = [n for n in ast.walk(node) if isinstance(n, ast.Name)]
    read = {n.id for n in names if isinstance(n.ctx, ast.Load)}
    scopes = (ast.comprehension, ast.Lambda, ast.FunctionDef, ast.ClassDef)
    if not any(isinstance(n, scopes) for n in ast.walk(node)):
        return read
    own = {n.id for n in names if isinstance(n.ctx, ast.Store)}
    own |= {n.arg for n in ast.walk(node) if isinstance(n, ast.arg)}
    return read - own


class Notebook:
    """The code cells of a notebook, by id, and which of them a cell needs."""

    def __init__(self, path):
        self.path = Path(path)
        cells = nbformat.read(path, as_version=4).cells
        self.sources = {c.id: c.source for c in cells if c.cell_type == "code"}
        self.sources.pop("setup", None)

    @cached_property
    def names(self):
        return {
            i: _Names(ast.parse(python_of(source)))
            for i, source in self.sources.items()
        }

    @cached_property
    def imported(self):
        """Modules, and what comes from them: a call does not change these."""
        return set().union(*(names.imported for names in self.names.values()))

    @cache  # noqa: B019 - notebooks are few, and kept
    def needs(self, cell):
        """The ids of the cells that `cell` needs, in order, without itself."""
        order = list(self.sources)
        wanted, found = {cell: set(self.names[cell].read)}, set()
        open_cells = [cell]
        while open_cells:
            one = open_cells.pop()
            missing = set(wanted[one])
            before = reversed(order[: order.index(one)])
            after = order[order.index(one) + 1 : order.index(cell)]
            for other in (*before, *after):  # a function may use what comes after it
                names = self.names[other]
                if order.index(other) > order.index(one):
                    missing &= self.names[one].later
                    again = self.names[one].later & self.imported & names.defined
                    uses = names.made & missing | again
                else:
                    uses = (names.made | names.changed - self.imported) & missing
                if not uses:
                    continue
                if other not in found:
                    found.add(other)
                    wanted[other] = names.read | names.changed
                    open_cells.append(other)
                missing -= names.made
        return tuple(i for i in order if i in found)

    def run(self, cells, space=None, instead=None):
        """Run these cells in order, `instead` for some; return what they named."""
        space = {"__name__": "__main__"} if space is None else space
        for cell in cells:
            source = (instead or {}).get(cell, self.sources[cell])
            code = compile(python_of(source), f"{self.path.stem}#{cell}", "exec")
            exec(code, space)
        return space
