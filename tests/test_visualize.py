"""Figures that draw what they are given, say so in words, and can be read."""

import copy
import functools
import io
import itertools
import math
import pickle
import re
import warnings
from base64 import b64decode
from unittest import mock
from xml.etree import ElementTree

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from IPython.core.formatters import DisplayFormatter
from matplotlib.text import Text

from gpt2lib import visualize
from gpt2lib.hooks import attention_weights
from gpt2lib.visualize import (
    DescribedFigure,
    plot_head,
    plot_heads,
    plot_layer,
    plot_norms,
    plot_predictions,
    plot_similarities,
)

pytestmark = pytest.mark.filterwarnings("error")
few = settings(deadline=None, derandomize=True, max_examples=10)
NAN = re.compile(r"\b(nan|inf)\b")
TEXT = "My lord, the king is dead,"  # 26 tokens
WORDS = (" international", " the", ",", " Shakespeare", "\n", " of", "$x$", " straight")


def normal(*shape, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def attention(*shape, seed=0, dtype=torch.float32):
    """Attention `(..., T, T)` of random queries and keys."""
    q, k = (normal(*shape, 8, seed=s, dtype=torch.float64) for s in (seed, seed + 1))
    return attention_weights(q, k).to(dtype)


def some(tokens, T):
    return list(itertools.islice(itertools.cycle(tokens), T))


# Each function, on T tokens of given names.
PLOTS = {
    "plot_head": lambda tokens, **how: plot_head(
        attention(len(tokens), **how), tokens, "layer 1, head 3"
    ),
    "plot_layer": lambda tokens, **how: plot_layer(
        attention(4, len(tokens), **how), tokens
    ),
    "plot_heads": lambda tokens, **how: plot_heads(attention(2, 2, len(tokens), **how)),
    "plot_norms": lambda tokens, **how: plot_norms(
        *normal(3, 4, len(tokens), 8, **how), tokens
    ),
    "plot_similarities": lambda tokens, **how: plot_similarities(
        *normal(3, len(tokens), 8, **how), tokens
    ),
    "plot_predictions": lambda tokens, **how: plot_predictions(
        {"My lord is ": normal(len(tokens), **how), tokens[0]: normal(len(tokens))},
        tokens,
    ),
}


@pytest.fixture(params=PLOTS)
def plot(request):
    return PLOTS[request.param]


@pytest.fixture(autouse=True)
def leaves_pyplot_alone(monkeypatch):
    """No function changes the style of other figures, or leaves one open."""
    monkeypatch.delenv("GPT2LIB_BOOK", raising=False)
    before = dict(mpl.rcParams)
    yield
    assert plt.get_fignums() == []
    assert dict(mpl.rcParams) == before


def bundle(figure):
    return figure._repr_mimebundle_()


def svg(figure):
    return bundle(figure)[0]["image/svg+xml"]


def images(figure):
    """The drawn arrays, as tensors, without the colour bars."""
    found = (image for axis in figure.axes for image in axis.get_images())
    return [torch.from_numpy(np.asarray(image.get_array())) for image in found]


def ticks(axis):
    return [label.get_text() for label in axis.get_ticklabels()]


# ---- what is drawn

CELLS = [-0.5, 4.5, 4.5, -0.5]  # of five tokens: column 0 on the left, row 0 on top


def test_a_head_is_drawn_with_readers_downwards():
    weights = attention(5)
    figure = plot_head(weights, list("abcde"), "one")
    axis, bar = figure.axes
    [image] = axis.get_images()
    assert np.array_equal(image.get_array(), weights)
    assert list(image.get_extent()) == CELLS
    assert (axis.get_xlim(), axis.get_ylim()) == ((-0.5, 4.5), (4.5, -0.5))
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("is read", "reads")
    assert ticks(axis.xaxis) == ticks(axis.yaxis) == list("abcde")
    assert axis.get_xticks().tolist() == axis.get_yticks().tolist() == [0, 1, 2, 3, 4]
    assert (image.norm.vmin, image.norm.vmax) == (0, 1)  # of every head alike
    assert image.norm(0.25) == 0.5  # as the root: small weights are to be seen
    assert image.cmap.name == "Blues"
    assert bar.get_ylabel() == "attention"
    assert ticks(bar.yaxis) == [f"{tick:g}" for tick in bar.get_yticks()]  # no roots
    assert axis.get_title(loc="left") == "one"


@pytest.mark.parametrize("H", [1, 3, 4, 5, 12])
def test_a_layer_is_drawn_head_by_head(H):
    weights = attention(H, 5)
    figure = plot_layer(weights, list("abcde"))
    *used, bar = figure.axes
    titles = [axis.get_title(loc="left") for axis in used]
    assert titles == [f"head {h}" for h in range(H)]
    for axis, one in zip(used, weights, strict=True):
        [image] = axis.get_images()
        assert np.array_equal(image.get_array(), one)
        assert list(image.get_extent()) == CELLS
        assert (image.norm.vmin, image.norm.vmax) == (0, 1)
        assert image.norm(0.25) == 0.5
    assert bar.get_ylabel() == "attention"
    for names, side in (("reads", "y"), ("is read", "x")):
        named = [axis for axis in used if getattr(axis, f"get_{side}label")() == names]
        for axis in named:
            assert ticks(getattr(axis, f"{side}axis")) == list("abcde")
        assert named


@pytest.mark.parametrize(("L", "H"), [(1, 1), (2, 3), (11, 1), (1, 12)])
def test_all_heads_are_drawn_a_row_a_layer(L, H):
    weights, scores = attention(L, H, 5), normal(L, H)
    axis, bar = plot_heads(weights, scores).axes
    assert ticks(axis.yaxis) == list(map(str, range(L)))
    assert ticks(axis.xaxis) == list(map(str, range(H)))
    assert (axis.get_ylabel(), axis.get_title()) == ("layer", "head")
    assert bar.get_ylabel() == "attention"
    pictures = {centre(image): image for image in axis.get_images()}
    below = {text.get_position()[0]: [] for text in axis.texts}
    for text in axis.texts:  # row after row
        below[text.get_position()[0]].append(text.get_text())
    for layer, head in itertools.product(range(L), range(H)):
        image = pictures.pop((head, layer))
        assert np.array_equal(image.get_array(), weights[layer, head])
        assert image.norm(0.25) == 0.5
        assert below[head][layer] == f"{scores[layer, head]:.2f}"
    assert pictures == {}
    assert axis.get_ylim()[0] > axis.get_ylim()[1]  # the first layer on top


def centre(image):
    """Of the picture in its axes, where a row has its reader downwards."""
    left, right, bottom, top = image.get_extent()
    assert (right - left, bottom - top) > (0.5, 0.3)
    return round((left + right) / 2, 6), round((bottom + top) / 2, 6)


def test_scores_below_the_heads_are_those_of_the_token_before():
    weights = attention(2, 2, 5)
    axis = plot_heads(weights).axes[0]
    means = [one.diagonal(-1).mean() for one in weights.flatten(0, 1)]
    assert [text.get_text() for text in axis.texts] == [f"{mean:.2f}" for mean in means]
    assert axis.get_xlabel() == "below each: attention to the token before"


def test_many_heads_have_no_room_for_scores():
    axis = plot_heads(attention(2, 16, 5)).axes[0]
    assert len(axis.get_images()) == 32
    assert [*axis.texts, axis.get_xlabel()] == [""]


BACK = {
    T: torch.eye(T)[[0, *range(T - 1)]]  # each position reads the one before
    for T in (26, 128)
}


@pytest.mark.parametrize(
    "draw",
    [
        lambda: plot_head(BACK[128], some(TEXT, 128)),
        lambda: plot_layer(BACK[128].expand(4, -1, -1), some(TEXT, 128)),
        lambda: plot_heads(BACK[26].expand(1, 1, -1, -1)),
        lambda: plot_heads(BACK[128].expand(1, 1, -1, -1)),
    ],
    ids=["plot_head", "plot_layer", "plot_heads", "plot_heads-128"],
)
def test_no_line_is_lost_where_a_head_is_drawn_small(draw):
    """Cells smaller than a pixel must not be left out: each row of pixels has one."""
    found = re.findall(r'base64,([^"]+)"', svg(draw()))
    pictures = [plt.imread(io.BytesIO(b64decode(data))) for data in found]
    heads = [one for one in pictures if one.shape[1] > 0.4 * one.shape[0]]
    assert heads  # the rest is a colour bar
    for picture in heads:
        drawn = picture[..., 3] > 0  # not what is between the heads of a grid
        dark = drawn & (picture[..., 0] < 0.8)
        assert dark.any(1)[drawn.any(1)].mean() > 0.9


def test_norms_are_drawn_by_head_and_position():
    q, k, v = (normal(H, 5, 6, seed=H) for H in (3, 3, 3))
    figure = plot_norms(q, 2 * k, v, list("abcde"))
    *axes, bar = figure.axes
    assert bar.get_ylabel() == "norm"
    longest = max(part.norm(dim=-1).max() for part in (q, 2 * k, v)).item()
    for axis, part, name in zip(axes, (q, 2 * k, v), "qkv", strict=True):
        [image] = axis.get_images()
        assert axis.get_title(loc="left") == f"norm of {name}"
        shown = torch.from_numpy(np.asarray(image.get_array()))
        torch.testing.assert_close(shown.float(), part.square().sum(-1).sqrt())
        assert list(image.get_extent()) == [-0.5, 4.5, 2.5, -0.5]  # head 0 on top
        assert image.norm.vmin == 0
        assert image.norm.vmax == pytest.approx(longest)  # one scale, to compare
        assert axis.get_ylabel() == "head"
        assert ticks(axis.yaxis) == ["0", "1", "2"]
    assert ticks(axes[-1].xaxis) == list("abcde")
    assert axes[-1].get_xlabel() == "token"


def test_similarities_are_cosines_of_row_with_column():
    parts = dict(zip("qkv", normal(3, 5, 6), strict=True))
    figure = plot_similarities(*parts.values(), list("abcde"))
    axes = [axis for axis in figure.axes if axis.get_images()]
    for axis, row, column in zip(axes, "qkv", "kkv", strict=True):
        [image] = axis.get_images()
        for i, j in itertools.product(range(5), range(5)):
            a, b = parts[row][i], parts[column][j]
            cosine = (a @ b / (a.norm() * b.norm())).item()
            assert image.get_array()[i, j] == pytest.approx(cosine, abs=1e-6)
        assert list(image.get_extent()) == CELLS
        assert (image.norm.vmin, image.norm.vmax) == (-1, 1)
        assert axis.get_title(loc="left") == f"{row} with {column}"
        assert ticks(axis.xaxis) == ticks(axis.yaxis) == list("abcde")
        assert (axis.get_ylabel()[0], axis.get_xlabel()[0]) == (row, column)


@pytest.mark.parametrize("n", [1, 3, 8, 50])
def test_predictions_are_the_likeliest_on_average(n):
    tokens = [f"t{i}" for i in range(12)]
    logits = {"one": normal(12), "two": 3 * normal(12, seed=1), "three": normal(12)}
    p = {name: row.softmax(-1) for name, row in logits.items()}
    mean = sum(p.values()) / 3
    order = sorted(range(12), key=lambda i: -mean[i])[:n]
    figure = plot_predictions(logits, tokens, n)
    for axis, name in zip(figure.axes, logits, strict=True):
        assert axis.get_title(loc="left") == name
        bars = {round(b.get_y() + b.get_height() / 2): b for b in axis.patches}
        assert [bars[i].get_width() for i in range(len(order))] == pytest.approx(
            p[name][order].tolist()
        )
        written = [text.get_text() for text in axis.texts]
        assert written == [f"{p[name][i]:.2f}" for i in order]
        assert axis.yaxis_inverted()  # the first on top
        assert axis.get_xlim()[0] == 0
        assert axis.get_xlim() == figure.axes[0].get_xlim()
    assert ticks(figure.axes[0].yaxis) == [tokens[i] for i in order]


def test_positions_stand_for_tokens_where_there_are_too_many():
    figure = plot_head(attention(128), some(TEXT, 128))
    places = list(range(0, 128, 20))
    for axis in (figure.axes[0].xaxis, figure.axes[0].yaxis):
        assert ticks(axis) == list(map(str, places))
        assert axis.get_ticklocs().tolist() == places


@pytest.mark.parametrize("T", [27, 47, 51, 101, 199])
def test_positions_are_round_and_not_many(T):
    axis = plot_head(attention(T), ["of the"] * T).axes[0]
    places = axis.get_yticks().tolist()
    assert 6 <= len(places) <= 10
    assert places == list(range(0, T, places[1]))
    assert places[1] in (5, 10, 20)


def test_signs_are_written_in_two_lines_where_one_is_too_short():
    figure = plot_similarities(*normal(3, 26, 4), list(TEXT))
    for axis in figure.axes[:3]:
        for side in (axis.xaxis, axis.yaxis):
            lines = [
                dict(zip(side.get_ticklocs(minor=minor), labels, strict=True))
                for minor in (False, True)
                for labels in [side.get_ticklabels(minor=minor)]
            ]
            written = {**lines[0], **lines[1]}
            assert [written[i].get_text() for i in range(26)] == [
                {" ": "␣"}.get(sign, sign) for sign in TEXT
            ]


# ---- what is said

NUMBER = r"-?\d+\.\d+"


def told_of_a_head(said, weights, tokens):
    """Check one head's description, number by number, against its weights."""
    T = len(tokens)
    previous, first, i, reads, j = re.fullmatch(
        rf"({NUMBER}) of the attention goes to the token before and ({NUMBER}) to the "
        rf"first; most from one to another: position (\d+), .+, reads ({NUMBER}) from "
        r"position (\d+), .+",
        said,
    ).groups()
    rows = weights.tolist()
    assert previous == f"{sum(rows[i][i - 1] for i in range(1, T)) / (T - 1):.2f}"
    assert first == f"{sum(rows[i][0] for i in range(1, T)) / (T - 1):.2f}"
    i, j = int(i), int(j)
    assert j < i
    most = max(rows[a][b] for a in range(T) for b in range(a))
    assert rows[i][j] == most
    assert reads == f"{most:.2f}"
    assert f"position {i}, {tokens[i]}, reads" in said
    assert said.endswith(f"from position {j}, {tokens[j]}")


@pytest.mark.parametrize(("T", "seed"), [(2, 0), (26, 0), (26, 1), (26, 2), (128, 0)])
def test_a_head_is_described_as_it_is(T, seed):
    tokens = [f"t{i}" for i in range(T)]
    weights = attention(T, seed=seed)
    intro, said = plot_head(weights, tokens, "layer 1").alt.split("; ", 1)
    assert intro == f"layer 1: attention, {T} tokens"
    told_of_a_head(said.removesuffix("."), weights, tokens)
    assert plot_head(weights, tokens).alt.startswith("attention, ")


@pytest.mark.parametrize("H", [2, 12])
def test_a_layer_is_described_head_by_head(H):
    tokens = [f"t{i}" for i in range(9)]
    weights = attention(H, 9)
    alt = plot_layer(weights, tokens).alt
    intro, *told = re.split(r"\. head \d+: ", alt.removesuffix("."))
    assert intro == f"Attention of {H} heads, 9 tokens"
    assert re.findall(r"\bhead (\d+)", alt) == list(map(str, range(H)))
    for said, one in zip(told, weights, strict=True):
        told_of_a_head(said, one, tokens)


def test_a_head_that_reads_only_itself_is_not_said_to_read_another():
    alt = plot_head(torch.eye(3), list("abc")).alt
    assert "position 0, a, reads 0.00 from position 0" not in alt
    assert "0.00 of the attention goes to the token before" in alt


@pytest.mark.parametrize("given_scores", [True, False])
@pytest.mark.parametrize(("L", "H"), [(2, 3), (5, 2)])
def test_all_heads_are_described_by_their_best(L, H, given_scores):
    weights = attention(L, H, 6)
    scores = normal(L, H) - 5 if given_scores else weights.diagonal(-1, -2, -1).mean(-1)
    layer, head = divmod(int(scores.argmax()), H)
    named = "score" if given_scores else "attention to the token before"
    assert plot_heads(weights, scores if given_scores else None).alt == (
        f"Attention of {L} layers with {H} heads; head {head} of layer {layer} has "
        f"the highest {named}, {scores.max():.2f}; the lowest is {scores.min():.2f}."
    )


@pytest.mark.parametrize(
    "scores", [[[math.nan, -0.5], [-3.0, -2.0]], [[math.nan, -5.0], [-3.0, -2.0]]]
)
def test_heads_without_a_score_are_left_out_of_the_description(scores):
    """As `induction_score` is NaN where nothing repeats; a score may be below -1."""
    scores = torch.tensor(scores)
    known = scores[~scores.isnan()]
    layer, head = divmod(scores.flatten().tolist().index(known.max()), 2)
    alt = plot_heads(attention(2, 2, 5), scores).alt
    assert f"head {head} of layer {layer} has the highest score" in alt
    assert f"score, {known.max():.2f}; the lowest is {known.min():.2f}" in alt


def test_norms_are_described_by_their_range():
    q, k, v = normal(3, 2, 7, 5)
    ranges = [
        f"{name} from {min(lengths):.1f} to {max(lengths):.1f}"
        for name, part in (("q", q), ("k", k), ("v", v))
        for lengths in [[math.hypot(*row) for row in part.flatten(0, 1).tolist()]]
    ]
    assert plot_norms(q, k, v, list("abcdefg")).alt == (
        "Norms of queries, keys and values of 2 heads at 7 tokens: "
        f"{', '.join(ranges)}."
    )


def test_similarities_are_described_by_their_means():
    parts = dict(zip("qkv", normal(3, 7, 5), strict=True))
    unit = {
        name: part / part.norm(dim=-1, keepdim=True) for name, part in parts.items()
    }
    means = [
        f"{a} with {b} {cosines.mul(1 - torch.eye(7)).sum() / 42:.2f}"
        for a, b in ("qk", "kk", "vv")
        for cosines in [unit[a] @ unit[b].T]
    ]
    assert plot_similarities(*parts.values(), list("abcdefg")).alt == (
        "Cosines of queries, keys and values at 7 tokens, on average over different "
        f"positions: {', '.join(means)}."
    )


def test_predictions_are_described_by_the_likeliest():
    """Of each text its own, also one that is not among the bars."""
    tokens = [f"t{i}" for i in range(9)]
    logits = {name: 2 * normal(9, seed=i) for i, name in enumerate(("one", "two"))}
    said = [
        f"after {name}: t{int(row.argmax())} {row.exp().max() / row.exp().sum():.2f}"
        for name, row in logits.items()
    ]
    alt = plot_predictions(logits, tokens, n=1).alt
    assert alt == f"Next-token probabilities; most probable {', '.join(said)}."


@pytest.mark.parametrize("T", [1, 128])
def test_descriptions_hold_numbers(plot, T):
    figure = plot(some(TEXT, T))
    assert figure.alt
    assert not NAN.search(figure.alt)
    assert figure.alt == repr(figure)
    assert "\n" not in figure.alt


def test_one_is_no_plural():
    alone = list("a")
    alts = [plot(alone).alt for plot in PLOTS.values()]
    alts += [plot_layer(attention(1, 1), alone).alt, plot_heads(attention(1, 1, 3)).alt]
    assert [alt for alt in alts if re.search(r"\b1 (tokens|heads|layers)\b", alt)] == []


# ---- tokens of every kind

HOSTILE = [
    *("$", "$x$", "$$", "$\\frac{", "\\", "\\alpha", "_x^2", "%", "&", "<b>", "-->"),
    *("\n", "\r\n", "\t", " ", "  ", "", "\0", "\x1b[0m", "\x7f", "\x85", "\xa0"),
    *("\u2028", "\u200b", "\u200d", "\u200f", "\u202e", "\ufeff", "\u00ad", "\u0301"),
    *("🙂", "👩\u200d👧", "🇳🇱", "שלום", "مرحبا", "ﷺ", "語", "á", "é", "İ", "ﬁ"),
    *(
        "\ud800",
        "\udfff",
        "\ufffd",
        "\uffff",
        "\U0010ffff",
        "_nolegend_",
        "None",
        "a" * 40,
    ),
]
# Compact figures on which each of some tokens is written.
NAMED = {
    "plot_head": lambda tokens: plot_head(attention(len(tokens)), tokens, tokens[0]),
    "plot_predictions": lambda tokens: plot_predictions(
        {tokens[0]: normal(len(tokens))}, tokens, n=len(tokens)
    ),
}


def written_plainly(figure, axis, tokens):
    """Each token once, on one line, as text that is no formula."""
    labels = axis.get_ticklabels()
    assert len(labels) == len(tokens)
    for label in labels:
        assert label.get_text().strip()
        assert label.get_text().isprintable()
        assert not label.get_parse_math()
    assert figure.alt.isprintable()
    figure.draw_without_rendering()


@pytest.mark.parametrize(
    ("name", "tokens"),
    [
        ("plot_predictions", HOSTILE[:20]),
        ("plot_predictions", HOSTILE[20:37]),
        ("plot_predictions", HOSTILE[37:]),
        ("plot_head", HOSTILE[37:]),
    ],
    ids="abch",
)
def test_hostile_tokens_are_written_without_a_warning(name, tokens):
    tokens = ["a", *tokens]
    figure = NAMED[name](tokens)
    written_plainly(figure, figure.axes[0].yaxis, tokens)
    if name == "plot_predictions":
        ElementTree.fromstring(svg(figure))  # in which comments hold the labels


@given(st.lists(st.text(max_size=6), min_size=2, max_size=12))
@few
def test_any_tokens_are_written_without_a_warning(tokens):
    figure = plot_predictions({"a": normal(len(tokens))}, tokens, n=len(tokens))
    written_plainly(figure, figure.axes[0].yaxis, tokens)


@pytest.mark.parametrize(
    "title",
    [
        "$\\frac{",
        "two\nlines",
        "\t",
        "\u200b",
        "\u202e",
        "🙂",
        "\ud800",
    ],
    ids=ascii,
)
def test_hostile_titles_are_written_without_a_warning(title):
    """A title often holds the text that is looked at."""
    figure = plot_head(torch.ones(1, 1), ["a"], title)
    assert not figure.axes[0]._left_title.get_parse_math()
    assert figure.axes[0].get_title(loc="left").isprintable()
    assert figure.alt.isprintable()
    figure.draw_without_rendering()


@pytest.mark.parametrize("sign", ["\t", "\x85", "\u200b", "🙂", "語", "\U0010ffff"])
def test_what_the_font_lacks_is_written_as_python_writes_it(sign):
    figure = plot_predictions({"a": normal(2)}, [f"a{sign}b", "c"])
    code = sign.encode("unicode_escape").decode()
    assert f"a{code}b" in ticks(figure.axes[0].yaxis)


def test_tokens_may_be_any_sequence():
    weights = attention(3)
    alts = [
        plot_head(weights, tokens).alt
        for tokens in (list("abc"), "abc", ("a", "b", "c"))
    ]
    assert len(set(alts)) == 1


# ---- style and output


SHOWN = ("plot_layer", "plot_predictions")  # the slowest to lay out, and the quickest


@pytest.fixture(scope="module")
def plain():
    """Each figure's SVG as drawn when nothing has set a style."""
    with plt.rc_context(), pytest.MonkeyPatch.context() as patch:
        patch.delenv("GPT2LIB_BOOK", raising=False)
        mpl.rcdefaults()
        return {name: svg(PLOTS[name](list("abcde"))) for name in SHOWN}


def test_it_is_shown_as_svg_and_as_words():
    figure = plot_predictions({"a": normal(3)}, list("abc"))
    assert isinstance(figure, DescribedFigure)
    data, metadata = bundle(figure)
    assert set(data) == {"text/plain", "image/svg+xml"}
    assert data["text/plain"] == figure.alt
    assert metadata["image/svg+xml"]["alt"] == figure.alt
    assert DisplayFormatter().format(figure) == (data, metadata)


@pytest.mark.parametrize("name", SHOWN)
def test_its_svg_is_the_same_each_time_and_without_a_date(plain, name):
    """Shown again it must not move, and drawn again neither."""
    figure = PLOTS[name](list("abcde"))
    assert svg(figure) == plain[name]
    assert svg(figure) == plain[name]
    assert "<dc:date>" not in plain[name]
    assert "<text" not in plain[name]  # letters are outlines


def test_its_ground_is_left_to_the_books_page(monkeypatch):
    def ground(figure):
        root = ElementTree.fromstring(svg(figure))
        return root.find(".//{*}g[@id='patch_1']/{*}path").get("style")

    figure = plot_layer(attention(1, 3), list("abc"))
    assert ground(figure) == "fill: #ffffff"
    monkeypatch.setenv("GPT2LIB_BOOK", "1")
    assert ground(figure) == "fill: none"


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("plot_predictions", visualize._STYLE),  # as use_style() leaves it
        ("plot_predictions", "dark_background"),
        ("plot_predictions", {"savefig.facecolor": "k"}),
        ("plot_layer", "ggplot"),
    ],
    ids=["book", "dark", "ground", "ggplot"],
)
def test_its_style_is_the_books_whatever_the_reader_has_set(plain, name, other):
    """A theme's grid lines would run over the picture."""
    with plt.style.context(other):
        assert svg(PLOTS[name](list("abcde"))) == plain[name]


