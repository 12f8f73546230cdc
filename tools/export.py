"""Write `gpt2lib/` from the notebooks: a cell marked `#| export MODULE` goes there.

    python tools/export.py            write the modules
    python tools/export.py --check    change nothing; fail if a module differs

nbdev reads the notebooks and writes the files. What this program adds: several modules
from one notebook, each written whole at every run; a module's docstring, taken from the
string that opens its first cell; and the two rules that nbdev does not know, that a
module belongs to one notebook and a public name to one module.
"""

import argparse
import ast
import sys
import tempfile
from pathlib import Path

from nbdev.export import ExportModuleProc
from nbdev.maker import ModuleMaker
from nbdev.process import NBProcessor

ROOT = Path(__file__).resolve().parent.parent


def take_docstring(cell):
    """Remove the string that opens `cell` and return it with its quotes, or ''."""
    body = ast.parse(cell.source).body
    if not (body and isinstance(body[0], ast.Expr)):
        return ""
    value = body[0].value
    if not (isinstance(value, ast.Constant) and isinstance(value.value, str)):
        return ""
    lines = cell.source.splitlines(keepends=True)
    start, end = body[0].lineno - 1, body[0].end_lineno
    cell.set_source("".join(lines[:start] + lines[end:]).lstrip("\n"))
    return "".join(lines[start:end]).rstrip() + "\n\n"


def export(notebooks, package):
    """Write the modules of all `notebooks` into `package`; return their names."""
    owner, defined_in = {}, {}
    for path in notebooks:
        modules = ExportModuleProc()
        NBProcessor(path, [modules]).process()
        # "#" holds the title, and a code cell that names no module.
        if any(cell.cell_type == "code" for cell in modules.modules.pop("#", [])):
            sys.exit(f"{path.name}: a cell says `#| export` without naming its module")
        for name, cells in modules.modules.items():
            if name in owner:
                sys.exit(f"{name}: exported from {owner[name]} and from {path.name}")
            owner[name] = path.name
            docstring = take_docstring(cells[0])
            maker = ModuleMaker(dest=package, name=name, nb_path=path)
            maker.dest2nb = f"../notebooks/{path.name}"
            maker.hdr = f"# %% {maker.dest2nb}"
            maker.make(cells, modules.in_all[name], lib_path=package)
            module = package / f"{name}.py"
            module.write_text(docstring + module.read_text("utf-8"), "utf-8")
            for symbol in maker.make_all(modules.in_all[name]):
                if symbol in defined_in:
                    sys.exit(f"{symbol}: defined in {defined_in[symbol]} and in {name}")
                defined_in[symbol] = name
    return sorted(owner)


def compare(fresh, committed, names):
    """Return one sentence for each module that differs between the two folders."""
    stray = {path.stem for path in committed.glob("*.py")} - {"__init__", *names}
    faults = [f"gpt2lib/{name}.py comes from no notebook" for name in sorted(stray)]
    for name in names:
        old, new = committed / f"{name}.py", fresh / f"{name}.py"
        if not old.exists() or old.read_text("utf-8") != new.read_text("utf-8"):
            faults.append(f"gpt2lib/{name}.py differs from what its notebook exports")
    return faults


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only compare")
    check = parser.parse_args().check
    notebooks = sorted((ROOT / "notebooks").glob("*.ipynb"))
    if not check:
        names = export(notebooks, ROOT / "gpt2lib")
        print(f"exported {len(names)} modules: {', '.join(names)}")
        return
    with tempfile.TemporaryDirectory() as folder:
        fresh = (
            Path(folder) / "gpt2lib"
        )  # imports become relative to this folder's name
        faults = compare(fresh, ROOT / "gpt2lib", export(notebooks, fresh))
    if faults:
        sys.exit("\n".join([*faults, "Run `make export` and commit the result."]))
    print("gpt2lib/ is what the notebooks export")


if __name__ == "__main__":
    main()
