"""Measured numbers in the prose come from outputs, results, or a cited work."""

import json
from pathlib import Path

import pytest
from conftest import ROOT

from tools import unbound

FILES = sorted(path for pattern in unbound.SOURCES for path in ROOT.glob(pattern))
WRITTEN = unbound.written_pages((ROOT / "benchmarks" / "report.py").read_text("utf-8"))
EXCEPTIONS = unbound.read_exceptions()

# The book -----------------------------------------------------------------------------


def test_what_readers_and_contributors_read_is_looked_at():
    names = {path.relative_to(ROOT).as_posix() for path in FILES}
    assert {"README.md", "CONTRIBUTING.md", "book/making.md"} <= names


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_measured_numbers_come_from_somewhere(path):
    file = path.relative_to(ROOT).as_posix()
    found = unbound.check(file, path.read_text("utf-8"), EXCEPTIONS, WRITTEN)
    assert not found, "\n".join(map(str, found))


def test_exceptions_say_why_and_are_needed():
    assert all(set(one) == {"file", "text", "why"} for one in EXCEPTIONS)
    assert unbound.idle(EXCEPTIONS, WRITTEN) == []


def test_an_exception_for_what_is_gone_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(unbound, "ROOT", tmp_path)
    (tmp_path / "page.md").write_text("It takes 5 ms. The other is as fast.")
    kept, gone = ({"file": "page.md", "text": text} for text in ("5 ms", "6 ms"))
    assert unbound.idle([kept]) == []
    assert unbound.idle([gone]) == [
        "page.md: nothing unbound in '6 ms': drop the entry"
    ]


def test_pages_of_the_report_are_known():
    assert {"book/speed.md", "book/training.md"} <= WRITTEN
    assert all((ROOT / page).is_file() for page in WRITTEN)


# Planted ------------------------------------------------------------------------------

MEASURED = {
    "The loss falls to 1.47.": ["1.47"],
    "It falls to 0.25 at most.": ["0.25"],
    "Errors stay below 7e-07 everywhere.": ["7e-07"],
    "It keeps 95 % of it, or 95%, or 3.5 per cent.": ["95 %", "95%", "3.5 per cent"],
    "A token takes 12 ms, or 3 s without the cache.": ["12 ms", "3 s"],
    "The run takes 4 minutes of 2 hours.": ["4 minutes", "2 hours"],
    "The file has 970 kB, 14 MiB unpacked, read at 39 GB/s.": [
        "970 kB",
        "14 MiB",
        "39 GB/s",
    ],
    "It writes 1,234 tokens a second, or 762 tokens/s.": [
        "1,234 tokens a second",
        "762 tokens/s",
    ],
    "A product reaches 787 TFLOP/s.": ["787 TFLOP/s"],
    "It costs 2 nats, or 3 bits per character.": ["2 nats", "3 bits per"],
    "That is 28 × as fast, 3x or 4 times.": ["28 ×", "3x", "4 times"],
    "Small: 1.12 million characters.": ["1.12"],
    "A model of 1.5B parameters.": ["1.5"],
    "| a row | 3.61 s |": ["3.61 s"],
    "![A bar at 31 ms.](bars.svg)": ["31 ms"],
    "```{note}\nIt takes 5 ms.\n```\nAnd 6 ms here.": ["5 ms", "6 ms"],
    "```\n1.5\n```\nIt takes 5 ms.": ["5 ms"],
    "It takes 12 min, or 2 h, or 3 mins.": ["12 min", "2 h", "3 mins"],
    "It takes 5s, or 30s with the rest.": ["5s", "30s"],
    "A 5-minute run, a 2-hour one, and 12 secs.": ["5-minute", "2-hour", "12 secs"],
    "A GPU makes 300 TFLOPS, and 12 percent are used.": ["300 TFLOPS", "12 percent"],
    "It reads 100M tokens/s, or 20k tokens a minute.": [
        "100M tokens/s",
        "20k tokens a minute",
    ],
    "{cite:t}`a` says so. Ours takes 5 ms.": ["5 ms"],
    "- {cite:t}`a` says 5 ms.\n- Ours takes 6 ms.": ["6 ms"],
    "<details><summary>Answer</summary>\n\nIt takes 5 ms.\n\n</details>": ["5 ms"],
    "*Runs in* 3 minutes; *reads in* 30 minutes.": ["3 minutes"],
    "Between $a$ and $b$ lies 0.5, and `c` is 2 %.": ["0.5", "2 %"],
}
NOT_MEASURED = [
    "A ratio of {glue:text}`ratio` or {glue:text}`share:.0%`.",
    "The loss falls to 1.47 {cite:p}`karpathy2022nanogpt`.",
    "- {cite:t}`a` says so. There the loss falls to 1.47.",
    "| {cite:t}`a` | 1.47 nats |",
    "The rate is `0.004`, as in ``lr = 0.5``.",
    "The sum is $0.25 + 0.5\n= 0.75$.",
    "$$\n0.5\n$$",
    "See [the figure](page-1.5.svg) or https://a.org/v1.5/x.",
    "Python 3.11 or newer, torch 2.13, version 1.0.4, or 2.13.0+cpu.",
    "*Difficulty 2/5, 10 minutes.* *Difficulty 3/5, 30 minutes, most of them waiting.*",
    "*Runs in* half a minute on two cores; *reads in* 60 minutes.",
    "12 blocks of 64 features, 1,024 tokens, 8 bits, 12 × 12 heads, 124M.",
    "In the 1990s, GPT-2 of 2019 and Phase 3, Exercise 2. Fifteen small GPT-2s.",
    "12 minor ones, 2 hosts, 3 minds, 4 hooks.",
    "```python\ntime = 1.5\n```",
    "~~~\n5 ms\n~~~",
    "Run\n\n    sleep 1.5\n\n    sleep 2.5\n\nand wait.",
    "<!-- 5 ms -->",
    '<img style="width: 50%">',
    "A tenth of the time, twice as fast.",
]