def test_the_style_is_put_back_after_an_error():
    before = dict(mpl.rcParams)
    for fault in (
        lambda: plot_norms(normal(2, 3, 4), normal(2, 2, 4), normal(2, 3, 4), "abc"),
        lambda: plot_head(attention(2), [1, 2]),
    ):
        with pytest.raises((ValueError, TypeError)):
            fault()
        assert dict(mpl.rcParams) == before


@pytest.mark.parametrize("form", ["png", "svg", "pdf"])
def test_it_can_be_saved(form):
    file = io.BytesIO()
    plot_layer(torch.ones(1, 1, 1), ["a"]).savefig(file, format=form)
    starts = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}
    assert file.getvalue().startswith(starts[form])


def test_it_survives_copying_and_pickling():
    figure = plot_layer(attention(1, 3), list("abc"))
    for again in (copy.deepcopy(figure), pickle.loads(pickle.dumps(figure))):
        assert repr(again) == figure.alt
        assert svg(again) == svg(figure)


# ---- tensors of every kind


def test_numbers_of_any_precision_are_drawn(plot):
    """NumPy knows no bfloat16."""
    dtype = torch.bfloat16
    figure = plot(list("abcde"), dtype=dtype)
    assert not NAN.search(figure.alt)
    exact = plot(list("abcde"), dtype=torch.float64)
    for shown, expected in zip(images(figure), images(exact), strict=True):
        torch.testing.assert_close(
            shown.double(), expected, rtol=0, atol=8 * torch.finfo(dtype).eps + 1e-6
        )


