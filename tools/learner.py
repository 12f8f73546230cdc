"""Write the workbook, `learner/`, from the phase notebooks: bodies become blanks.

    python tools/learner.py            write it
    python tools/learner.py --check    change nothing; fail if a file differs

An exported cell whose metadata holds `learner` is an exercise:

    exercise    its name, which a learner gives to show_me(...)
    difficulty  1 to 5
    minutes     for somebody who has read the section
    checks      the ids of its check cells, in order
    hints       Markdown, each more telling than the one before
    keep        functions that stay whole (optional)
    task        what to write, where the docstring does not say enough (optional)

Signatures, docstrings, first guards and the shapes in trailing comments stay. Of the
exercises that close a phase the solution is folded, and blank in its cell. All other
cells are the phase's own, without outputs. `gpt2lib/static/workbook.json` lists the
exercises for `gpt2lib.workbook`, which finds the references in the library itself.
"""

import argparse
import ast
import io
import json
import re
import sys
import tokenize
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent
LIST = Path("gpt2lib/static/workbook.json")
REQUIRED = {"exercise", "difficulty", "minutes", "checks", "hints"}
OPTIONAL = {"keep", "task"}
EXPORT = re.compile(r"#\| export (\w+)\n")


# The blank ------------------------------------------------------------------------


def functions(node, inside=""):
    """Yield (name, function) for functions and methods, not for those within them."""
    for item in ast.iter_child_nodes(node):
        if isinstance(item, ast.ClassDef):
            yield from functions(item, f"{item.name}.")
        elif isinstance(item, ast.FunctionDef):
            yield inside + item.name, item


def stays(statement):
    """Whether a statement at the start of a body is no part of the exercise."""
    match statement:
        case ast.Expr(value=ast.Constant(value=str())):  # the docstring
            return True
        case ast.Import() | ast.ImportFrom():
            return True
        case ast.Expr(value=ast.Call(func=ast.Name(id=name))):
            return name.startswith("_check")
        case ast.Expr(value=ast.Call(func=ast.Attribute(attr="__init__"))):
            return True
        case ast.If(body=[*_, ast.Raise()], orelse=[]):  # bad input is refused
            return True
    return False


