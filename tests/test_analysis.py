"""Numbers about heads and predictions: by the definition, and the model left alone."""

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import POSITIONS, SHAPES, plain_logits, random_model, random_tokens
from torch.nn import functional as F

from gpt2lib.analysis import (
    attention_entropy,
    first_token_score,
    head_importance,
    head_scores,
    induction_score,
    induction_targets,
    jensen_shannon,
    logit_lens,
    loss_by_position,
    previous_token_score,
    token_influence,
    without_head,
    without_heads,
)
from gpt2lib.hooks import attention_weights, capture
from gpt2lib.kv_cache import KVCache
from gpt2lib.language_model import next_token_loss

few = settings(deadline=None, derandomize=True, max_examples=60)
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
TINY = (2, 2, 8, 11, 6)
ROUNDING = 3e-8  # of a distance, whose square is right to 1e-15


@pytest.fixture(params=POSITIONS)
def model(request):
    return random_model(request.param, TINY).double()


def normal(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def causal_weights(*shape, seed=0):
    """Attention `(..., T, T)` of random queries and keys."""
    return attention_weights(normal(*shape, 4, seed=seed), normal(*shape, 4, seed=9))


def text_for(model, B=2, seed=0):
    """Tokens as far as they can be read at once: to the window, or far past it."""
    window = model.config.block_size
    T = window if model.config.position == "learned" else 2 * window + 1
    return random_tokens(model, B, T, seed)


def hooks_on(model):
    """How many hooks there are, in every table of every module."""
    tables = (vars(module).items() for module in model.modules())
    return sum(len(t) for name, t in itertools.chain(*tables) if "_hooks" in name)


# ---- the distance of two predictions


def distance_by_hand(a, b):
    """The root of the Jensen-Shannon divergence, base 2, of two lists of logits."""

    def distribution(logits):
        powers = np.exp(np.array(logits, dtype=np.longdouble) - max(logits))
        return powers / powers.sum()

    p, q = distribution(a), distribution(b)
    divergence = 0
    for one in (p, q):
        there = one > 0
        ratio = one[there] / ((p + q) / 2)[there]
        divergence += (one[there] * np.log2(ratio)).sum() / 2
    return math.sqrt(max(divergence, 0))


logit = st.floats(-60, 60, width=16)
triples = st.integers(1, 6).flatmap(
    lambda V: st.tuples(*[st.lists(logit, min_size=V, max_size=V)] * 3)
)


@given(triples, st.sampled_from(DTYPES))
@few
def test_distance_is_the_one_of_the_definition(rows, dtype):
    a, b, _ = (torch.tensor(row, dtype=dtype) for row in rows)
    distance = jensen_shannon(a, b)
    assert (distance.shape, distance.dtype) == ((), torch.float64)
    expected = distance_by_hand(a.tolist(), b.tolist())
    assert abs(distance.item() ** 2 - expected**2) < 2e-15


@given(triples, st.floats(-1000, 1000, width=16))
@few
def test_distance_is_a_metric_and_deaf_to_a_shift(rows, shift):
    a, b, c = torch.tensor(rows, dtype=torch.float64)
    ab, ac, cb = jensen_shannon(a, b), jensen_shannon(a, c), jensen_shannon(c, b)
    assert ab == jensen_shannon(b, a)
    assert 0 <= ab <= 1
    assert ab <= ac + cb + ROUNDING
    assert jensen_shannon(a, a) < ROUNDING
    assert jensen_shannon(a, a + shift) < 1e-6
    assert abs(jensen_shannon(a + shift, b) ** 2 - ab**2) < 1e-12


def test_distances_worth_knowing():
    even, one, other = torch.tensor([[0.0, 0.0], [1e4, -1e4], [-1e4, 1e4]])
    assert jensen_shannon(one, other) == 1
    assert jensen_shannon(one, one) == jensen_shannon(even, even + 1e4) == 0
    by_hand = math.sqrt(1.5 - 0.75 * math.log2(3))  # H(3/4, 1/4) less half a bit
    assert abs(jensen_shannon(even, one).item() - by_hand) < 1e-15


@pytest.mark.parametrize("low", [-math.inf, -1e30])
def test_tokens_that_cannot_come_have_probability_0(low):
    """As top-k leaves them: a token that neither has takes no part."""
    a = torch.tensor([1.0, low, 2.0, low])
    b = torch.tensor([low, low, 0.5, 1.5])
    for one, other in ((a, b), (b, a), (a, a), (a, torch.tensor([low, 1, low, low]))):
        expected = distance_by_hand(one.tolist(), other.tolist())
        assert abs(jensen_shannon(one, other).item() - expected) < ROUNDING


@pytest.mark.parametrize("fault", [math.nan, math.inf])
def test_what_is_no_prediction_has_no_distance_and_spoils_no_other(fault):
    a, b = normal(4, 5), normal(4, 5, seed=1)
    whole = jensen_shannon(a, b)
    a[1, 3] = b[2, 0] = fault
    spoiled = jensen_shannon(a, b)
    assert spoiled.isnan().tolist() == [False, True, True, False]
    assert torch.equal(spoiled[[0, 3]], whole[[0, 3]])


def test_each_row_has_its_own_distance():
    a, b = normal(2, 3, 4, 7, dtype=torch.float32), normal(2, 3, 4, 7, seed=1).float()
    together = jensen_shannon(a, b)
    assert together.shape == (2, 3, 4)
    for at in itertools.product(range(2), range(3), range(4)):
        assert abs(together[at] - distance_by_hand(a[at].tolist(), b[at].tolist())) < (
            ROUNDING
        )
    turned = jensen_shannon(a.transpose(0, 2), b.transpose(0, 2))  # not contiguous
    assert torch.equal(turned, together.transpose(0, 2))


@pytest.mark.parametrize(
    ("a", "b"), [((5,), (1, 5)), ((2, 5), (5,)), ((2, 5), (2, 1)), ((1, 5), (2, 5))]
)
def test_distance_of_unlike_shapes_is_refused(a, b):
    """They would broadcast."""
    with pytest.raises(ValueError, match="logits_a and logits_b") as caught:
        jensen_shannon(torch.zeros(a), torch.zeros(b))
    assert f"{a} and {b}" in str(caught.value)


def test_distance_has_the_right_gradient_and_changes_no_input():
    a, b = normal(3, 5).requires_grad_(), normal(3, 5, seed=1).requires_grad_()
    kept = a.detach().clone(), b.detach().clone()
    assert torch.autograd.gradcheck(jensen_shannon, (a, b))
    assert torch.equal(a, kept[0])
    assert torch.equal(b, kept[1])


# ---- functions that run a model

RUNS = {
    "token_influence": lambda model, text: token_influence(model, text[0], text[1]),
    "logit_lens": logit_lens,
    "head_importance": head_importance,
}


@pytest.fixture(params=RUNS)
def run(request):
    return RUNS[request.param]


@pytest.mark.parametrize("training", [True, False])
def test_running_leaves_no_trace(model, run, training):
    text = text_for(model)
    before = copy.deepcopy(model.state_dict())
    model.train(training)
    result = run(model, text)
    assert not result.requires_grad
    assert torch.is_grad_enabled()
    assert hooks_on(model) == 0
    assert all(module.training == training for module in model.modules())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(run(model, text), result)


def test_running_leaves_no_trace_after_an_error(model, run):
    outside = text_for(model) + model.config.vocab_size
    model.train()
    with pytest.raises(ValueError, match="tokens"):
        run(model, outside)
    assert hooks_on(model) == 0
    assert torch.is_grad_enabled()
    assert all(module.training for module in model.modules())


def test_a_call_that_breaks_off_midway_leaves_no_hook(model, run):
    """After the first layer's hooks have run, and none of the second's."""

    def stop(*_):
        raise KeyboardInterrupt

    handle = model.transformer.blocks[1].register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        run(model, text_for(model))
    handle.remove()
    assert hooks_on(model) == 0


def test_int32_tokens_do_too(model, run):
    text = text_for(model)
    assert torch.equal(run(model, text.int()), run(model, text))


@pytest.mark.parametrize("position", POSITIONS)
def test_dropout_has_no_say(position, run):
    """A fresh model is in training mode: its noise is no finding, see `generate`."""
    model = random_model(position, TINY, dropout=0.5)
    text = text_for(model)
    quiet = run(model, text)
    assert torch.equal(run(model.train(), text), quiet)


# ---- which token moves which prediction


def influence_by_hand(model, a, b):
    T = len(a)
    grid = torch.empty(T, T, dtype=torch.float64)
    normal_logits = plain_logits(model, a[None])[0]
    for i in range(T):
        text = a.clone()
        text[i] = b[i]
        moved = plain_logits(model, text[None])[0]
        for j in range(T):
            grid[i, j] = distance_by_hand(normal_logits[j].tolist(), moved[j].tolist())
    return grid


def test_influence_is_that_of_one_token_at_a_time(model):
    a, b = text_for(model)
    b[2] = a[2]
    influence = token_influence(model, a, b)
    torch.testing.assert_close(
        influence, influence_by_hand(model, a, b), rtol=0, atol=1e-5
    )
    changed = a != b
    assert changed.sum() > 1
    assert (influence.diagonal()[changed] > 0.01).all()
    assert (influence[~changed] < 1e-6).all()
    assert (influence.tril(-1) < 1e-6).all()  # the future moves nothing


def test_influence_of_a_text_on_itself_is_none(model):
    a = text_for(model)[0]
    assert token_influence(model, a, a.clone()).max() < 1e-6


def test_influence_in_a_text_of_one_token(model):
    a, b = torch.tensor([3]), torch.tensor([4])
    influence = token_influence(model, a, b)
    assert influence.shape == (1, 1)
    with torch.no_grad():
        logits = model(torch.stack([a, b]))[:, 0]
    assert torch.equal(influence[0, 0], jensen_shannon(*logits))


@pytest.mark.parametrize(
    "shapes", [((3,), (2,)), ((3,), (1,)), ((1, 3),) * 2, ((),) * 2]
)
def test_influence_of_unlike_texts_is_refused(model, shapes):
    texts = [torch.zeros(shape, dtype=torch.long) for shape in shapes]
    with pytest.raises(ValueError, match=r"a and b .*\(T,\)") as caught:
        token_influence(model, *texts)
    assert f"{shapes[0]} and {shapes[1]}" in str(caught.value)


# ---- what a head does


def scores_by_hand(weights):
    """Previous-token score, first-token score and entropy of one `(T, T)`."""
    rows = weights.tolist()
    T = len(rows)
    entropies = [-sum(w * math.log(w) for w in row if w > 0) for row in rows]
    previous = [rows[i][i - 1] for i in range(1, T)]
    first = [rows[i][0] for i in range(1, T)]
    return sum(previous) / (T - 1), sum(first) / (T - 1), sum(entropies) / T


@pytest.mark.parametrize("T", [2, 3, 9])
def test_scores_of_heads_are_those_of_the_definition(T):
    weights = causal_weights(2, 3, T)
    previous, first, entropy = (
        score(weights)
        for score in (previous_token_score, first_token_score, attention_entropy)
    )
    for at in itertools.product(range(2), range(3)):
        found = [score[at].item() for score in (previous, first, entropy)]
        assert found == pytest.approx(scores_by_hand(weights[at]), rel=1e-12)
    alone = previous_token_score(weights[1, 2])
    assert alone.shape == ()
    assert alone == previous[1, 2]


def test_scores_of_heads_that_keep_to_one_token():
    T = 7
    identity = torch.eye(T)
    back = torch.cat([identity[:1], identity[:-1]])
    sink = identity[:1].expand(T, T)
    even = torch.ones(T, T).tril() / torch.arange(1, T + 1)[:, None]
    assert previous_token_score(torch.stack([identity, back])).tolist() == [0, 1]
    assert first_token_score(torch.stack([identity, sink])).tolist() == [0, 1]
    heads = torch.stack([identity, back, sink])
    assert attention_entropy(heads).tolist() == [0, 0, 0]  # and no 0 * log(0)
    most = math.log(math.factorial(T)) / T
    assert attention_entropy(even).item() == pytest.approx(most, rel=1e-6)


def test_a_single_position_has_no_token_before():
    alone = torch.ones(2, 3, 1, 1)
    assert previous_token_score(alone).isnan().all()
    assert first_token_score(alone).isnan().all()
    assert attention_entropy(alone).tolist() == [[0] * 3] * 2


@pytest.mark.parametrize("score", [previous_token_score, first_token_score])
def test_scores_refuse_rows_that_lack_their_own_columns(score):
    """As with a cache: row 0 is not position 0, and the diagonal not the one before."""
    model = random_model("learned", TINY)
    cache, text = KVCache(model.config, batch_size=2), text_for(model)
    with torch.no_grad(), capture(model, "*.weights") as found:
        model(text[:, :4], cache=cache)
        model(text[:, 4:], cache=cache)
    [late, _] = found.values()
    assert late.shape == (2, 2, 2, 6)
    with pytest.raises(ValueError, match=r"weights .*\(2, 2, 2, 6\)"):
        score(late)


# ---- induction


def targets_by_hand(tokens, n):
    B, T = len(tokens), len(tokens[0])
    found = torch.zeros(B, T, T, dtype=torch.bool)
    for b, i, j in itertools.product(range(B), range(T), range(T)):
        if j < i and i - n + 1 >= 0 and j - n >= 0:
            found[b, i, j] = tokens[b][i - n + 1 : i + 1] == tokens[b][j - n : j]
    return found


texts = st.integers(1, 12).flatmap(
    lambda T: st.lists(
        st.lists(st.integers(0, 2), min_size=T, max_size=T), min_size=1, max_size=3
    )
)


@given(texts, st.integers(1, 5), st.sampled_from([torch.int64, torch.int32]))
@few
def test_induction_looks_behind_what_came_before(rows, n, dtype):
    tokens = torch.tensor(rows, dtype=dtype)
    targets = induction_targets(tokens, n)
    assert targets.dtype == torch.bool
    assert torch.equal(targets, targets_by_hand(rows, n))
    assert tokens.tolist() == rows


@given(texts, st.integers(1, 3))
@few
def test_induction_score_is_the_mean_over_rows_with_a_target(rows, n):
    tokens, targets = torch.tensor(rows), targets_by_hand(rows, n)
    weights = causal_weights(len(rows), 2, len(rows[0]))
    score = induction_score(weights, tokens, n)
    assert score.shape == (len(rows), 2)
    for b, h in itertools.product(range(len(rows)), range(2)):
        paid = [
            weights[b, h, i][targets[b, i]].sum().item()
            for i in range(len(rows[0]))
            if targets[b, i].any()
        ]
        expected = sum(paid) / len(paid) if paid else math.nan
        assert score[b, h].item() == pytest.approx(expected, rel=1e-12, nan_ok=True)


def test_a_head_that_does_induction_and_nothing_else_scores_1():
    tokens = torch.tensor([[5, 1, 2, 3, 5, 1, 2, 3]])
    perfect = torch.eye(8)
    perfect[4:, :] = 0
    perfect[torch.arange(4, 8), torch.arange(1, 5)] = 1
    heads = torch.stack([perfect, torch.eye(8)])[None]
    assert induction_score(heads, tokens).tolist() == [[1, 0]]
    assert induction_score(heads, tokens, n=4).tolist() == [[1, 0]]
    assert induction_score(heads, tokens, n=5).isnan().all()


@pytest.mark.parametrize("n", [0, -1])
def test_induction_needs_a_token_to_go_by(n):
    tokens = torch.zeros(1, 3, dtype=torch.long)
    for call in (induction_targets, lambda *rest: induction_score(torch.eye(3), *rest)):
        with pytest.raises(ValueError, match=f"n must be at least 1, got {n}"):
            call(tokens, n)


@pytest.mark.parametrize("shape", [(3,), (), (1, 2, 3)])
def test_induction_refuses_tokens_of_another_shape(shape):
    tokens = torch.zeros(shape, dtype=torch.long)
    with pytest.raises(ValueError, match=r"tokens .*\(B, T\)") as caught:
        induction_targets(tokens)
    assert str(shape) in str(caught.value)


@pytest.mark.parametrize(
    "shape", [(2, 3, 5, 5), (3, 4, 4), (1, 3, 4, 4), (2, 3, 1, 4), (2, 3, 2, 4)]
)
def test_induction_refuses_weights_that_are_not_those_of_the_tokens(shape):
    tokens = torch.zeros(2, 4, dtype=torch.long)
    with pytest.raises(ValueError, match="weights") as caught:
        induction_score(torch.ones(shape), tokens)
    assert str(shape) in str(caught.value)
    assert str((2, 4)) in str(caught.value)


# ---- what each layer would predict


@pytest.mark.parametrize("sizes", [*SHAPES.values(), (12, 1, 4, 5, 6)])
@pytest.mark.parametrize("position", POSITIONS)
def test_lens_reads_the_model_cut_off_after_each_layer(position, sizes):
    """Twelve layers too: 10 comes after 9, not after 1."""
    model = random_model(position, sizes)
    text = text_for(model)
    lens = logit_lens(model, text)
    cut, blocks = copy.deepcopy(model), model.transformer.blocks
    assert len(lens) == 1 + len(blocks)
    for n, read in enumerate(lens):
        cut.transformer.blocks = blocks[:n]
        with torch.no_grad():
            assert torch.equal(read, cut(text))
    with torch.no_grad():
        assert torch.equal(lens[-1], model(text))


def test_lens_looks_through_an_edit(model):
    text = text_for(model)
    plain = logit_lens(model, text)
    with without_head(model, 1, 0):
        edited = logit_lens(model, text)
        with torch.no_grad():
            assert torch.equal(edited[-1], model(text))
    assert torch.equal(edited[:2], plain[:2])
    assert (edited[2] - plain[2]).abs().max() > 1e-3


# ---- a head less


def silenced(model, *heads):
    """A copy of the model, the columns of `proj` that read these heads set to 0."""
    model, D = copy.deepcopy(model), model.config.head_dim
    for layer, head in heads:
        weight = model.transformer.blocks[layer].attention.proj.weight
        weight.data[:, head * D : (head + 1) * D] = 0
    return model


HEADS = list(itertools.product(range(2), range(2)))


@pytest.mark.parametrize("pair", list(itertools.product(HEADS, HEADS)))
def test_without_heads_is_a_model_that_does_not_read_them(model, pair):
    """Nested: of one layer, of two, in any order, and one head twice."""
    one, other = pair
    text = text_for(model)
    with torch.no_grad():
        whole, expected = model(text), silenced(model, *pair)(text)
        with without_head(model, *one):
            with without_head(model, *other):
                both = model(text)
            alone = model(text)
        torch.testing.assert_close(both, expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(
            alone, silenced(model, one)(text), rtol=0, atol=1e-12
        )
        assert (alone - whole).abs().max() > 1e-3
        assert torch.equal(model(text), whole)
    assert hooks_on(model) == 0


def test_without_a_head_reads_the_same_from_a_cache(model):
    text = text_for(model)[:, :6]
    cache = KVCache(model.config, batch_size=2, dtype=torch.float64)
    with torch.no_grad(), without_head(model, 0, 1):
        pieces = [model(piece, cache=cache) for piece in text.split([3, 1, 2], dim=1)]
    expected = silenced(model, (0, 1))(text)
    torch.testing.assert_close(torch.cat(pieces, 1), expected, rtol=0, atol=1e-12)


def test_gradients_pass_by_a_head_that_is_off(model):
    text, D = text_for(model), model.config.head_dim
    with without_head(model, 0, 1):
        next_token_loss(model(text), text).backward()
    attention = model.transformer.blocks[0].attention
    columns = attention.proj.weight.grad.unflatten(1, (2, D)).abs().amax((0, 2))
    values = attention.qkv.weight.grad.unflatten(0, (3, 2, D)).abs().amax((2, 3))
    for found in (columns, *values):
        assert found[0] > 0
        assert found[1] == 0


def test_the_head_is_back_after_an_error(model):
    text = text_for(model)
    whole = model(text)
    with pytest.raises(ZeroDivisionError), without_head(model, 1, 1):
        1 / 0  # noqa: B018
    assert torch.equal(model(text), whole)
    assert hooks_on(model) == 0


@pytest.mark.parametrize("integer", [int, np.int64, np.int8, torch.tensor])
def test_integers_of_any_kind_name_a_head(model, integer):
    text = text_for(model)
    with torch.no_grad(), without_head(model, integer(1), integer(0)):
        found = model(text)
    expected = silenced(model, (1, 0))(text)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("argument", ["layer", "head"])
@pytest.mark.parametrize(
    "value", [-1, 3, 10**30, True, 0.0, 0.5, math.nan, "0", None, [0], slice(2)]
)
def test_a_head_that_the_model_does_not_have_is_refused_at_once(argument, value):
    model = random_model("learned", (3, 3, 6, 5, 4))
    where = {"layer": 0, "head": 0, argument: value}
    with (
        pytest.raises(
            (ValueError, TypeError), match=rf"^{argument} .*0 to 2"
        ) as caught,
        without_head(model, **where),
    ):
        pass  # refused here, not when the model runs
    assert str(value) in str(caught.value)
    assert hooks_on(model) == 0


# ---- what each head is worth


@pytest.mark.parametrize("sizes", [(1, 1, 8, 11, 6), (3, 2, 8, 11, 6)])
@pytest.mark.parametrize("position", POSITIONS)
def test_importance_is_the_loss_without_less_the_loss_with(position, sizes):
    model = random_model(position, sizes).double()
    text = text_for(model, B=3)
    worth = head_importance(model, text)
    assert (worth.shape, worth.dtype) == (sizes[:2], torch.float64)
    with torch.no_grad():
        whole = next_token_loss(model(text), text)
        for at in itertools.product(*map(range, sizes[:2])):
            loss = next_token_loss(silenced(model, at)(text), text)
            assert abs(worth[at] - (loss - whole)) < 1e-12
    assert worth.abs().min() > 1e-4


def test_a_head_that_nobody_reads_is_worth_nothing(model):
    text = text_for(model)
    worth = head_importance(silenced(model, (1, 0)), text)
    assert worth[1, 0] == 0
    assert (worth != 0).sum() == 3


def test_importance_follows_the_models_dtype(model):
    assert head_importance(model.float(), text_for(model)).dtype == torch.float32


def test_importance_needs_something_to_predict(model):
    with pytest.raises(ValueError, match="T at least 2"):
        head_importance(model, torch.tensor([[1], [2]]))
    assert hooks_on(model) == 0


# ---- loss by position


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("B", "T"), [(1, 2), (3, 5)])
def test_loss_by_position_is_the_surprise_at_each_next_token(B, T, dtype):
    logits = normal(B, T, 7, dtype=dtype) * 3
    tokens = torch.randint(7, (B, T), generator=torch.Generator().manual_seed(0))
    losses = loss_by_position(logits, tokens)
    assert (losses.shape, losses.dtype) == ((B, T - 1), dtype)
    for b, t in itertools.product(range(B), range(T - 1)):
        row = logits[b, t].tolist()
        by_hand = math.log(sum(map(math.exp, row))) - row[tokens[b, t + 1]]
        assert losses[b, t].item() == pytest.approx(by_hand, rel=1e-5)
        torch.testing.assert_close(
            losses[b, t], F.cross_entropy(logits[b, t], tokens[b, t + 1])
        )
    torch.testing.assert_close(losses.mean(), next_token_loss(logits, tokens))
    assert torch.equal(loss_by_position(logits, tokens.int()), losses)


def test_loss_by_position_trains_as_the_loss_does():
    tokens, directions = torch.tensor([[1, 2, 0, 2]]), []
    for loss in (loss_by_position, next_token_loss):
        logits = normal(1, 4, 3).requires_grad_()
        loss(logits, tokens).mean().backward()
        directions.append(logits.grad)
    torch.testing.assert_close(*directions)
    assert (directions[0][:, -1] == 0).all()  # nothing follows the last


@pytest.mark.parametrize(
    "tokens",
    [
        torch.tensor([[1, 2, 0]]),
        torch.tensor([1, 2, 0, 2]),
        torch.tensor([[1, 2, 0, 2]] * 2),
        torch.tensor([[1, 2, 0, 3]]),
        torch.tensor([[1, -100, 0, 2]]),
        torch.tensor([[1.0, 2.5, 0.0, 2.0]]),
        [[1, 2, 0, 2]],
    ],
    ids=["short", "flat", "batch", "high", "ignore-index", "float", "list"],
)
def test_loss_by_position_refuses_what_the_loss_refuses(tokens):
    """In the same words, for -100 is a token that costs nothing."""
    messages = []
    for loss in (next_token_loss, loss_by_position):
        with pytest.raises((ValueError, TypeError)) as caught:
            loss(normal(1, 4, 3), tokens)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


def test_loss_by_position_of_a_single_token_is_refused():
    """An empty tensor, whose mean is NaN."""
    with pytest.raises(ValueError, match="T at least 2"):
        loss_by_position(normal(2, 1, 3), torch.zeros(2, 1, dtype=torch.long))


# ---- several heads at once


def test_several_heads_off_equal_one_after_the_other(model):
    tokens = text_for(model)
    pairs = [(0, 1), (1, 0), (0, 0)]
    with torch.no_grad():
        with without_heads(model, pairs):
            together = model(tokens)
        with (
            without_head(model, 0, 1),
            without_head(model, 1, 0),
            without_head(model, 0, 0),
        ):
            assert torch.equal(model(tokens), together)
        with without_heads(model, []):
            whole = model(tokens)
    assert torch.equal(whole, model(tokens))
    assert not torch.allclose(whole, together)


def test_all_scores_by_name_are_those_by_themselves():
    weights = causal_weights(2, 3, 6)
    tokens = torch.tensor([[1, 2, 1, 2, 3, 1], [1, 2, 3, 4, 5, 6]])
    scores = head_scores(weights, tokens)
    assert torch.equal(scores["previous_token"], previous_token_score(weights))
    assert torch.equal(scores["first_token"], first_token_score(weights))
    assert torch.equal(scores["entropy"], attention_entropy(weights))
    induction = induction_score(weights, tokens)
    torch.testing.assert_close(scores["induction"], induction, equal_nan=True)
    assert induction[1].isnan().all()
