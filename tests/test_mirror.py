"""The chapter that shows `gpt2.js` beside Python, and the directive that makes it."""

import ast
import re
from html import unescape

import pytest
from conftest import ROOT
from test_book import build, cell, write_notebook

CHAPTER = (ROOT / "book" / "javascript.md").read_text("utf-8")
SCRIPT = (ROOT / "gpt2lib" / "static" / "gpt2.js").read_text("utf-8")
MIRRORS = re.findall(r"^```\{mirror\} (.+)\n((?::\w+: .+\n)*)```$", CHAPTER, re.M)
SHOWN = [name for names, _ in MIRRORS for name in names.split()]


def top_level(text):
    """Yield the names that each statement of a module of Python defines."""
    for node in ast.parse(text).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            yield [node.name]
        elif isinstance(node, ast.Assign):
            yield re.findall(r"\w+", ", ".join(map(ast.unparse, node.targets)))


def test_the_chapter_shows_every_symbol_once_in_the_order_of_the_file():
    assert CHAPTER.count("{mirror}") == len(MIRRORS)
    declared = re.compile(
        r"^(?:export )?(?:async )?(?:const|let|class|function)\*? (\w+)", re.M
    )
    assert declared.findall(SCRIPT) == SHOWN
    other = re.findall(
        r"^(?!export|const|let|class|function|//)[^\s})\]].*", SCRIPT, re.M
    )
    assert not other, "a statement that declares nothing is not shown"


def test_what_has_the_name_of_python_is_shown_beside_it():
    same, faults = {}, []
    for path in sorted((ROOT / "gpt2lib").glob("*.py")):
        for together in top_level(path.read_text("utf-8")):
            full = {f"gpt2lib.{path.stem}.{name}" for name in together}
            for name in together:
                same.setdefault(name.removeprefix("_"), set()).update(full)
    for names, options in MIRRORS:
        for name in names.split():
            if name in same and not same[name].intersection(options.split()):
                faults.append(f"{name} is not shown beside one of {same[name]}")
    assert not faults


# The directive, in a book of three files ----------------------------------------------

JAVASCRIPT = """// What the file is.

// A heading ---------

// Twice.
const twice = (x) => {

  return 2 * x;
};
export const ONE = 1;
export const TWO = twice(ONE);

export class Thing {
  go() {}

  stay() {}
}
export function* stream() {}
"""
PYTHON = '''"""A module."""

# %% ../notebooks/phase.ipynb #first
_ONE, TWO = 1, 2


# %% ../notebooks/phase.ipynb #second
@decorated
class Thing:
    """What it is."""

    def go(self):
        """Say what.

        And why.
        """
        return "<&"  # (T,)

    def stay(self):
        """Only this."""
'''
BY_HAND = "def twice(x):\n    return 2 * x"


@pytest.fixture
def show(tmp_path):
    """Return a function of directives that gives their page and the warnings."""
    (tmp_path / "gpt2lib" / "static").mkdir(parents=True)
    (tmp_path / "gpt2lib" / "static" / "gpt2.js").write_text(JAVASCRIPT, "utf-8")
    (tmp_path / "gpt2lib" / "thing.py").write_text(PYTHON, "utf-8")
    (tmp_path / "notebooks").mkdir()
    cells = [cell("markdown", "title", "# A phase")]
    for name, source in (("first", "%pip list"), ("second", BY_HAND)):
        cells.append(cell("code", name, source, execution_count=1, outputs=[]))
    write_notebook(tmp_path / "notebooks" / "phase.ipynb", cells)

    def shown(*directives):
        blocks = [f"```{{mirror}} {directive}\n```" for directive in directives]
        contents = "```{toctree}\nnotebooks/phase\n```"
        text = "\n\n".join(["# A title", contents, *blocks, "{script}`gpt2.js`"])
        page, warnings = build(tmp_path, [cell("markdown", "title", text)])
        return page, [w for w in warnings.splitlines() if "lexer" not in w]

    return shown


def code_blocks(page):
    blocks = re.findall(r"<pre>(.*?)</pre>", page, re.S)
    return [unescape(re.sub("<.*?>", "", block)).strip() for block in blocks]


def test_pieces_are_cut_from_their_files(show, tmp_path):
    page, warnings = show(
        "twice\n:python: notebooks.phase.twice\n:note: By *hand*:",
        "ONE TWO\n:python: gpt2lib.thing._ONE",
        "Thing\n:python: gpt2lib.thing.Thing gpt2lib.thing.Thing.stay",
        "stream",
    )
    assert not warnings
    assert code_blocks(page) == [
        BY_HAND,
        "// Twice.\nconst twice = (x) => {\n\n  return 2 * x;\n};",
        "_ONE, TWO = 1, 2",
        "export const ONE = 1;\nexport const TWO = twice(ONE);",
        '@decorated\nclass Thing:\n    def go(self):\n        return "<&"  # (T,)\n\n'
        '    def stay(self):\n        """Only this."""',
        'def stay(self):\n    """Only this."""',
        "export class Thing {\n  go() {}\n\n  stay() {}\n}",
        "export function* stream() {}",
    ]
    assert "<p>By <em>hand</em>:</p>" in page
    for link in (
        'notebooks/phase.html#second">',
        'notebooks/phase.html#first"',
        'gpt2lib/static/gpt2.js.html#line-5">gpt2.js, lines 5 to 9',
        'gpt2lib/static/gpt2.js.html"',
    ):
        assert link in page
    page = (tmp_path / "out" / "gpt2lib" / "static" / "gpt2.js.html").read_text("utf-8")
    lines = re.findall(r'<span id="line-(\d+)">', page)
    assert lines == [str(n) for n in range(1, 1 + JAVASCRIPT.count("\n"))]


def test_what_is_not_there_is_a_warning(show):
    faults = {
        "absent": "gpt2.js does not define, in a row: absent",
        "TWO ONE": "does not define, in a row: TWO, ONE",
        "twice TWO": "does not define, in a row: twice, TWO",
        "ONE\n:python: gpt2lib.thing.absent": "gpt2lib/thing.py does not define absent",
        "ONE\n:python: gpt2lib.absent.Thing": "gpt2lib/absent.py does not define Thing",
        "ONE\n:python: notebooks.phase.once": "phase.ipynb does not define once",
        "ONE\n```\n\n{script}`absent.js`\n\n```{mirror} TWO": "no script absent.js",
    }
    _, warnings = show(*faults)
    for fault in faults.values():
        assert any(fault in line for line in warnings), (fault, warnings)