def shapes(source):
    """Return {line: text} of the trailing comments that give a shape."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {
        t.start[0]: t.string[1:].strip() for t in tokens if t.type == tokenize.COMMENT
    }
    lines = source.splitlines()
    return {
        line: text
        for line, text in comments.items()
        if re.match(r"\((?=[A-Z\d.])", text) and lines[line - 1].strip()[0] != "#"
    }


def notes(statements, comments, name):
    """Return what a blank tells of the body: attributes it sets, shapes on the way."""
    nodes = [node for statement in statements for node in ast.walk(statement)]
    told = []
    if name.endswith("__init__"):
        found = [
            ast.unparse(node)
            for node in sorted(
                (n for n in nodes if isinstance(n, ast.Attribute)),
                key=lambda n: (n.lineno, n.col_offset),
            )
            if isinstance(node.ctx, ast.Store)
        ]
        told += ["sets " + ", ".join(dict.fromkeys(found))] if found else []
    for line, text in comments.items():
        if not statements[0].lineno <= line <= statements[-1].end_lineno:
            continue
        around = [
            node
            for node in nodes
            if isinstance(node, ast.stmt) and node.lineno <= line <= node.end_lineno
        ]
        match max(around, key=lambda node: node.lineno):
            case ast.Return():
                told.append(f"returns {text}")
            case ast.Assign(targets=[target]):
                told.append(f"{ast.unparse(target).strip('()')}: {text}")
            case ast.AugAssign(target=target):
                told.append(f"{ast.unparse(target)}: {text}")
            case _:
                told.append(text)
    return told


def blank(source, exercise, keep=()):
    """Return the cell with the bodies of its functions left out."""
    lines, comments = source.splitlines(), shapes(source)
    found = list(functions(ast.parse(source)))
    names = {part for name, _ in found for part in (name, name.split(".")[-1])}
    unknown = set(keep) - names
    if unknown:
        sys.exit(f"{exercise}: `keep` names {sorted(unknown)}, which are not there")
    for name, node in reversed(found):
        rest = list(node.body)
        while rest and stays(rest[0]):
            rest.pop(0)
        if not rest or name in keep or name.split(".")[-1] in keep:
            continue
        kept = node.body[: len(node.body) - len(rest)]
        first = kept[-1].end_lineno if kept else rest[0].lineno - 1
        indent = " " * rest[0].col_offset
        told = [wrapped(note, indent) for note in notes(rest, comments, name)]
        label = exercise if exercise.isdigit() else repr(exercise)
        message = f"Exercise {label}: {name} is not done yet"
        call = f'{indent}raise NotImplementedError("{message}")'
        if len(call) > 88:
            call = (
                f"{indent}raise NotImplementedError(\n"
                f'{indent}    "{message}"\n{indent})'
            )
        lines[first : node.end_lineno] = [*told, call]
    return "\n".join(lines)


def unsolved(source, number):
    """Return what a learner finds in place of the solution of a closing exercise."""
    tree = ast.parse(source)
    if any(True for _ in functions(tree)):
        last = tree.body[-1].end_lineno  # what follows is a remark on the answer
        return blank("\n".join(source.splitlines()[:last]), number)
    answer = ast.unparse(tree.body[-1].targets[0])
    return (
        f'raise NotImplementedError("Exercise {number} is not done yet: {answer} = ?")'
    )


def wrapped(note, indent):
    """Return `note` as a comment of at most 88 columns."""
    lines, line = [], f"{indent}#"
    for word in note.split():
        if len(line) + 1 + len(word) > 88:
            lines.append(line)
            line = f"{indent}#  "
        line += f" {word}"
    return "\n".join([*lines, line])


# The notebook ---------------------------------------------------------------------


def exercises(notebook, stem):
    """Return the exercises of a phase, in order, or stop with what is wrong in one."""
    code = {c.id: c.source for c in notebook.cells if c.cell_type == "code"}
    order, found = list(code), []
    for cell in notebook.cells:
        marks = cell.metadata.get("learner")
        if marks is None:
            continue
        place = f"{stem}#{cell.id}"
        module = EXPORT.match(cell.source)
        if not module:
            sys.exit(f"{place} is an exercise but is not exported")
        if not REQUIRED <= set(marks) <= REQUIRED | OPTIONAL:
            sys.exit(f"{place}: `learner` must hold {sorted(REQUIRED)}")
        wrong = [check for check in marks["checks"] if check not in order]
        if wrong or not marks["checks"]:
            sys.exit(f"{place}: no check cells {wrong}")
        places = [order.index(one) for one in (cell.id, *marks["checks"])]
        if places != sorted(places):
            sys.exit(f"{place}: the checks are not in the notebook's order")
        found.append({"cell": cell.id, "module": module[1], **marks})
    names = [one["exercise"] for one in found]
    if len(names) != len(set(names)):
        sys.exit(f"{stem}: two exercises have one name")
    return found


def marked(cell, found):
    """Return the code of a cell of the phase as the workbook shows it."""
    told = [
        f"{one['exercise']} ({one['checks'].index(cell.id) + 1} of "
        f"{len(one['checks'])})"
        for one in found
        if cell.id in one["checks"]
    ]
    return (f"# check: {', '.join(told)}\n" if told else "") + cell.source


def relinked(text, names):
    """Return Markdown whose links to pages that have no workbook lead to the book."""
    return re.sub(
        r"\]\((\w+\.ipynb)(?=[)#])",
        lambda m: m[0] if m[1] in names else f"](../notebooks/{m[1]}",
        text,
    )


def about(one):
    """Return the cell that stands before an exercise."""
    count = len(one["checks"])
    text = [
        f"**Exercise `{one['exercise']}`.** Difficulty {one['difficulty']} of 5, about "
        f"{one['minutes']} minutes, {count} check{'s' * (count > 1)}."
    ]
    if "task" in one:
        text[0] += " " + one["task"]
    inner = ""
    for number in reversed(range(len(one["hints"]))):
        inner = (
            f"<details><summary>Hint {number + 1}</summary>\n\n"
            f"{one['hints'][number]}\n\n{inner}</details>\n\n"
        )
    return "\n\n".join([*text, inner.strip()])


def opening(stem, title, found):
    """Return the two cells that follow the phase's title: what this is, and a list."""
    total = sum(one["minutes"] for one in found)
    rows = [
        f"| `{one['exercise']}` | {one['difficulty']} of 5 | {one['minutes']} |"
        for one in found
    ]
    text = [
        f"**This is the workbook of [{title}](../notebooks/{stem}.ipynb)**: the same "
        f"text and the same checks, with {len(found)} cells for you to write. Run the "
        "cells from top to bottom. A cell that opens with `# exercise: NAME` has blank "
        "bodies: what stays are signatures, docstrings and the shapes on the way. "
        "The cells that open with `# check: NAME` say what is missing or which "
        "mistake is likely.",
        "Hints unfold one within the other. `show_me(...)` below an exercise puts the "
        "finished cell in place, so that you can go on. `summary()`, in the last cell "
        "or anywhere, says what stands and what to do next. Earlier phases come "
        "finished from `gpt2lib`, so that no mistake of yesterday holds you up.",
        "| exercise | difficulty | minutes |\n| --- | --- | --- |\n" + "\n".join(rows),
        f"Together about {total} minutes.",
    ]
    code = (
        "from gpt2lib.workbook import open_workbook\n\n"
        f'show_me, summary = open_workbook("{stem}")'
    )
    return text, code