@pytest.mark.parametrize("text", MEASURED)
def test_a_number_without_a_source_is_found(text):
    assert [number for _, number, _ in unbound.unbound(text)] == MEASURED[text]


@pytest.mark.parametrize("text", NOT_MEASURED)
def test_what_is_no_measurement_is_left_alone(text):
    assert list(unbound.unbound(text)) == []


def test_a_page_says_line_and_sentence():
    found = unbound.check("book/a.md", "# Title\n\nFirst.\nIt takes\n5 ms. Last.\n")
    assert [str(one) for one in found] == ["book/a.md:5: 5 ms, in: It takes 5 ms."]


def test_an_exception_excuses_its_sentence_alone():
    text = "At temperature 0.2 it repeats. The loss is 0.2 higher."
    exception = {"file": "book/a.md", "text": "temperature 0.2"}
    [left] = unbound.check("book/a.md", text, [exception])
    assert left.sentence == "The loss is 0.2 higher."
    assert len(unbound.check("book/b.md", text, [exception])) == 2


# Notebooks ----------------------------------------------------------------------------


def markdown(name, text):
    return {"cell_type": "markdown", "id": name, "metadata": {}, "source": [text]}


def code(text, outputs=(), **metadata):
    cell = {"cell_type": "code", "id": "code", "metadata": metadata}
    return cell | {"source": [text], "outputs": outputs}


def stream(text):
    return {"output_type": "stream", "text": [text]}


def glued(name, text):
    return {
        "output_type": "display_data",
        "metadata": {"scrapbook": {"name": name, "mime_prefix": "application/"}},
        "data": {"application/text/plain": text},
    }


def found_in(*cells):
    text = json.dumps({"cells": cells})
    return [
        (one.place, one.number, one.sentence)
        for one in unbound.check("notebooks/a.ipynb", text)
    ]


def test_a_setting_is_a_number_of_code_in_its_section():
    said = markdown("said", "The rate is 0.1, 5 % of all.\n")
    rate = code("rate = 1e-1\nshare = 0.05")
    assert found_in(markdown("a", "## A"), said, rate) == []
    for other in (code("rate = 0.01"), code("# 0.1 and 0.05"), code("a = '0.1 0.05'")):
        assert len(found_in(markdown("a", "## A"), said, other)) == 2
    apart = [markdown("a", "## A"), rate, markdown("b", "## B"), said]
    assert found_in(*apart) == [
        ("notebooks/a.ipynb#said", number, "The rate is 0.1, 5 % of all.")
        for number in ("0.1", "5 %")
    ]
    apart[2] = markdown("b", "### B")  # below the same heading
    assert found_in(*apart[:2], *apart[3:]) == []