def test_large_numbers_in_half_precision_have_a_norm():
    big = torch.full((1, 2, 64), 3e4, dtype=torch.float16)  # its norm is 2.4e5
    assert "from 240000" in plot_norms(big, big, big, "ab").alt


HEADS = {
    "plot_head": (plot_head, attention(5)),
    "plot_layer": (plot_layer, attention(3, 5)),
    "plot_heads": (lambda weights, tokens: plot_heads(weights), attention(2, 2, 5)),
    "plot_norms": (
        lambda part, tokens: plot_norms(part, part, part, tokens),
        normal(2, 5, 4),
    ),
    "plot_similarities": (
        lambda part, tokens: plot_similarities(part, part, part, tokens),
        normal(5, 4),
    ),
}


@pytest.mark.parametrize("name", HEADS)
def test_tensors_of_a_graph_and_not_contiguous_ones_are_drawn_as_they_are(name):
    function, tensor = HEADS[name]
    odd = tensor.mT.contiguous().mT
    assert not odd.is_contiguous()
    kept, expected = odd.clone(), function(tensor, list("abcde"))
    for same in (odd, tensor.clone().requires_grad_()):
        figure = function(same, list("abcde"))
        assert figure.alt == expected.alt
        for shown, other in zip(images(figure), images(expected), strict=True):
            torch.testing.assert_close(shown, other)
    assert torch.equal(odd, kept)
    drawn = [shown.clone() for shown in images(figure)]
    same.detach().zero_()  # later, by its owner
    assert all(map(torch.equal, images(figure), drawn))


