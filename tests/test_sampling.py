"""Knobs and draws: the right distribution, by brute force and by counting."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import plain_logits, random_model

from gpt2lib.sampling import (
    generate,
    generate_stream,
    keep_nucleus,
    keep_top_k,
    next_token_probabilities,
)

many = settings(deadline=None, derandomize=True, max_examples=150)


def plain_probabilities(logits, temperature=1.0, top_k=None, top_p=None):
    """The distribution to draw from, in float64 and with nothing but Python."""
    order = sorted(range(len(logits)), key=lambda i: (-logits[i], i))
    kept = order[:top_k]
    weight = {i: math.exp((logits[i] - logits[order[0]]) / temperature) for i in kept}
    total = math.fsum(weight.values())
    if top_p is not None:
        nucleus, reached = [], 0.0
        for i in kept:
            if reached < top_p * (1 - 1e-9):
                nucleus.append(i)
            reached += weight[i] / total
        kept, total = nucleus, math.fsum(weight[i] for i in nucleus)
    return [weight[i] / total if i in kept else 0.0 for i in range(len(logits))]


def support(probabilities):
    return [i for i, p in enumerate(probabilities.tolist()) if p > 0]


# ---- the distribution, by brute force

FLOATS = st.floats(-20, 20, width=32)
LOGITS = st.lists(FLOATS, min_size=1, max_size=12)
TIED = st.lists(st.sampled_from([-2.0, 0.0, 0.5, 3.0]), min_size=1, max_size=12)


@given(
    logits=LOGITS | TIED,
    temperature=st.sampled_from([1, 1.0, 0.3, 0.05, 2.5, 100.0]),
    top_k=st.none() | st.integers(1, 15),
)
@many
def test_temperature_and_top_k(logits, temperature, top_k):
    knobs = {"temperature": temperature, "top_k": top_k}
    probabilities = next_token_probabilities(torch.tensor(logits), **knobs)
    expected = torch.tensor(plain_probabilities(logits, **knobs), dtype=torch.float64)
    assert probabilities.shape == (len(logits),)
    torch.testing.assert_close(probabilities.double(), expected, rtol=0, atol=2e-6)
    assert set(support(probabilities)) <= set(support(expected))
    assert set(support(probabilities)) >= set(support(expected.float() > 1e-37))


@given(
    odds=st.lists(st.integers(1, 5), min_size=1, max_size=12),
    temperature=st.sampled_from([1.0, 0.5, 2.0, 7.3]),
    top_k=st.none() | st.integers(1, 14),
    data=st.data(),
)
@many
def test_nucleus_with_exact_odds(odds, temperature, top_k, data):
    """Probabilities are fractions, so that `top_p` can be met exactly, and ties are."""
    order = sorted(range(len(odds)), key=lambda i: (-odds[i], i))[:top_k]
    total = sum(odds[i] for i in order)
    top_p = Fraction(data.draw(st.integers(1, total)), total)
    nucleus, reached = [], Fraction(0)
    for i in order:
        if reached < top_p:
            nucleus.append(i)
        reached += Fraction(odds[i], total)
    logits = torch.tensor([temperature * math.log(n) for n in odds])
    probabilities = next_token_probabilities(
        logits, temperature=temperature, top_k=top_k, top_p=float(top_p)
    )
    assert support(probabilities) == sorted(nucleus)
    total = sum(odds[i] for i in nucleus)
    for i in nucleus:
        assert probabilities[i].item() == pytest.approx(odds[i] / total, abs=1e-6)


@given(
    logits=LOGITS,
    temperature=st.floats(0.05, 20),
    top_k=st.none() | st.integers(1, 15),
    top_p=st.floats(1e-9, 1.0),
)
@many
def test_nucleus_of_any_numbers(logits, temperature, top_k, top_p):
    """The most probable first, and no more than it takes, but for rounding."""
    p = next_token_probabilities(
        torch.tensor(logits), temperature=temperature, top_k=top_k, top_p=top_p
    )
    before = plain_probabilities(logits, temperature, top_k)
    kept = support(p)
    reached = math.fsum(before[i] for i in kept)
    assert reached >= top_p - 2e-6
    if len(kept) > 1 and top_p < 1:
        assert reached - min(before[i] for i in kept) < top_p + 2e-6
    dropped = max((q for i, q in enumerate(before) if i not in kept), default=0)
    assert min(before[i] for i in kept) >= dropped - 1e-7
    for i in kept:
        assert p[i].item() == pytest.approx(before[i] / reached, abs=2e-6)


@given(logits=LOGITS | TIED, k=st.integers(1, 15))
@many
def test_keep_top_k(logits, k):
    tensor = torch.tensor(logits)
    kept = sorted(range(len(logits)), key=lambda i: (-logits[i], i))[:k]
    expected = torch.full_like(tensor, -math.inf)
    expected[kept] = tensor[kept]
    assert torch.equal(keep_top_k(tensor, k), expected)
    assert torch.equal(tensor, torch.tensor(logits))  # not changed


@pytest.mark.parametrize("k", [0, -1, 2.0, True, None])
def test_keep_top_k_refuses(k):
    with pytest.raises(ValueError, match="top_k") as caught:
        keep_top_k(torch.zeros(3), k)
    assert repr(k) in str(caught.value)


@pytest.mark.parametrize("top_p", [0, 0.0, -0.5, 1.5, math.nan, True, "0.5"])
def test_keep_nucleus_refuses(top_p):
    with pytest.raises(ValueError, match="top_p") as caught:
        keep_nucleus(torch.zeros(3), top_p)
    assert repr(top_p) in str(caught.value)


@given(logits=TIED, top_p=st.sampled_from([1e-300, 0.1, 0.5, 0.9, 0.999, 1, 1.0]))
@many
def test_keep_nucleus(logits, top_p):
    tensor = torch.tensor(logits)
    kept = [i for i, p in enumerate(plain_probabilities(logits, top_p=top_p)) if p > 0]
    expected = torch.full_like(tensor, -math.inf)
    expected[kept] = tensor[kept]
    assert torch.equal(keep_nucleus(tensor, top_p), expected)
    assert torch.equal(tensor, torch.tensor(logits))


@pytest.mark.parametrize("knobs", [{"top_k": 3}, {"top_p": 0.7}, {"temperature": 0.5}])
def test_every_row_alone(knobs):
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 10)
    together = next_token_probabilities(logits, **knobs)
    assert together.shape == logits.shape
    for b, t in itertools.product(range(2), range(3)):
        alone = next_token_probabilities(logits[b, t], **knobs)
        torch.testing.assert_close(together[b, t], alone)


def test_top_k_comes_first():
    """0.4, 0.3, 0.2, 0.1: of the first two, 0.4 / 0.7 reaches 0.55; of all, not."""
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
    both = next_token_probabilities(logits, top_k=2, top_p=0.55)
    assert support(both) == [0]
    assert support(next_token_probabilities(logits, top_p=0.55)) == [0, 1]


def test_temperature_comes_before_the_nucleus():
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
    cold = next_token_probabilities(logits, temperature=0.1, top_p=0.8)
    hot = next_token_probabilities(logits, temperature=100.0, top_p=0.8)
    assert (support(cold), support(hot)) == ([0], [0, 1, 2, 3])


def test_top_p_1_and_a_large_top_k_keep_all():
    logits = torch.tensor([0.0, -80.0, 5.0, 5.0, -3.0, -12.0])
    expected = logits.double().softmax(-1).float()
    for knobs in ({"top_p": 1.0}, {"top_p": 1}, {"top_k": 6}, {"top_k": 10**9}):
        p = next_token_probabilities(logits, **knobs)
        torch.testing.assert_close(p, expected)
        assert len(support(p)) == 6


def test_large_vocabulary():
    """A nucleus over GPT-2's vocabulary: the fewest, but for one part in a million."""
    torch.manual_seed(0)
    logits = 2 * torch.randn(50257)
    reached = logits.double().softmax(-1).sort(descending=True).values.cumsum(0)
    for top_p in (0.1, 0.5, 0.9, 0.99, 0.999):
        kept = len(support(next_token_probabilities(logits, top_p=top_p)))
        fewest = [int((reached < p).sum()) + 1 for p in (top_p * (1 - 2e-6), top_p)]
        assert fewest[0] <= kept <= fewest[1] + 1
    for top_k in (1, 40, 50256, 50257):
        assert len(support(next_token_probabilities(logits, top_k=top_k))) == top_k