def test_what_an_assertion_allows_is_no_setting():
    said = markdown("said", "It ends 0.2 nats higher, after 25 % more time.\n")
    allowed = "assert gap < 0.2, 'equal'\nassert_close(a, b, rtol=0.25)"
    checks = f"{allowed}\nfor a in b:\n    torch.testing.{allowed.splitlines()[1]}"
    assert [number for _, number, _ in found_in(said, code(checks))] == [
        "0.2 nats",
        "25 %",
    ]
    assert found_in(said, code(f"{checks}\ngap = f(0.2, share=0.25)")) == []


def test_one_digit_with_a_unit_is_no_setting():
    said = markdown("said", "It takes 2 s, 20 s and 2 % of all.\n")
    count = code("n = 2, 20, 0.02")
    assert [number for _, number, _ in found_in(said, count)] == ["2 s"]


def test_the_sentence_that_once_passed_is_found_in_its_section():
    path = ROOT / "notebooks" / "phase1_components.ipynb"
    book = json.loads(path.read_text("utf-8"))
    [answer] = [cell for cell in book["cells"] if cell["id"] == "race-answer"]
    answer["source"] += ["\npost-norm ends 0.2 nats higher, after 25 % more time.\n"]
    found = unbound.check("notebooks/phase1_components.ipynb", json.dumps(book))
    assert [one.number for one in found] == ["0.2 nats", "25 %"]


def test_code_that_python_cannot_read_hides_nothing():
    assert unbound.numbers_in("%matplotlib inline\nrate = 0.5\n!pip 1.5") == {0.5}
    assert unbound.numbers_in("a = 1_000 + 0x10, True, '2'") == {1000, 16}
    assert unbound.numbers_in("%%bash\nsleep 1.5 | tail -n 2") == set()


ROLE = markdown("role", "It differs by {glue:text}`gap`.")


@pytest.mark.parametrize("shown", ["gap: 0.12", "0.12", "<td>0.12</td>", "-0.12, at 3"])
def test_a_role_reads_a_number_that_is_printed_above(shown):
    made = code("glue('gap', gap)", [stream(shown), glued("gap", "0.12")])
    assert found_in(markdown("a", "## A"), made, ROLE) == []
    quiet = code("glue('gap', gap)", [glued("gap", "0.12")])
    assert found_in(markdown("a", "## A"), code("", [stream(shown)]), quiet, ROLE) == []


@pytest.mark.parametrize("shown", ["", "gap: 0.123", "10.12", "0.12.5", "0.1"])
def test_a_role_whose_number_nothing_prints_is_found(shown):
    made = code("glue('gap', gap)", [stream(shown), glued("gap", "0.12")])
    [(place, role, why)] = found_in(markdown("a", "## A"), made, ROLE)
    assert (place, role) == ("notebooks/a.ipynb#role", "{glue:text}`gap`")
    assert why == "no output above it prints 0.12"


def test_a_role_needs_its_cell_above_it():
    made = code("", [stream("0.12"), glued("gap", "0.12")])
    elsewhere = code("", [stream("0.12"), glued("other", "0.12")])
    for cells in [(ROLE, made), (elsewhere, ROLE)]:
        [(_, _, why)] = found_in(markdown("a", "## A"), *cells)
        assert why == "no cell above it glues that name"


def test_a_print_of_another_section_is_too_far():
    far = code("", [stream("0.12")])
    made = code("", [glued("gap", "0.12")])
    cells = [markdown("a", "## A"), far, markdown("b", "## B"), made, ROLE]
    assert [why for _, _, why in found_in(*cells)] == ["no output above it prints 0.12"]


# What a cell's metadata say -----------------------------------------------------------

TOLD = {
    "alt": lambda text: {"mystnb": {"image": {"alt": text}}},
    "caption": lambda text: {"mystnb": {"figure": {"caption": text}}},
    "hint 1": lambda text: {"learner": {"hints": text}},
    "hint 2": lambda text: {"learner": {"hints": ["Think.", text]}},
}