def derive(phase, stem, names):
    """Return the workbook of a phase and its exercises."""
    found = exercises(phase, stem)
    by_cell = {one["cell"]: one for one in found}
    cells = []

    def add(kind, name, source):
        make = getattr(nbformat.v4, f"new_{kind}_cell")
        cells.append(make(relinked(source, names) if kind == "markdown" else source))
        cells[-1].id = name

    for cell in phase.cells:
        if cell.id == "title":
            title, rest = cell.source.split("\n", 1)
            text, code = opening(stem, title.removeprefix("# "), found)
            add("markdown", "title", f"{title} (workbook)\n{rest}")
            add("markdown", "workbook-about", "\n\n".join(text))
        elif cell.id in by_cell:
            one = by_cell[cell.id]
            add("markdown", f"{cell.id}-exercise", about(one))
            body = EXPORT.sub("", cell.source, count=1)
            body = blank(body, one["exercise"], one.get("keep", ()))
            add("code", cell.id, f"# exercise: {one['exercise']}\n{body}")
            show = f'# show_me("{one["exercise"]}")  # take away the first # to see it'
            add("code", f"{cell.id}-show", show)
        elif solution := re.fullmatch(r"exercise-(\d+)-solution", cell.id):
            folded = f"```python\n{cell.source}\n```\n\n</details>"
            add(
                "markdown",
                f"{cell.id}-folded",
                f"<details><summary>Solution</summary>\n\n{folded}",
            )
            add("code", cell.id, unsolved(cell.source, solution[1]))
        else:
            source = EXPORT.sub("", cell.source, count=1)
            cell = nbformat.from_dict({**cell, "source": source})
            add(cell.cell_type, cell.id, marked(cell, found))
        if cell.id == "setup":
            add("code", "workbook-open", code)
    add("markdown", "workbook-end", "## What stands\n\nAnd what to do next:")
    add("code", "workbook-summary", "summary()")
    info = {"name": "python", "pygments_lexer": "ipython3"}
    metadata = {"kernelspec": phase.metadata["kernelspec"], "language_info": info}
    return nbformat.v4.new_notebook(cells=cells, metadata=metadata), found


def files(root):
    """Return {path: text} of all that is derived."""
    phases = sorted((root / "notebooks").glob("phase*.ipynb"))
    names, texts, listed = {path.name for path in phases}, {}, {}
    for path in phases:
        phase = nbformat.read(path, as_version=4)
        workbook, found = derive(phase, path.stem, names)
        texts[Path("learner") / path.name] = nbformat.writes(workbook) + "\n"
        kept = ("exercise", "module", "cell", "difficulty", "minutes")
        listed[path.stem] = [
            {**{key: one[key] for key in kept}, "checks": len(one["checks"])}
            for one in found
        ]
    texts[LIST] = json.dumps(listed, indent=1) + "\n"
    return texts


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only compare")
    check = parser.parse_args().check
    texts, faults = files(ROOT), []
    for path in ROOT.glob("learner/*"):
        if path.relative_to(ROOT) not in texts:
            faults.append(f"{path.relative_to(ROOT)} comes from no phase")
    for path, text in texts.items():
        place = ROOT / path
        if not check:
            place.parent.mkdir(exist_ok=True)
            place.write_text(text, "utf-8")
        elif not place.exists() or place.read_text("utf-8") != text:
            faults.append(f"{path} differs from what its notebook gives")
    if faults:
        sys.exit("\n".join([*faults, "Run `make export` and commit the result."]))
    total = sum(len(phase) for phase in json.loads(texts[LIST]).values())
    print(
        f"learner/ holds {total} exercises" if not check else "learner/ is up to date"
    )


if __name__ == "__main__":
    main()