def test_earlier_ids_among_many_equals():
    """Sorting must be stable also where a vocabulary is large."""
    logits = torch.zeros(3, 50257)
    logits[1, ::2] = 1.0
    kept = next_token_probabilities(logits, top_k=1000) > 0
    assert kept[0].nonzero().flatten().tolist() == list(range(1000))
    assert kept[1].nonzero().flatten().tolist() == list(range(0, 2000, 2))
    half = next_token_probabilities(logits[0, :50000], top_p=0.5) > 0
    assert half.nonzero().flatten().tolist() == list(range(25000))


# ---- the ends of the scale


@pytest.mark.parametrize("temperature", [5e-324, 1e-300, 1e-45, 1e-30])
@pytest.mark.parametrize(
    "knobs", [{}, {"top_k": 2}, {"top_p": 0.5}, {"top_k": 3, "top_p": 1.0}], ids=str
)
def test_near_zero_only_the_largest_is_left(temperature, knobs):
    logits = torch.tensor([[3e38, -3e38, 1.0], [-5.0, -4.0, -4.5], [0.0, 1e-6, -1e30]])
    p = next_token_probabilities(logits, temperature=temperature, **knobs)
    assert torch.equal(p, torch.eye(3)[[0, 1, 1]])
    ties = torch.tensor([1.0, 7.0, 7.0, 2.0])
    p = next_token_probabilities(ties, temperature=temperature)
    assert torch.equal(p, torch.tensor([0, 0.5, 0.5, 0]))