@pytest.mark.parametrize("kind", TOLD)
def test_a_number_in_words_of_a_cell_is_found(kind):
    told = TOLD[kind]("First. It falls to 0.31, in 12 ms.")
    assert found_in(code("show(0.5)", **told)) == [
        (f"notebooks/a.ipynb#code ({kind})", number, "It falls to 0.31, in 12 ms.")
        for number in ("0.31", "12 ms")
    ]


@pytest.mark.parametrize("kind", TOLD)
def test_words_of_a_cell_may_say_what_outputs_of_the_section_show(kind):
    told = code("show()", **TOLD[kind]("It falls to 0.31, by 40 %."))
    for shown in (["0.31 by 40 %"], ["a 0.310\n", "b 0.4"], ["-3.1e-01, 0.40"]):
        prints = code("print()", [stream(text) for text in shown])
        assert found_in(markdown("a", "## A"), told, prints) == []
        assert len(found_in(prints, markdown("a", "## A"), told)) == 2
    assert found_in(told, code("", [glued("a", "0.31"), glued("b", "40 %")])) == []
    for other in ("0.312 and 0.4001", "1.0.31, 10.31 and 140 %"):
        assert len(found_in(told, code("", [stream(other)]))) == 2


def test_words_of_a_cell_may_cite_or_say_a_setting():
    for text in ("It is 0.31.", "It is 0.4 {cite:p}`a`.", "It is `0.4`."):
        assert found_in(code("rate = 0.31", **TOLD["caption"](text))) == []
    bound = code("rate = 1\nassert gap < 0.31", **TOLD["alt"]("It is 0.31."))
    assert len(found_in(bound)) == 1


def test_a_figure_that_describes_itself_says_what_its_alt_says():
    data = {"text/plain": "It is 0.71.", "image/svg+xml": "<text>0.98</text>"}
    drawn = [{"output_type": "display_data", "metadata": {}, "data": data}]
    assert found_in(code("plot()", drawn, **TOLD["alt"]("It is 0.71."))) == []
    assert len(found_in(code("plot()", drawn, **TOLD["alt"]("It is 0.98.")))) == 1


@pytest.mark.parametrize(
    "data",
    [
        {"text/plain": "<Figure size 31x40 with 12 Axes>"},
        {"text/html": "<script>let a = [31, 40, 12]</script><b style='31 40 12'></b>"},
    ],
    ids=["text", "html"],
)
def test_what_an_output_does_not_show_binds_nothing(data):
    drawn = [{"output_type": "display_data", "metadata": {}, "data": data}]
    told = code("plot()", drawn, **TOLD["alt"]("31 ms, 40 ms and 12 ms."))
    assert len(found_in(told)) == 3


# Templates ----------------------------------------------------------------------------

TEMPLATE = '''"""Takes 5 ms."""
PAGE = """\\
It takes {time:.1f} ms at {share:.0%}, {{cite:p}}`a` 3 s.

It took 6 ms, {{x}} once.
"""


def page(found):
    """Return 7 ms of text."""
    return f"{found['a']:.2f} MB, 8 MB of them" + format(found, ".3f")
'''


def test_a_template_holds_no_number_but_in_a_field():
    found = unbound.check("benchmarks/report_a.py", TEMPLATE)
    assert [(one.place, one.number) for one in found] == [
        ("benchmarks/report_a.py:4", "6 ms"),
        ("benchmarks/report_a.py:11", "8 MB"),
    ]


# The command --------------------------------------------------------------------------


def test_the_command_names_what_it_finds(tmp_path, monkeypatch, capsys):
    page = tmp_path / "page.md"
    page.write_text("It takes 5 ms.")
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "report.py").write_text("")
    monkeypatch.setattr(unbound, "ROOT", Path(tmp_path))
    monkeypatch.setattr("sys.argv", ["unbound.py", str(page)])
    with pytest.raises(SystemExit, match=r"^page\.md:1: 5 ms, in: It takes 5 ms\.$"):
        unbound.main()
    page.write_text("It takes a while.")
    unbound.main()
    assert "comes from somewhere" in capsys.readouterr().out
