"""Find measured numbers in the book's prose that nothing carries.

    python tools/unbound.py                          all of `SOURCES`
    python tools/unbound.py notebooks/phase1*.ipynb  these alone

A decimal, a percentage, or a number with a measured unit (`UNIT`) counts as measured.
It must come from somewhere, or stand where it is no measurement:

- a role inserts it from an output, {glue:text}`name`, or a directive from a file, so
  that the source holds no number
- its sentence, list item or row of a table has a citation
- it is code, mathematics, an address, a version, a guess at a reader's minutes
- it is a setting: code in the same section of the notebook, assertions apart, holds
  the same value (not if it is one digit with a unit: `2 s` could be any 2 of the code)
- `tests/not_measured.toml` says why it is no measurement

In a notebook the alt texts and captions of figures and the hints of the workbook are
prose too. No role reaches them, so there a number may also stand in what an output of
the same section prints as text; a figure of the library prints its own description.

`benchmarks/report.py` writes some pages; of these its templates are read instead, and
those of the directive that makes the tables of the page Numbers. Two more things are
asked of {glue:text}: that a cell above glues the name, and that an output above, in the
same section, prints the number, as JupyterLab shows the bare name. Numbers in words
(twice, a tenth) are not looked for. Exit status 1 if any are found.
"""

import argparse
import ast
import json
import re
import sys
import tomllib
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tools.sections import glued, section_of, source  # noqa: E402
from tools.slices import python_of  # noqa: E402

EXCEPTIONS = ROOT / "tests" / "not_measured.toml"
SOURCES = ["notebooks/*.ipynb", "book/*.md", "README.md", "CONTRIBUTING.md"]
SOURCES += ["benchmarks/report*.py", "book/_ext/gpt2book/numbers.py"]  # they write it
GONE = "\0"  # stands for what is not prose

# What is measured ---------------------------------------------------------------------

MANY = r"(?:[kMBGT]|thousand|million|billion)?\s?"
UNIT = (
    r"%|per ?cent\b|[×x](?!\s?\d|\w)|times\b|-?fold\b"
    r"|[nmµ]s\b|(?<!\b[12]\d\d0)(?<![A-Za-z]-\d)s\b"  # not the 1990s, not GPT-2s
    r"|mins?\b|hrs?\b|h\b"
    r"|-?(?:(?:milli|micro)?sec(?:ond)?s?|minutes?|hours?|days?)\b"
    r"|[kMGT]i?B\b(?:/s)?|-?(?:kilo|mega|giga|tera)bytes?\b"
    r"|[kMGTP]?FLOP(?:S\b|s?/s)"
    rf"|{MANY}[a-z-]+/s\b|{MANY}[a-z-]+ (?:a|per) (?:second|minute|hour|day)\b"
    r"|nats?\b|bits (?:a|per|each)\b|watts?\b|degrees\b"
)
NUMBER = re.compile(
    r"(?<![\w.])(?P<digits>(?:\d{1,3}(?:,\d{3})+|\d+)(?P<decimals>\.\d+)?"
    rf"(?P<power>e[-−+]?\d+)?)(?!\d|[.,]\d)(?:\s?(?P<unit>{UNIT}))?"
)


def measured(prose):
    """Return the matches of `NUMBER` that look like measurements."""
    return [
        match
        for match in NUMBER.finditer(prose)
        if match["decimals"] or match["power"] or match["unit"]
    ]


def is_setting(match, settings):
    """Whether code holds the number; one digit with a unit is never taken for one."""
    small = len(match["digits"]) == 1 and match["unit"] and not is_share(match)
    return value(match) in settings and not small


def is_share(match):
    return match["unit"] in ("%", "per cent", "percent")


def value(match):
    """Return what a number says: 5 % is 0.05."""
    number = float(match["digits"].replace(",", "").replace("−", "-"))
    return round(number / 100, 12) if is_share(match) else number


# What is prose ------------------------------------------------------------------------

CODE = [
    r"(?:^|(?<=\n\n))(?: {4}.*(?:\n|$)(?:\n+(?= {4}))?)+",  # indented, after a line
    r"<!--[\s\S]*?-->",
    r"\$\$[\s\S]*?\$\$",
    r"(?P<ticks>`+)(?!`)[\s\S]*?(?<!`)(?P=ticks)(?!`)",
    r"(?<![\\$])\$[^$\n]*(?:\n[^$\n]+)*\$",
    r"(?<=\])\([^()\s]*\)",  # where a link leads
    r"https?://[^\s)>]+",
    r"</?\w[^>]*>",
]
ESTIMATES = [
    r"\*Difficulty \d/5, [^*]*\*",
    r"\*reads in\* \d+ minutes",
    r"(?:Python|PyTorch|torch|transformers|CUDA|litgpt|version) v?\d+(?:\.\d+)*",
]
FENCE = re.compile(r" *(`{3,}|~{3,}|:{3,})(.*)")
CITED = re.compile(r"\{cite[^}]*\}`")
STARTS = re.compile(r" *(?:[-*+]|\d+\.|#+|\|)\s?")
ENDS = re.compile(r"(?<=[.!?])[)*\"']*\s+(?=[A-Z0-9*\"'(\[`$\0])|(?<=:)\s*\n")