@pytest.mark.parametrize("temperature", [1e30, 1e39, 1e46, 1e300, 1.7e308, 10**30])
def test_far_up_all_are_alike_but_their_order_stays(temperature):
    """Division must not turn the order into a tie: top-k keeps the k largest."""
    logits = torch.tensor([0.0, 3.0, 1.0, 2.0])
    p = next_token_probabilities(logits, temperature=temperature)
    torch.testing.assert_close(p, torch.full((4,), 0.25))
    p = next_token_probabilities(logits, temperature=temperature, top_k=2)
    assert support(p) == [1, 3]
    torch.testing.assert_close(p[[1, 3]], torch.tensor([0.5, 0.5]))


def test_top_k_sees_differences_that_rounding_hides():
    """Nothing is done to logits before the largest are chosen."""
    for tiny in (1e-9, 1e-30):
        logits = torch.tensor([10.0, tiny, 2 * tiny, -5.0])
        assert support(next_token_probabilities(logits, top_k=2)) == [0, 2]
    one, more = np.float32(1), np.nextafter(np.float32(1), np.float32(2))
    logits = torch.tensor([float(one), float(more), 100.0])
    assert support(next_token_probabilities(logits, temperature=50.0, top_k=2)) == [
        1,
        2,
    ]


def test_excluded_tokens_stay_excluded():
    logits = torch.tensor([1.0, -math.inf, 2.0, -math.inf])
    for temperature in (1e-300, 1.0, 1e300):
        for knobs in ({}, {"top_k": 3}, {"top_p": 0.99}, {"top_p": 1.0}):
            p = next_token_probabilities(logits, temperature=temperature, **knobs)
            assert set(support(p)) <= {0, 2}
            assert p.sum().item() == pytest.approx(1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("knobs", [{}, {"temperature": 0.5}, {"top_p": 0.9}], ids=str)
def test_logits_in_half_precision_are_numbers_like_others(dtype, knobs):
    """Their own rounding is theirs; the arithmetic after it must not add more."""
    torch.manual_seed(0)
    logits = (3 * torch.randn(2000)).to(dtype)
    exact = next_token_probabilities(logits.double(), **knobs)
    p = next_token_probabilities(logits, **knobs).double()
    relative = ((p - exact).abs() / exact.clamp_min(1e-12)).max().item()
    assert relative < 0.01
    assert p.sum().item() == pytest.approx(1, abs=1e-3)


# ---- draws, by counting


def probability_of_chance(counts, expected):
    """How often a chi-square is as large as this by chance alone; cells are pooled."""
    counts, expected = np.array(counts, float), np.array(expected, float)
    assert counts[expected == 0].sum() == 0, "a token outside of the support was drawn"
    order = np.argsort(expected[expected > 0])
    counts, expected = counts[expected > 0][order], expected[expected > 0][order]
    rare = max(1, int((expected < 5).sum()))
    counts = np.array([counts[:rare].sum(), *counts[rare:]])
    expected = np.array([expected[:rare].sum(), *expected[rare:]])
    if len(counts) == 1:
        return 1.0
    statistic = ((counts - expected) ** 2 / expected).sum()
    half = torch.tensor([(len(counts) - 1) / 2, statistic / 2], dtype=torch.float64)
    return torch.special.gammaincc(half[0], half[1]).item()


def test_the_chi_square_itself():
    assert probability_of_chance([50, 50], [50, 50]) == 1
    assert probability_of_chance([60, 40], [50, 50]) == pytest.approx(0.0455, abs=1e-4)
    assert probability_of_chance([20, 30, 50], [30, 30, 40]) < 0.06
    with pytest.raises(AssertionError, match="outside"):
        probability_of_chance([1, 99], [0, 100])


N = 20_000
KNOBS = [
    {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    for temperature in (1.0, 0.6, 1.8)
    for top_k in (None, 3)
    for top_p in (None, 0.75)
]


def exact_joint(model, prompt, n, knobs):
    """The probability of each way to go on for `n` tokens, from the plain model."""
    joint, window = {(): 1.0}, model.config.block_size
    for _ in range(n):
        longer = {}
        for text, probability in joint.items():
            tokens = torch.tensor([[*prompt, *text]])
            if model.config.position == "learned":
                tokens = tokens[:, -window:]
            logits = plain_logits(model, tokens)[0, -1].tolist()
            for i, p in enumerate(plain_probabilities(logits, **knobs)):
                longer[(*text, i)] = probability * p
        joint = longer
    return joint


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("position", ["learned", "rotary"])
@pytest.mark.parametrize("knobs", KNOBS, ids=str)
def test_draws_are_as_frequent_as_they_should_be(knobs, position, use_cache):
    """Two tokens after one, in a window of two: the last is drawn past the window."""
    model = random_model(position, (1, 1, 4, 5, 2), seed=3)
    prompt = [2, 4]
    joint = exact_joint(model, prompt, 2, knobs)
    out = generate(
        model,
        torch.tensor([prompt]).expand(N, 2),
        2,
        use_cache=use_cache,
        generator=torch.Generator().manual_seed(1),
        **knobs,
    )
    assert out.shape == (N, 4)
    cells = (out[:, 2] * 5 + out[:, 3]).bincount(minlength=25).tolist()
    expected = [N * joint[a, b] for a in range(5) for b in range(5)]
    assert probability_of_chance(cells, expected) > 1e-4


def test_rows_are_drawn_independently():
    """Neighbours in a batch of equal texts fall as two dice do."""
    model = random_model("learned", (1, 1, 4, 3, 2))
    generator = torch.Generator().manual_seed(0)
    drawn = generate(model, torch.ones(2 * N, 1).long(), 1, generator=generator)[:, 1]
    p = plain_probabilities(plain_logits(model, torch.tensor([[1]]))[0, -1].tolist())
    cells = (drawn[::2] * 3 + drawn[1::2]).bincount(minlength=9).tolist()
    expected = [N * p[a] * p[b] for a in range(3) for b in range(3)]
    assert probability_of_chance(cells, expected) > 1e-4


# ---- seeds


@pytest.mark.parametrize("use_cache", [True, False])
def test_the_same_seed_gives_the_same_text(use_cache):
    model = random_model("rotary")
    prompt = torch.tensor([[1, 2], [3, 4]])

    def text(seed, cached=use_cache):
        generator = torch.Generator().manual_seed(seed)
        return generate(model, prompt, 30, use_cache=cached, generator=generator)

    assert torch.equal(text(1), text(1))
    assert torch.equal(text(1), text(1, cached=not use_cache))
    assert not torch.equal(text(1), text(2))
    stream = generate_stream(
        model, prompt, 30, generator=torch.Generator().manual_seed(1)
    )
    assert torch.equal(torch.stack(list(stream), dim=1), text(1)[:, 2:])


def test_without_a_generator_the_global_seed_counts():
    model = random_model("learned")
    prompt = torch.tensor([[1, 2]])
    torch.manual_seed(5)
    first = generate(model, prompt, 20)
    torch.manual_seed(5)
    assert torch.equal(generate(model, prompt, 20), first)


def test_the_global_generator_is_left_alone():
    model = random_model("learned")
    prompt, before = torch.tensor([[1, 2]]), torch.get_rng_state()
    generate(model, prompt, 5, generator=torch.Generator().manual_seed(1))
    generate(model, prompt, 5, greedy=True)
    assert torch.equal(torch.get_rng_state(), before)


# ---- refused

BAD_KNOBS = [
    *[("temperature", t) for t in (-1, -0.5, -math.inf, math.nan, math.inf, True)],
    *[("temperature", t) for t in ("1", "0.7", None, [1.0], 1j)],
    *[("temperature", t) for t in (torch.tensor(0.7), torch.tensor([1.0, 2.0]))],
    *[("temperature", t) for t in (np.array([1.0, 2.0]), np.array(0.7))],
    *[("top_k", k) for k in (0, -1, -50, 2.5, 2.0, True, False, "3", [3], math.nan)],
    *[("top_p", p) for p in (0, 0.0, -0.1, 1.1, 2, math.nan, math.inf, True, "0.9")],
    *[("top_p", p) for p in ([0.9], torch.tensor([0.5, 0.5]))],
]


@pytest.mark.parametrize(("name", "value"), BAD_KNOBS, ids=str)
def test_bad_knobs(name, value):
    model = random_model("learned")
    tokens = torch.tensor([[1, 2]])
    calls = [
        lambda: next_token_probabilities(torch.zeros(5), **{name: value}),
        lambda: generate(model, tokens, 2, **{name: value}),
        lambda: generate(model, tokens, 0, **{name: value}),
        lambda: generate_stream(model, tokens, 2, **{name: value}),  # at the call
    ]
    for call in calls:
        with pytest.raises(ValueError, match=name) as caught:
            call()
        assert repr(value) in str(caught.value)
        allowed = {"temperature": "above 0", "top_k": "1", "top_p": "(0, 1]"}[name]
        assert allowed in str(caught.value)


@pytest.mark.parametrize("zero", [0, 0.0, -0.0])
def test_temperature_0_is_told_of_greedy(zero):
    with pytest.raises(ValueError, match=r"temperature .*greedy=True"):
        generate(random_model("learned"), torch.tensor([[1]]), 1, temperature=zero)


def ids(*rows):
    return torch.tensor(rows)


BAD_PROMPTS = {
    "no tokens": (torch.zeros(1, 0, dtype=torch.long), ValueError, "(1, 0)"),
    "no tokens, three texts": (
        torch.zeros(3, 0, dtype=torch.long),
        ValueError,
        "(3, 0)",
    ),
    "no texts": (torch.zeros(0, 3, dtype=torch.long), ValueError, "(0, 3)"),
    "one dimension": (ids(1, 2, 3), ValueError, "(3,)"),
    "three dimensions": (ids([[1, 2]]), ValueError, "(1, 1, 2)"),
    "a number": (torch.tensor(1), ValueError, "dimension"),
    "floats": (torch.ones(1, 2), TypeError, "float32"),
    "booleans": (torch.ones(1, 2).bool(), TypeError, "bool"),
    "bytes": (torch.ones(1, 2).byte(), TypeError, "uint8"),
    "a list": ([[1, 2]], TypeError, "list"),
    "text": ("ROMEO:", TypeError, "str"),
    "nothing": (None, TypeError, "NoneType"),
    "too large": (ids([1, 7]), ValueError, "7"),
    "negative": (ids([-1, 2]), ValueError, "-1"),
    "too large, before the window": (ids([7] + 20 * [1]), ValueError, "7"),
    "negative, before the window": (ids([1, -9] + 20 * [1]), ValueError, "-9"),
    "in the second text": (ids([1, 2], [1, 2**40]), ValueError, str(2**40)),
}


@pytest.mark.parametrize("function", [generate, generate_stream])
@pytest.mark.parametrize("position", ["learned", "rotary"])
@pytest.mark.parametrize("prompt", BAD_PROMPTS)
def test_bad_prompts(prompt, position, function):
    tokens, error, word = BAD_PROMPTS[prompt]
    with pytest.raises(error, match="tokens") as caught:
        function(random_model(position), tokens, 3)  # at the call, nothing asked yet
    assert word in str(caught.value)


@pytest.mark.parametrize("function", [generate, generate_stream])
@pytest.mark.parametrize("number", [-1, 2.0, 1.5, "3", None, True, math.nan])
def test_bad_max_new_tokens(number, function):
    with pytest.raises(ValueError, match="max_new_tokens") as caught:
        function(random_model("learned"), ids([1, 2]), number)
    assert repr(number) in str(caught.value)


@pytest.mark.parametrize("greedy", [True, False])
@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_damaged_weights_are_told_and_make_no_text(use_cache, greedy, value):
    model = random_model("learned")
    with torch.no_grad():
        model.transformer.norm.bias[0] = value
    with pytest.raises(ValueError, match="not numbers"):
        generate(model, ids([1, 2]), 2, use_cache=use_cache, greedy=greedy)
