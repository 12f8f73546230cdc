"""Each capital letter of a formula or a shape is on the page of notation."""

import json
import re

import pytest
from conftest import NOTEBOOKS, ROOT

ROW = re.compile(r"^\| (?P<symbols>\$[^|]+) \|", re.MULTILINE)
FORMULA = re.compile(r"\$\$.+?\$\$|\$[^$\n]+\$", re.DOTALL)
QUOTED = re.compile(r"`(\([^`]*,[^`]*\))`")
COMMENT = re.compile(r"#[^#\n]*?(\([^()\n]*,[^()\n]*\))")
LETTER = re.compile(r"(?<![A-Za-z_.\\])[A-Z](?![A-Za-z_])")


def letters(formula):
    """Return the capitals of a formula or a shape, without the commands of TeX."""
    plain = re.sub(r"\\(?:mathrm|text|operatorname)\{[^}]*\}|\\[A-Za-z]+", " ", formula)
    return set(LETTER.findall(plain))


def listed():
    page = (ROOT / "book" / "notation.md").read_text("utf-8")
    return set().union(*(letters(row["symbols"]) for row in ROW.finditer(page)))


def shown(cell):
    """Return the formulas and shapes of a cell."""
    source = "".join(cell["source"])
    kinds = (FORMULA,) if cell["cell_type"] == "markdown" else (COMMENT,)
    return [found for kind in (*kinds, QUOTED) for found in kind.findall(source)]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_capital_is_in_the_page_of_notation(path):
    unknown = [
        f"{cell['id']}: {letter} in {formula}"
        for cell in json.loads(path.read_text("utf-8"))["cells"]
        for formula in shown(cell)
        for letter in sorted(letters(formula) - listed())
    ]
    assert not unknown, "book/notation.md does not list\n" + "\n".join(unknown)


def test_what_counts_as_a_letter():
    assert letters(r"$\mathrm{Attention}(Q, K) \in R(x)$") == {"K", "Q", "R"}
    assert letters("(1 + L, n_T, T.x, GPT, B)") == {"L", "T", "B"}
    assert {"B", "T", "C", "V"} < listed()
    cell = {
        "cell_type": "code",
        "source": "x = f(Z, 1)  # as g: (B, Y)\n'''`(X, 2)`'''",
    }
    assert shown(cell) == ["(B, Y)", "(X, 2)"]
    prose = {"cell_type": "markdown", "source": "$X$ and `(Y, 1)` and (Z, 2)"}
    assert shown(prose) == ["$X$", "(Y, 1)"]