def prose(text):
    """Return `text` with everything blotted out that is not prose; lines stay."""
    text = "".join(unfenced(text))
    for pattern in CODE + ESTIMATES:
        text = re.sub(pattern, blot, text, flags=re.MULTILINE)
    return text


def unfenced(text):
    """Yield the lines of a text, fenced code blotted out; in directives is prose."""
    fences = []  # of what is open: how it ends, whether it is code
    for line in text.splitlines(keepends=True):
        mark = FENCE.match(line)
        inside = bool(fences) and fences[-1][1]
        if mark and fences and mark[1] == fences[-1][0] and not mark[2].strip():
            fences.pop()
        elif mark and not inside:
            fences.append((mark[1], mark[1][0] != ":" and mark[2][:1] != "{"))
        elif not inside:
            yield line
            continue
        yield re.sub(r"[^\n]", GONE, line)


def blot(match):
    return re.sub(r"[^\n]", GONE, match[0])


def blocks(text):
    """Yield (start, end) of each paragraph, list item, heading and row of a table."""
    start, place = None, 0
    for line in text.splitlines(keepends=True):
        if start is not None and (not line.strip() or STARTS.match(line)):
            yield start, place
            start = None
        if start is None and line.strip():
            start = place
        place += len(line)
    if start is not None:
        yield start, place


def sentences(text):
    """Yield (start, end) of each sentence of a block."""
    start = 0
    for match in ENDS.finditer(text):
        yield start, match.end()
        start = match.end()
    yield start, len(text)


class Found(NamedTuple):
    """A number without a source: where it stands, in what sentence."""

    place: str
    number: str
    sentence: str

    def __str__(self):
        return f"{self.place}: {self.number}, in: {self.sentence}"


def unbound(text, settings=(), shown=()):
    """Yield (start, number, sentence) for each unbound number of a Markdown text.

    Those are none whose value is among `settings`, of code, or `shown`, by outputs.
    """
    plain = prose(text)
    for first, last in blocks(plain):
        whole = text[first:last]
        in_item = STARTS.match(whole) and CITED.search(whole)
        for start, end in sentences(plain[first:last]):
            said = text[first + start : first + end]
            if in_item or CITED.search(said):
                continue
            for match in measured(plain[first + start : first + end]):
                if value(match) not in shown and not is_setting(match, settings):
                    place = first + start + match.start()
                    yield place, match[0], " ".join(said.split())


def numbers_in(code):
    """Return the values of the numbers in Python; none of those that assertions hold.

    What an assertion allows (a gap below 0.2) is no setting, and no result either.
    """
    try:
        found, left = set(), [ast.parse(python_of(code))]
    except SyntaxError:  # another language, by %%bash or the like
        return set()
    while left:
        node = left.pop()
        if isinstance(node, ast.Assert) or is_assertion(node):
            continue
        if isinstance(node, ast.Constant) and type(node.value) in (int, float):
            found.add(float(node.value))
        left += ast.iter_child_nodes(node)
    return found


def is_assertion(node):
    """Whether a part of a program is a call like `torch.testing.assert_close(...)`."""
    called = getattr(node, "func", None)
    name = getattr(called, "attr", getattr(called, "id", ""))
    return name.startswith("assert")


# Notebooks ----------------------------------------------------------------------------

TAGS = re.compile(r"<(script|style|svg)\b[\s\S]*?</\1>|<[^>]*>")
GLUED = re.compile(r"\{glue(?::\w+)?\}`([^`:]+)[^`]*`")


def printed(cell):
    """Return what a cell's outputs show as text."""
    parts = []
    for output in cell.get("outputs", ()):
        data = output.get("data", {})
        parts.append("".join(output.get("text", "")))
        parts.append("".join(data.get("text/plain", "")))
        parts.append(TAGS.sub(" ", "".join(data.get("text/html", ""))))
    return "\n".join(parts)


def numbers_printed(cells):
    """Return the values of the numbers that outputs show as text, or offer to it."""
    shown = [printed(cell) for cell in cells] + list(glued(cells).values())
    text = re.sub(r"<Figure size [^>]*>", " ", "\n".join(shown))
    return {value(match) for match in NUMBER.finditer(text)}