def test_logits_and_scores_of_a_graph_are_drawn():
    logits, scores = normal(5).requires_grad_(), normal(2, 2).requires_grad_()
    alt = plot_predictions({"a": logits.detach()}, list("abcde")).alt
    assert plot_predictions({"a": logits}, list("abcde")).alt == alt
    alt = plot_heads(attention(2, 2, 5), scores.detach()).alt
    assert plot_heads(attention(2, 2, 5), scores).alt == alt


def test_matplotlib_is_handed_arrays(plot):
    """A tensor takes a path that NumPy will close."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plot(list("abcde"))


# ---- refused

W, T5 = torch.ones(5, 5), list("abcde")
X = torch.ones(2, 5, 4)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: plot_head(W, T5[:4]), ["weights", "(T, T)", "T = 4", "(5, 5)"]),
        (lambda: plot_head(W[:3], T5), ["weights", "(T, T)", "T = 5", "(3, 5)"]),
        (lambda: plot_head(W[:, :3], T5), ["weights", "(T, T)", "(5, 3)"]),
        (lambda: plot_head(W[None], T5), ["weights", "(T, T)", "(1, 5, 5)"]),
        (lambda: plot_head(W[:0, :0], []), ["weights", "T = 0", "(0, 0)"]),
        (lambda: plot_layer(W, T5), ["weights", "(H, T, T)", "(5, 5)"]),
        (lambda: plot_layer(W[None, :, :4], T5), ["weights", "(1, 5, 4)"]),
        (lambda: plot_layer(W[None][:0], T5), ["weights", "(0, 5, 5)"]),
        (lambda: plot_heads(W[None]), ["weights", "(L, H, T, T)", "(1, 5, 5)"]),
        (lambda: plot_heads(W[None, None, :4]), ["weights", "(1, 1, 4, 5)"]),
        (lambda: plot_heads(torch.ones(0, 2, 3, 3)), ["weights", "(0, 2, 3, 3)"]),
        (lambda: plot_heads(torch.ones(2, 0, 3, 3)), ["weights", "(2, 0, 3, 3)"]),
        (lambda: plot_heads(torch.ones(2, 2, 0, 0)), ["weights", "(2, 2, 0, 0)"]),
        (
            lambda: plot_heads(torch.ones(2, 3, 4, 4), torch.ones(3, 2)),
            ["scores", "(2, 3)", "(3, 2)"],
        ),
        (lambda: plot_norms(X, X[:, :4], X, T5), ["k", "(H, T, D)", "(2, 4, 4)"]),
        (lambda: plot_norms(X, X, X[0], T5), ["v", "(H, T, D)", "(5, 4)"]),
        (lambda: plot_norms(X, X[:1], X, T5), ["k", "(2, ", "(1, 5, 4)"]),
        (lambda: plot_norms(X[:0], X[:0], X[:0], T5), ["q", "(0, 5, 4)"]),
        (lambda: plot_similarities(X, X, X, T5), ["q", "(T, D)", "(2, 5, 4)"]),
        (lambda: plot_similarities(*X, X[0][:, :3], T5[:4]), ["q", "T = 4", "(5, 4)"]),
        (lambda: plot_similarities(X[0], X[0][:, :3], X[0], T5), ["k", "(5, 3)"]),
        (
            lambda: plot_predictions({"a": torch.ones(5), "b": torch.ones(4)}, T5),
            ["logits['b']", "(V", "V = 5", "(4,)"],
        ),
        (
            lambda: plot_predictions({"a": torch.ones(1, 5)}, T5),
            ["logits['a']", "(1, 5)"],
        ),
        (lambda: plot_predictions({}, T5), ["logits", "{}"]),
        (lambda: plot_predictions({"a": torch.ones(5)}, T5, n=0), ["n ", "1", "0"]),
        (lambda: plot_predictions({"a": torch.ones(5)}, T5, n=-1), ["n ", "1", "-1"]),
    ],
    ids=lambda part: "" if callable(part) else " ".join(part),
)
def test_wrong_shapes_are_refused_in_words(call, words):
    with pytest.raises(ValueError, match=rf"^{re.escape(words[0])}") as caught:
        call()
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    "tokens", [[1, 2, 3, 4, 5], torch.arange(5)], ids=["list", "tensor"]
)
@pytest.mark.parametrize("name", ["plot_head", "plot_norms", "plot_predictions"])
def test_ids_in_place_of_texts_are_refused_in_words(name, tokens):
    """The likeliest mistake: the tokens that the model has read."""
    call = {
        "plot_head": lambda: plot_head(W, tokens),
        "plot_norms": lambda: plot_norms(X, X, X, tokens),
        "plot_predictions": lambda: plot_predictions({"a": W[0]}, tokens),
    }[name]
    with pytest.raises(TypeError, match=r"tokens .*text"):
        call()


# ---- can it be read?

READ = {
    **{name: (plot, list(TEXT)) for name, plot in PLOTS.items()},
    "plot_heads": (lambda t: plot_heads(attention(6, 4, 26)), None),
    "plot_heads-1-head": (lambda t: plot_heads(attention(1, 1, 26)), None),
    "plot_heads-low-scores": (
        lambda t: plot_heads(attention(1, 4, 26), -12345 * torch.ones(1, 4)),
        None,
    ),
    "plot_norms-1-head": (lambda t: plot_norms(*normal(3, 1, 5, 4), t), WORDS[:5]),
    "plot_norms-12-heads": (lambda t: plot_norms(*normal(3, 12, 5, 4), t), WORDS[:5]),
    "plot_head-titled": (
        lambda t: plot_head(attention(5), t, f"layer 1, head 3: {TEXT}"),
        list("abcde"),
    ),
    "plot_predictions-3-texts": (
        lambda t: plot_predictions({f"{TEXT} {i}": normal(26) for i in range(3)}, t),
        list(TEXT),
    ),
} | {
    f"{name}-{T}": (PLOTS[name], some(WORDS, T))
    for name, lengths in (
        ("plot_head", (20, 128)),
        ("plot_layer", (5,)),
        ("plot_similarities", (5, 40)),
    )
    for T in lengths
}


@functools.cache
def written(case):
    """What a figure shows of each text: the text, its box, its size; and the figure."""
    plot, tokens = READ[case]
    texts, draw, figure = [], Text.draw, plot(tokens)

    def record(text, renderer):
        if text.get_visible() and text.get_text().strip():
            box = text.get_window_extent(renderer)
            texts.append((text.get_text(), box, text.get_fontsize()))
        draw(text, renderer)

    with mock.patch.object(Text, "draw", record):
        figure.draw_without_rendering()
    return texts, figure


@pytest.mark.parametrize("case", READ)
def test_letters_stand_clear_of_each_other_and_inside(case):
    texts, figure = written(case)
    slack = 0.15 * figure.dpi * 8 / 72  # a box is higher than its ink
    for (a, box, _), (b, other, _) in itertools.combinations(texts, 2):
        wide = min(box.x1, other.x1) - max(box.x0, other.x0)
        high = min(box.y1, other.y1) - max(box.y0, other.y0)
        assert min(wide, high) < slack, f"{a!r} runs into {b!r}"
    for text, box, _ in texts:
        assert box.x0 > -1, text
        assert box.y0 > -1, text
        assert box.x1 < figure.bbox.width + 1, text
        assert box.y1 < figure.bbox.height + 1, text


@pytest.mark.parametrize("name", PLOTS)
def test_it_can_be_read_on_a_phone(name):
    """390 pixels wide. The style's own size, 5.6 inches, has letters of 9.7 there."""
    texts, figure = written(name)
    assert figure.get_figwidth() <= 5.6
    scale = min(1, 390 / (96 * figure.get_figwidth()))
    assert min(points for *_, points in texts) * 96 / 72 * scale >= 9


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("plot_head", {"is read", "reads", "attention"}),
        ("plot_layer", {"is read", "reads", "attention"}),
        ("plot_heads", {"layer", "head", "attention"}),
        ("plot_norms", {"head", "token", "norm"}),
        ("plot_similarities", {"query", "key", "value", "cosine"}),
        ("plot_predictions", {"probability"}),
    ],
)
def test_it_says_what_its_rows_columns_and_colours_are(name, words):
    texts, _ = written(name)
    assert words <= {text for text, *_ in texts}


def test_it_is_light():
    """As heavy as `explore` lets all its frames be, with the longest text that is read.

    The trained model has six layers of four heads and reads 128 tokens.
    """
    assert len(svg(plot_heads(attention(6, 4, 128)))) < 150_000
