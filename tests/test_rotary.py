"""Rotary positions: a rotation, relative, and a model that is saved and loaded."""

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import SHAPES, assert_close, random_model, random_tokens, rotate

from gpt2lib.config import GPT2Config
from gpt2lib.language_model import GPT2LMHeadModel, next_token_loss
from gpt2lib.rotary import RotaryEmbedding

few = settings(deadline=None, derandomize=True, max_examples=50)
HEAD_DIMS = [2, 4, 6, 64]


def vectors(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=dtype)


def rotate_interleaved(x, positions, base=10000.0):
    """The other pairing, as in the paper: features 2i and 2i + 1 are a pair."""
    result, D = torch.empty_like(x), x.size(-1)
    for t, position in enumerate(positions.tolist()):
        for i in range(D // 2):
            angle = position * base ** (-2 * i / D)
            a, b = x[..., t, 2 * i], x[..., t, 2 * i + 1]
            result[..., t, 2 * i] = a * math.cos(angle) - b * math.sin(angle)
            result[..., t, 2 * i + 1] = a * math.sin(angle) + b * math.cos(angle)
    return result


# ---- the rotation


@given(
    pairs=st.integers(1, 40),
    base=st.sampled_from([10000.0, 10000, 500_000.0, 100.0, 2.5]),
    lead=st.lists(st.integers(0, 3), max_size=3),
    positions=st.lists(st.integers(-1000, 1_000_000), max_size=6),
)
@few
def test_equals_complex_rotation(pairs, base, lead, positions):
    positions = torch.tensor(positions, dtype=torch.int64)
    x = vectors(*lead, len(positions), 2 * pairs)
    turned = RotaryEmbedding(2 * pairs, base)(x, positions)
    assert turned.shape == x.shape
    assert turned.dtype == torch.float64
    torch.testing.assert_close(turned, rotate(x, positions, base), rtol=0, atol=1e-8)


@pytest.mark.parametrize("D", HEAD_DIMS)
def test_single_precision_is_enough_far_from_the_start(D):
    """Positions are unbounded, so angles must not lose what the numbers keep."""
    positions = torch.tensor([0, 1, 99, 1023, 9_999, 99_991, 999_983])
    x = vectors(5, 7, D, dtype=torch.float32)
    turned = RotaryEmbedding(D)(x, positions)
    assert turned.dtype == torch.float32
    error = (turned - rotate(x, positions)).abs().amax(dim=(0, 2))
    assert (error < 2e-6).all(), [positions.tolist(), error.tolist()]


@pytest.mark.parametrize("D", HEAD_DIMS)
def test_the_two_pairings_are_one_under_a_permutation(D):
    """Even features to the first half, odd ones to the second."""
    positions = torch.arange(0, 50, 7)
    x = vectors(3, len(positions), D)
    order = torch.cat([torch.arange(0, D, 2), torch.arange(1, D, 2)])
    half_split = RotaryEmbedding(D)(x[..., order], positions)
    interleaved = rotate_interleaved(x, positions)[..., order]
    torch.testing.assert_close(half_split, interleaved, rtol=0, atol=1e-6)
    if D > 2:
        other = RotaryEmbedding(D)(x, positions)
        assert (other - rotate_interleaved(x, positions)).abs().max() > 0.1


@pytest.mark.parametrize("D", HEAD_DIMS)
def test_norms_are_kept_also_of_every_pair(D):
    x, positions = vectors(4, 9, D), torch.arange(0, 90_000, 10_000)
    turned = RotaryEmbedding(D)(x, positions)
    pairs, turned_pairs = (torch.hypot(*t.chunk(2, dim=-1)) for t in (x, turned))
    torch.testing.assert_close(turned_pairs, pairs, rtol=1e-6, atol=0)


def test_position_0_is_the_identity():
    x = vectors(2, 3, 1, 8, dtype=torch.float32)
    assert torch.equal(RotaryEmbedding(8)(x, torch.tensor([0])), x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("start", [0, 1000, 100_000, 1_000_000])
@pytest.mark.parametrize("D", HEAD_DIMS)
def test_products_depend_on_the_distance_only(D, start, dtype):
    q, k = (vectors(20, 1, D, seed=seed, dtype=dtype) for seed in (1, 2))
    rotary = RotaryEmbedding(D)

    def product(at, distance):
        i, j = torch.tensor([at]), torch.tensor([at - distance])
        return (rotary(q, i) * rotary(k, j)).sum(-1)

    for distance in (0, 1, 2, 17, 900):
        near, far = product(distance, distance), product(start + distance, distance)
        scale = q.norm(dim=-1) * k.norm(dim=-1)
        assert ((far - near).abs() <= 2e-6 * scale).all()
    changed = (product(start, 0) - product(start, 1)).abs().max()
    assert changed > 0.1  # distance does count


def test_each_text_turns_alone():
    """Any dimensions before the last two, each with the same angles."""
    x, positions, rotary = vectors(2, 3, 5, 8), torch.arange(5), RotaryEmbedding(8)
    together = rotary(x, positions)
    for b in range(2):
        for h in range(3):
            assert torch.equal(together[b, h], rotary(x[b, h], positions))
    for t in range(5):
        alone = rotary(x[..., t : t + 1, :], positions[t : t + 1])
        assert torch.equal(together[..., t : t + 1, :], alone)
    assert torch.equal(rotary(x, positions.int()), together)


def test_input_is_not_changed_and_gradients_turn_back():
    x, positions = vectors(2, 4, 8).requires_grad_(), torch.arange(4)
    kept, direction = x.detach().clone(), vectors(2, 4, 8, seed=1)
    (gradient,) = torch.autograd.grad(RotaryEmbedding(8)(x, positions), x, direction)
    assert torch.equal(x, kept)
    torch.testing.assert_close(
        gradient, rotate(direction, -positions), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_turned_in_single_precision(dtype):
    """Only the result is rounded: angles in half precision would be far off."""
    x, positions = vectors(3, 6, 16).to(dtype), torch.arange(0, 6000, 1000) + 3
    turned = RotaryEmbedding(16)(x, positions)
    assert turned.dtype == dtype
    exact = rotate(x, positions)
    rounding = torch.finfo(dtype).eps / 2
    assert ((turned - exact).abs() <= 1.01 * rounding * exact.abs() + 1e-6).all()
    converted = RotaryEmbedding(16).to(dtype)  # as model.bfloat16() does
    assert torch.equal(converted(x, positions), turned)


def test_nothing_to_learn_save_or_move():
    rotary = RotaryEmbedding(8, base=500.0)
    assert not [*rotary.parameters(), *rotary.buffers(), *rotary.state_dict()]
    assert (rotary.head_dim, rotary.base) == (8, 500.0)
    with torch.device("meta"):
        made_on_meta = RotaryEmbedding(8, base=500.0)
    x, positions = vectors(2, 3, 8), torch.arange(3)
    assert torch.equal(made_on_meta(x, positions), rotary(x, positions))
    turned = rotary(x.to("meta"), positions.to("meta"))
    assert (turned.shape, turned.device.type) == (x.shape, "meta")


# ---- refused


@pytest.mark.parametrize("head_dim", [0, -2, 1, 3, 7, 2.0, "4", None, True])
def test_bad_head_dim(head_dim):
    with pytest.raises(ValueError, match=r"head_dim .*even") as caught:
        RotaryEmbedding(head_dim)
    assert repr(head_dim) in str(caught.value)


@pytest.mark.parametrize(
    "base", [0, 0.0, -1.0, math.inf, -math.inf, math.nan, "10000", None]
)
def test_bad_base(base):
    with pytest.raises(ValueError, match="base") as caught:
        RotaryEmbedding(8, base)
    assert repr(base) in str(caught.value)


X = torch.ones(2, 3, 8)


@pytest.mark.parametrize(
    ("x", "positions", "words"),
    [
        (X, torch.arange(2), ["positions", "(2,)"]),
        (X, torch.arange(4), ["positions", "(4,)"]),
        (X, torch.arange(1), ["positions", "(1,)"]),  # would broadcast
        (X, torch.arange(3)[None], ["positions", "(1, 3)"]),
        (X, torch.arange(6).view(2, 3), ["positions", "(2, 3)"]),
        (X, torch.tensor(3), ["positions", "()"]),
        (X[..., :6], torch.arange(3), ["8", "(2, 3, 6)"]),
        (X[..., :1], torch.arange(3), ["8", "(2, 3, 1)"]),
        (X[0, 0], torch.arange(1), ["(..., T, 8)", "(8,)"]),
        (torch.tensor(1.0), torch.arange(1), ["(..., T, 8)", "()"]),
    ],
)
def test_bad_shapes(x, positions, words):
    with pytest.raises(ValueError, match="x must") as caught:
        RotaryEmbedding(8)(x, positions)
    for word in words:
        assert word in str(caught.value)


# ---- in a model


@pytest.mark.parametrize("shape", SHAPES)
def test_save_and_load(shape, tmp_path):
    model = random_model("rotary", SHAPES[shape])
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["position"] == "rotary"
    again = GPT2LMHeadModel.from_pretrained(tmp_path)
    assert again.config == model.config
    assert not any(tensor.is_meta for tensor in again.state_dict().values())
    tokens = random_tokens(model, 2, 3 * model.config.block_size)
    assert torch.equal(again(tokens), model(tokens))


def test_parameters_are_those_of_gpt2_without_the_table():
    sizes = {"n_layer": 3, "n_head": 2, "n_embd": 8, "vocab_size": 11, "block_size": 5}
    with torch.device("meta"):
        learned, rotary = (
            GPT2LMHeadModel(GPT2Config(**sizes, position=position))
            for position in ("learned", "rotary")
        )
        assert rotary(torch.zeros(2, 9, dtype=torch.long)).shape == (2, 9, 11)
    names = set(learned.state_dict()) - set(rotary.state_dict())
    assert names == {"position_embedding.weight"}
    assert set(rotary.state_dict()) <= set(learned.state_dict())
    count = sum(p.numel() for p in rotary.parameters())
    assert rotary.config.num_parameters == count
    assert learned.config.num_parameters == count + 5 * 8


def test_order_counts_and_only_order():
    """Without positions the last logits would not change if the others change seats."""
    model = random_model("rotary", (2, 2, 8, 11, 8)).double()
    tokens = torch.tensor([[3, 1, 4, 1, 5, 9, 2]])
    swapped = tokens[:, [1, 0, 2, 3, 4, 5, 6]]
    assert (model(tokens)[:, -1] - model(swapped)[:, -1]).abs().max() > 1e-3


@pytest.mark.parametrize("n_layer", [1, 2])
def test_the_band_is_as_wide_as_the_window_in_gradients(n_layer):
    """What reaches an output of one layer: its position and block_size - 1 before."""
    model = random_model("rotary", (n_layer, 2, 8, 11, 4))
    x = vectors(1, 12, 8, dtype=torch.float32).requires_grad_()
    reach = 3 * n_layer
    for t in range(12):
        gradient = torch.autograd.grad(model.transformer(x)[0, t].sum(), x)[0]
        reached = gradient[0].abs().amax(-1) > 0
        expected = [t - reach <= s <= t for s in range(12)]
        assert reached.tolist() == expected


def test_trains():
    torch.manual_seed(0)
    config = GPT2Config(1, 2, 16, vocab_size=7, block_size=4, position="rotary")
    model = GPT2LMHeadModel(config)
    tokens = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 0, 1, 2]])  # beyond the window
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    losses = []
    for _ in range(100):
        loss = next_token_loss(model(tokens), tokens)
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None for p in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert abs(losses[0] - math.log(7)) < 0.2
    model.eval()
    assert_close(model(tokens)[:, :-1].argmax(-1).double(), tokens[:, 1:].double(), 0)


def test_integers_are_refused():
    with pytest.raises(TypeError, match="int64"):
        RotaryEmbedding(4)(torch.ones(2, 4, dtype=torch.int64), torch.arange(2))