def words_of(cell):
    """Yield (what it is, its text) for what a cell's metadata say to the reader."""
    figure, learner = (cell["metadata"].get(name, {}) for name in ("mystnb", "learner"))
    yield "alt", figure.get("image", {}).get("alt", "")
    yield "caption", figure.get("figure", {}).get("caption", "")
    hints = learner.get("hints", ())
    for number, hint in enumerate([hints] if isinstance(hints, str) else hints, 1):
        yield f"hint {number}", hint


def check_notebook(file, text):
    """Yield what is unbound in a notebook, and roles that have no number above."""
    cells = json.loads(text)["cells"]
    code = [
        numbers_in(source(cell)) if cell["cell_type"] == "code" else set()
        for cell in cells
    ]
    for n, cell in enumerate(cells):
        place = f"{file}#{cell['id']}"
        first, last = section_of(cells, n)
        settings = set().union(*code[first:last])
        if cell["cell_type"] == "markdown":
            for _, number, said in unbound(source(cell), settings):
                yield Found(place, number, said)
            yield from check_roles(place, source(cell), cells[:n], first)
        for kind, words in words_of(cell):
            shown = numbers_printed(cells[first:last])
            for _, number, said in unbound(words, settings, shown):
                yield Found(f"{place} ({kind})", number, said)


def check_roles(place, text, above, first):
    """Yield roles whose name no cell above glues, or whose number none prints."""
    for match in GLUED.finditer(text):
        makers = [cell for cell in above if match[1] in glued([cell])]
        if not makers:
            yield Found(place, match[0], "no cell above it glues that name")
            continue
        number = glued(makers[-1:])[match[1]]
        alone = re.compile(rf"(?<![\d.,]){re.escape(number)}(?!\d|[.,]\d)")
        shown = "\n".join(printed(cell) for cell in [makers[-1], *above[first:]])
        if not alone.search(shown):
            yield Found(place, match[0], f"no output above it prints {number}")


# Pages --------------------------------------------------------------------------------


def check_page(file, text):
    for place, number, said in unbound(text):
        yield Found(f"{file}:{text.count(chr(10), 0, place) + 1}", number, said)


def written_pages(report):
    """Return the pages that `benchmarks/report.py` writes."""
    return {f"book/{name}" for name in re.findall(r'"book" / "(\w+\.md)"', report)}


def check_templates(file, text):
    """Yield what is unbound in the strings of a program that writes pages.

    A field in braces is a number from a result, so it is blotted out.
    """
    tree = ast.parse(text)
    kept = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    kept |= {
        id(part)
        for node in ast.walk(tree)
        if isinstance(node, ast.FormattedValue) and node.format_spec
        for part in ast.walk(node.format_spec)
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.Constant) or not isinstance(node.value, str):
            continue
        if id(node) in kept or " " not in node.value:
            continue  # a docstring, a format, a name
        said = re.sub(r"(?<!\{)\{[^{}]+\}", blot, node.value).replace("{{", "{")
        for place, number, sentence in unbound(said.replace("}}", "}")):
            line = node.lineno + node.value.count("\n", 0, place)
            yield Found(f"{file}:{line}", number, sentence.replace(GONE, "_"))


# All ----------------------------------------------------------------------------------


def read_exceptions(path=EXCEPTIONS):
    """Return the entries of `not_measured.toml`: file, text, why."""
    return tomllib.loads(path.read_text("utf-8"))["number"] if path.exists() else []


def check(file, text, exceptions=(), generated=()):
    """Return what is unbound in a file, apart from exceptions."""
    if file in generated:
        return []
    how = {".ipynb": check_notebook, ".py": check_templates}
    found = list(how.get(Path(file).suffix, check_page)(file, text))
    texts = [" ".join(one["text"].split()) for one in exceptions if one["file"] == file]
    return [one for one in found if not any(excused(one, said) for said in texts)]


def excused(found, text):
    return found.number in text and text in found.sentence


def idle(exceptions, generated=()):
    """Return a sentence for each exception that excuses nothing any more."""
    told = []
    for one in exceptions:
        path = ROOT / one["file"]
        text = path.read_text("utf-8") if path.exists() else ""
        left = check(one["file"], text, (), generated) if text else []
        said = " ".join(one["text"].split())
        if not any(excused(found, said) for found in left):
            told.append(f"{one['file']}: nothing unbound in {said!r}: drop the entry")
    return told


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path, help="all, if none is named")
    named = parser.parse_args().files
    paths = named or [path for pattern in SOURCES for path in ROOT.glob(pattern)]
    generated = written_pages((ROOT / "benchmarks" / "report.py").read_text("utf-8"))
    exceptions = read_exceptions()
    found = []
    for path in sorted(path.resolve() for path in paths):
        file = path.relative_to(ROOT).as_posix()
        found += check(file, path.read_text("utf-8"), exceptions, generated)
    if not named:
        found += idle(exceptions, generated)
    if found:
        sys.exit("\n".join(map(str, found)))
    print("Every measured number comes from somewhere")


if __name__ == "__main__":
    main()
