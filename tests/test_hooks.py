"""Looking changes nothing, an edit changes what it says, and no hook stays behind."""

import copy
import gc
import io
import itertools
import math
import pickle
import sys
import threading
import tracemalloc
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import (
    POSITIONS,
    SHAPES,
    assert_close,
    held,
    plain_logits,
    random_model,
    random_tokens,
    rotate,
)
from torch import nn

import gpt2lib.attention
import gpt2lib.kv_cache
from gpt2lib.attention import (
    MultiHeadSelfAttention,
    causal_attention,
    explicit_attention,
)
from gpt2lib.block import TransformerBlock
from gpt2lib.hooks import (
    Divergence,
    activation_names,
    attention_weights,
    capture,
    edit,
    first_divergence,
)
from gpt2lib.kv_cache import KVCache
from gpt2lib.language_model import GPT2LMHeadModel, next_token_loss
from gpt2lib.model import GPT2Model
from gpt2lib.quantize import quantize_int8
from gpt2lib.sampling import generate, generate_stream

few = settings(deadline=None, derandomize=True, max_examples=25)
TINY = (1, 2, 8, 11, 4)
ATTENTION = "transformer.blocks.0.attention"
PARTS = ("q", "k", "v", "heads")  # of an attention, that can be edited


@pytest.fixture(params=POSITIONS)
def position(request):
    return request.param


def text_for(model, B=2, seed=0):
    """Tokens as far as they can be read at once: to the window, or far past it."""
    window = model.config.block_size
    T = window if model.config.position == "learned" else 2 * window + 1
    return random_tokens(model, B, T, seed)


def hooks_on(model):
    """Every entry of every table of hooks, of every module."""
    return [
        (name, table)
        for name, module in model.named_modules()
        for table in vars(module)
        if "_hooks" in table
        for _ in vars(module)[table]
    ]


def editable(model, *args):
    """What `model` makes of a text, but for what can only be looked at."""
    ends = ("weights", "resid_mid")
    found = found_in(model, *(args or [text_for(model)]))
    return {name: found[name] for name in found if not name.endswith(ends)}


def found_in(model, *args, names=None, **options):
    """What one pass shows."""
    with capture(model, names) as found:
        model(*args, **options)
    return found


def assert_same(found, expected):
    """The same names, in the same order, with the same bits."""
    assert list(found) == list(expected)
    for name in expected:
        assert torch.equal(found[name], expected[name]), name


def double(tensor):
    """An edit that nobody overlooks."""
    return 2 * tensor


class Stop(BaseException):
    """Not an `Exception`, as Ctrl-C is not."""


def stop(*_):
    raise Stop


def reached(number, action, file="gpt2lib"):
    """Run `action` with `Stop` before that line of `file`; say if it came so far."""
    passed, tracer = 0, sys.gettrace()

    def line(frame, event, _):
        nonlocal passed
        passed += event == "line"
        if event == "line" and passed == number:
            raise Stop
        return line

    sys.settrace(lambda frame, *_: line if file in frame.f_code.co_filename else None)
    try:
        action()
    except Stop:
        pass
    finally:
        sys.settrace(tracer)
    return passed >= number


# ---- the weights of attention


@given(st.data())
@few
def test_attention_weights_are_those_that_attention_uses(data):
    lead = data.draw(st.lists(st.integers(1, 3), max_size=2))
    S, D = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 5))
    T = data.draw(st.integers(1, S))
    window = data.draw(st.none() | st.integers(1, 11))
    torch.manual_seed(data.draw(st.integers(0, 99)))
    q, k, v = 3 * torch.randn(3, *lead, S, D, dtype=torch.float64)
    q = q[..., S - T :, :]
    weights = attention_weights(q, k, window=window)
    assert weights.shape == (*lead, T, S)
    assert_close(weights @ v, causal_attention(q, k, v, window=window), 1e-12)
    assert_close(weights.sum(-1), torch.ones(*lead, T).double(), 1e-14)
    for row, t in itertools.product(range(T), range(S)):
        at = S - T + row
        seen = at - (S if window is None else window) < t <= at
        assert (
            (weights[..., row, t] > 0).all() if seen else not weights[..., row, t].any()
        )


def test_attention_weights_without_a_window_are_those_of_the_formula():
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 3, 5, 4)
    assert torch.equal(attention_weights(q, k), explicit_attention(q, k, v)[1])


@pytest.mark.parametrize("window", [0, -1])
def test_a_window_below_1_is_refused_as_attention_refuses_it(window):
    q = torch.ones(3, 2)
    for function in (attention_weights, lambda *a, **b: causal_attention(*a, q, **b)):
        with pytest.raises(ValueError, match=rf"window must .* 1, got {window}"):
            function(q, q, window=window)


@pytest.mark.parametrize(("T", "S", "D"), [(3, 2, 4), (3, 3, 5)])
def test_queries_without_their_keys_are_refused(T, S, D):
    with pytest.raises(ValueError, match="k must hold the 3 positions") as caught:
        attention_weights(torch.ones(1, T, 4), torch.ones(1, S, D))
    for word in ("(1, 3, 4)", f"(1, {S}, {D})", "4 features"):
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("dtype", "autocast"),
    [(torch.float16, False), (torch.bfloat16, False), (torch.bfloat16, True)],
)
def test_weights_in_half_precision_are_rounded_once(dtype, autocast):
    """As in the kernels: scores of a few bits would make weights that are far off."""
    torch.manual_seed(0)
    q, k = (3 * torch.randn(2, 1, 2, 40, 64)).to(dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        weights = attention_weights(q, k).double()
    exact = attention_weights(q.double(), k.double())
    assert (
        (weights - exact).abs() <= 0.51 * torch.finfo(dtype).eps * exact + 1e-6
    ).all()


def test_large_scores_in_half_precision_are_still_weights():
    q = torch.full((1, 2, 64), 200.0, dtype=torch.float16)  # a score is 320,000
    assert attention_weights(q, q).tolist() == [[[1.0, 0.0], [0.5, 0.5]]]


# ---- what is found, against the weights of the model


def by_hand(attention, x):
    """What `attention` makes of a text `(B, T, C)`, in float64, row by row."""
    w = {name: value.double() for name, value in attention.state_dict().items()}
    (B, T, C), H = x.shape, attention.n_head
    qkv = x.double() @ w["qkv.weight"].T + w["qkv.bias"]
    q, k, v = (t.reshape(B, T, H, C // H).transpose(1, 2) for t in qkv.chunk(3, -1))
    if attention.rotary is not None:
        q, k = (rotate(t, torch.arange(T)) for t in (q, k))
    weights = weights_by_hand(q, k, attention.window or T)
    heads = weights @ v
    output = heads.transpose(1, 2).flatten(2) @ w["proj.weight"].T + w["proj.bias"]
    return {"q": q, "k": k, "v": v, "weights": weights, "heads": heads, "": output}


def weights_by_hand(q, k, window):
    """Weights `(B, H, T, T)`, each row from the keys that it sees and no others."""
    weights = q.new_zeros(*q.shape[:-1], q.size(-2))
    for i in range(q.size(-2)):
        seen = slice(max(0, i + 1 - window), i + 1)
        scores = (q[..., i : i + 1, :] * k[..., seen, :]).sum(-1) / q.size(-1) ** 0.5
        weights[..., i, seen] = scores.exp() / scores.exp().sum(-1, keepdim=True)
    return weights


def check_attentions(model, tokens, chunks=None):
    """Every attention of `model`, which reads in `chunks` with a cache, or at once."""
    T, cache = tokens.size(1), None
    if chunks is not None:
        cache = KVCache(model.config, len(tokens), dtype=torch.float64)
    pieces = tokens.split(chunks or [T], dim=1)
    passes = [found_in(model, piece, cache=cache) for piece in pieces]
    for n, block in enumerate(model.transformer.blocks):
        name = f"transformer.blocks.{n}"
        x = torch.cat([found[f"{name}.norm1"] for found in passes], dim=1)
        whole, start = by_hand(block.attention, x), 0
        for found, piece in zip(passes, pieces, strict=True):
            end = start + piece.size(1)
            for part in PARTS:
                expected = whole[part][:, :, start:end]
                assert_close(found[f"{name}.attention.{part}"], expected, 1e-12)
            assert_close(found[f"{name}.attention"], whole[""][:, start:end], 1e-12)
            oldest = 0 if cache is None else start + 1 - model.config.block_size
            expected = whole["weights"][:, :, start:end, max(0, oldest) : end]
            assert_close(found[f"{name}.attention.weights"], expected, 1e-12)
            start = end


@given(st.data())
@few
def test_attention_is_found_as_computed_by_hand(data):
    position = data.draw(st.sampled_from(POSITIONS))
    n_head, pairs = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
    sizes = (data.draw(st.integers(1, 3)), n_head, 2 * n_head * pairs, 13)
    window, seed = data.draw(st.integers(1, 6)), data.draw(st.integers(0, 99))
    model = random_model(position, (*sizes, window), seed=seed).double()
    tokens = text_for(model, data.draw(st.integers(1, 3)), seed)
    ends = st.sets(st.integers(1, max(1, tokens.size(1) - 1)))
    cuts = sorted({0, *data.draw(ends), tokens.size(1)})
    chunks = [b - a for a, b in itertools.pairwise(cuts)]
    check_attentions(model, tokens, data.draw(st.sampled_from([None, chunks])))


@pytest.mark.parametrize("size", [None, 1, 2, 5])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_is_found_by_hand_in_pieces_of_any_size(position, shape, size):
    """With rotary positions the cache rolls several times."""
    model = random_model(position, SHAPES[shape]).double()
    tokens = text_for(model, 3)
    check_attentions(model, tokens, size and [len(t[0]) for t in tokens.split(size, 1)])


def test_the_logits_found_are_those_of_the_plain_implementation(position):
    model = random_model(position).double()
    tokens = text_for(model)
    logits = found_in(model, tokens)["lm_head"]
    assert_close(logits, plain_logits(model, tokens), 1e-11)


# ---- however a model is run


def read_in(size):
    """A way to run a model: pieces of `size`, with a cache of its precision."""

    def run(model, tokens):
        dtype = model.transformer.norm.weight.dtype
        if torch.is_autocast_enabled("cpu"):
            dtype = torch.get_autocast_dtype("cpu")
        cache = KVCache(model.config, len(tokens), dtype=dtype)
        pieces = tokens.split(size, dim=1)
        return torch.cat([model(piece, cache=cache) for piece in pieces], dim=1)

    return run


def within(mode, run):
    """`run`, inside of the context that `mode()` makes."""

    def inside(model, tokens):
        with mode():
            return run(model, tokens)

    return inside


def autocast():
    return torch.autocast("cpu", torch.bfloat16)


def at_once(model, tokens):
    return model(tokens)


KINDS = {
    "float32": lambda model: model,
    "float64": lambda model: model.double(),
    "bfloat16": lambda model: model.bfloat16(),
    "int8": quantize_int8,
    "training": lambda model: model.train(),
}
RUNS = {
    "at once": at_once,
    "last only": lambda model, tokens: model(tokens, last_only=True),
    "without gradients": within(torch.no_grad, at_once),
    "inference": within(torch.inference_mode, at_once),
    "in pieces": read_in(3),
    "token by token": within(torch.inference_mode, read_in(1)),
    "autocast": within(autocast, at_once),
    "autocast, in pieces": within(autocast, read_in(2)),
}
WAYS = [
    pytest.param(kind, RUNS[run], id=f"{kind}, {run}")
    for kind, run in itertools.product(KINDS, RUNS)
    if kind == "float32" or run in ("at once", "in pieces")
]
TOLERANCES = {torch.float64: 1e-14, torch.float32: 2e-6, torch.bfloat16: 0.02}


def made(kind, position):
    dropout = 0.3 if kind == "training" else 0.0
    return KINDS[kind](random_model(position, dropout=dropout))


def seeded(run, model, tokens):
    """What the run returns, and where it leaves the random numbers."""
    torch.manual_seed(0)
    return run(model, tokens), torch.get_rng_state()


@pytest.mark.parametrize(("kind", "run"), WAYS)
def test_looking_changes_no_bit_and_draws_no_number(position, kind, run):
    model = made(kind, position)
    tokens = text_for(model)
    expected, state = seeded(run, model, tokens)
    with capture(model) as found:
        logits, state_after = seeded(run, model, tokens)
    assert torch.equal(logits, expected)
    assert torch.equal(state_after, state)
    last = found["lm_head"]
    assert torch.equal(logits[:, -last.size(1) :], last)
    assert logits.requires_grad == expected.requires_grad
    assert not any(tensor.requires_grad for tensor in found.values())
    again, _ = seeded(run, model, tokens)
    assert torch.equal(again, expected)


@pytest.mark.parametrize(("kind", "run"), WAYS)
def test_edits_that_change_nothing_change_no_bit(position, kind, run):
    """Of all names at once, and of each alone."""
    model = made(kind, position)
    tokens, names = text_for(model), editable(model)
    expected, _ = seeded(run, model, tokens)
    for same in (lambda t: t, lambda t: None, torch.clone):
        with edit(model, dict.fromkeys(names, same)):
            assert torch.equal(seeded(run, model, tokens)[0], expected)
    for name in names if kind == "float32" and run is at_once else ():
        with edit(model, {name: lambda t: t}):
            assert torch.equal(seeded(run, model, tokens)[0], expected), name


@pytest.mark.parametrize("watch", [capture, lambda m: edit(m, {"*.?": torch.clone})])
@pytest.mark.parametrize("kind", ["float32", "float64", "training"])
def test_loss_and_gradients_are_the_same_to_the_bit(position, kind, watch):
    model = made(kind, position)
    tokens = text_for(model)

    def learn():
        model.zero_grad()
        torch.manual_seed(0)
        loss = next_token_loss(model(tokens), tokens)
        loss.backward()
        return [loss.detach(), *(p.grad.clone() for p in model.parameters())]

    expected = learn()
    with watch(model):
        watched = learn()
    assert all(map(torch.equal, watched, expected))


@pytest.fixture
def multiplied(monkeypatch):
    """Every call of the kernel: the q, k, v that it is given, and what it returns."""
    calls = []

    def spy(q, k, v, **options):
        out = causal_attention(q, k, v, **options)
        calls.append([t.detach().clone() for t in (q, k, v, out)])
        return out

    for module in (gpt2lib.attention, gpt2lib.kv_cache):
        monkeypatch.setattr(module, "causal_attention", spy)
    return calls


@pytest.mark.parametrize(("kind", "run"), WAYS)
def test_found_is_what_the_kernel_multiplies(position, kind, run, multiplied):
    model = made(kind, position)
    with capture(model) as found:
        run(model, text_for(model))
    for n, (q, k, v, out) in enumerate(multiplied[-2:]):
        T, attention = q.size(2), f"transformer.blocks.{n}.attention"
        now = {"q": q, "k": k[:, :, -T:], "v": v[:, :, -T:], "heads": out}
        for part, expected in now.items():
            assert torch.equal(found[f"{attention}.{part}"], expected), part
        weights = found[f"{attention}.weights"]
        if kind == "training":  # where some of the weights are dropped
            assert weights.shape == (*q.shape[:3], k.size(2))
        else:
            read = weights.double() @ v.double()
            assert_close(out.double(), read, TOLERANCES[weights.dtype])


@pytest.mark.parametrize(("kind", "run"), WAYS)
def test_edited_parts_are_what_the_kernel_multiplies(position, kind, run, multiplied):
    """In the first block, where the edit of one part does not change the others."""
    model = made(kind, position)
    tokens = text_for(model)
    seeded(run, model, tokens)
    plain, factors = multiplied[:], {"q": 2, "k": 3, "v": -4}
    for place, (part, by) in enumerate(factors.items()):
        multiplied.clear()
        with (
            edit(model, {f"{ATTENTION}.{part}": lambda t, by=by: t * by}),
            capture(model, f"{ATTENTION}.{part}") as found,
        ):
            seeded(run, model, tokens)
        for expected, got in zip(plain[::2], multiplied[::2], strict=True):
            for i in range(3):
                same = expected[i] * by if i == place else expected[i]
                assert torch.equal(got[i], same), (part, i)
        T = found[f"{ATTENTION}.{part}"].size(2)
        assert torch.equal(found[f"{ATTENTION}.{part}"], got[place][:, :, -T:])


@pytest.mark.parametrize(("kind", "run"), WAYS)
def test_the_residual_stream_adds_up_to_the_bit(position, kind, run):
    model = made(kind, position)
    with capture(model) as found:
        run(model, text_for(model))
    stream = found["dropout"]
    for n in range(2):
        block = f"transformer.blocks.{n}"
        assert torch.equal(found[f"{block}.resid_pre"], stream)
        stream = stream + found[f"{block}.attention"]
        assert torch.equal(found[f"{block}.resid_mid"], stream)
        stream = stream + found[f"{block}.feedforward"]
        assert torch.equal(found[f"{block}.resid_post"], stream)
        assert torch.equal(found[block], stream)
    assert torch.equal(found["transformer"], found["transformer.norm"])


def test_what_inference_shows_is_of_use_in_training(position):
    """`generate` runs in inference mode, whose tensors autograd refuses."""
    model = random_model(position)
    with capture(model) as found:
        generate(model, text_for(model), 2)
    scale = torch.ones(8, requires_grad=True)
    (found["transformer.norm"] * scale).sum().backward()
    assert_close(scale.grad, found["transformer.norm"].sum((0, 1)))


# ---- parts of the model, and other models


def test_a_part_alone_shows_what_it_shows_within_the_model(position):
    model = random_model(position)
    whole = found_in(model, text_for(model))
    inputs = {
        "transformer": (GPT2Model, "dropout"),
        "transformer.blocks.1": (TransformerBlock, "transformer.blocks.0"),
        "transformer.blocks.1.attention": (
            MultiHeadSelfAttention,
            "transformer.blocks.1.norm1",
        ),
    }
    for name, (kind, before) in inputs.items():
        part, prefix = model.get_submodule(name), f"{name}."
        assert type(part) is kind
        found = found_in(part, whole[before])
        inside = {n: t for n, t in whole.items() if n.startswith(prefix)}
        assert_same(found, {n.removeprefix(prefix): t for n, t in inside.items()})
        assert not hooks_on(model)


def test_a_part_alone_is_edited_and_reads_from_a_cache(position):
    model = random_model(position).double()
    part, x = model.transformer.blocks[1].attention, torch.randn(2, 6, 8).double()
    cache = KVCache(model.config, 2, dtype=torch.float64)
    layer, expected = cache.layers[1], by_hand(part, x)
    for start, end in itertools.pairwise([0, 2, 3, 6]):
        found = found_in(part, x[:, start:end], cache=layer)
        cache.length = end
        assert_close(found["heads"], expected["heads"][:, :, start:end], 1e-12)
        oldest = max(0, start + 1 - model.config.block_size)
        rows = expected["weights"][:, :, start:end, oldest:end]
        assert_close(found["weights"], rows, 1e-12)
    with edit(part, {"heads": torch.zero_}):
        assert torch.equal(part(x), part.proj.bias.expand(2, 6, 8))


def test_inputs_may_be_given_by_name(position):
    """A module that is called with `x=...` is one that works without hooks."""
    model, x = random_model(position), torch.randn(2, 3, 8)
    for part in (model.transformer.blocks[0], model.transformer.blocks[0].attention):
        expected = found_in(part, x)
        assert_same(found_in(part, x=x), expected)
        with edit(part, dict.fromkeys(editable(part, x), double)):
            edited = part(x)
            assert torch.equal(part(x=x), edited)


def test_parts_of_an_attention_may_be_called_alone(position):
    """As someone does who asks what one head writes, while the model is watched."""
    model, x = random_model(position), torch.randn(2, 3, 8)
    attention = model.get_submodule(ATTENTION)
    with capture(model), edit(model, {f"{ATTENTION}.q": torch.clone}):
        for part in (attention.qkv, attention.proj):
            assert torch.equal(part(x), part.forward(x))


def test_a_model_that_works_in_place_is_shown_as_it_was():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 2))
    x = torch.randn(5, 3)
    linear = x @ model[0].weight.T + model[0].bias
    assert (linear < 0).any()
    found = found_in(model, x)
    assert list(found) == ["0", "1", "2"]
    assert_close(found["0"], linear.detach())
    assert_close(found["1"], linear.detach().relu())
    assert torch.equal(found["2"], model(x))
    with edit(model, {"0": torch.neg}):
        assert_close(model(x).detach(), model[2]((-linear).relu()).detach())


def test_a_patch_is_not_changed_by_a_model_that_works_in_place():
    """It is often something that was found, and is looked at again."""
    model, patch = nn.Sequential(nn.Identity(), nn.ReLU(inplace=True)), -torch.ones(3)
    with edit(model, {"0": lambda _: patch}):
        assert torch.equal(model(torch.ones(3)), torch.zeros(3))
    assert torch.equal(patch, -torch.ones(3))


class Odd(nn.Module):
    """A foreign model: outputs that are no tensors, shared, repeated, unused parts."""

    def __init__(self):
        super().__init__()
        self.recurrent = nn.LSTM(3, 3, batch_first=True)
        self.unused = nn.Linear(3, 3)
        self.twice = self.alias = nn.Linear(3, 3)
        self.named = nn.ModuleDict({"layer[0]": nn.Linear(3, 3)})

    def forward(self, x):
        x, _ = self.recurrent(x)
        return self.named["layer[0]"](input=self.alias(self.twice(x)))


def test_a_foreign_model_is_shown_where_it_has_tensors():
    torch.manual_seed(0)
    model, x = Odd(), torch.randn(2, 4, 3)
    found = found_in(model, x)
    assert list(found) == ["twice", "named.layer[0]"]
    hidden, _ = model.recurrent(x)
    assert torch.equal(found["twice"], model.twice(model.twice(hidden)))
    assert torch.equal(found["named.layer[0]"], model(x))
    with edit(model, {"twice": torch.zero_}):
        assert torch.equal(model(x)[0, 0], model.named["layer[0]"].bias)


def test_an_output_that_is_no_tensor_cannot_be_edited():
    model = Odd()
    with (
        edit(model, {"recurrent": double}),
        pytest.raises(TypeError, match=r"recurrent is a tuple, not a tensor"),
    ):
        model(torch.ones(1, 2, 3))
    assert not hooks_on(model)


# ---- names


def test_the_names_of_an_attention_and_of_a_block(position):
    block = random_model(position).transformer.blocks[0]
    inside = {"q", "k", "v", "weights", "heads", "qkv", "proj", "proj_dropout"}
    if position == "rotary":
        inside.add("rotary")
    assert set(activation_names(block.attention)) == inside
    layers = {f"feedforward.{part}" for part in ("expand", "gelu", "proj", "dropout")}
    stream = {"resid_pre", "resid_mid", "resid_post"}
    own = {"norm1", "attention", "norm2", "feedforward"} | layers | stream
    assert set(activation_names(block)) == own | {f"attention.{n}" for n in inside}


def test_every_name_that_is_listed_is_found(position):
    """What stands for nothing, such as a list of modules, is not to be listed."""
    model = random_model(position)
    names = activation_names(model)
    assert len(set(names)) == len(names)
    assert set(names) == set(found_in(model, text_for(model)))


def test_each_name_alone_gives_what_it_gives_among_all(position):
    model = random_model(position)
    tokens = text_for(model)
    for name, tensor in found_in(model, tokens).items():
        assert_same(found_in(model, tokens, names=name), {name: tensor})


def test_a_name_is_a_name_before_it_is_a_pattern():
    model = Odd()
    (name,) = (name for name in activation_names(model) if "[" in name)
    assert list(found_in(model, torch.ones(1, 2, 3), names=name)) == [name]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (f"{ATTENTION}.q", ["q"]),
        (f"{ATTENTION}.*s", ["weights", "heads"]),
        ([f"{ATTENTION}.heads", f"{ATTENTION}.k"], ["k", "heads"]),
        ((f"{ATTENTION}.k", "*.0.*.k", "*.k"), ["k"]),
        ({f"{ATTENTION}.v"}, ["v"]),
        ((f"{ATTENTION}.{part}" for part in "vq"), ["q", "v"]),
        ([], []),
    ],
)
def test_names_are_given_one_by_one_or_as_patterns(names, expected):
    model = random_model("learned", TINY)
    found = found_in(model, text_for(model), names=names)
    assert list(found) == [f"{ATTENTION}.{part}" for part in expected]


def test_found_keeps_the_order_of_the_last_pass():
    model = nn.ModuleDict({name: nn.Linear(2, 2) for name in "abc"})
    with capture(model) as found:
        for order in ("abc", "cab", "b"):
            for name in order:
                model[name](torch.ones(2))
        assert list(found) == ["c", "a", "b"]


@pytest.mark.parametrize(
    "watch", [capture, lambda model, name: edit(model, {name: double})]
)
@pytest.mark.parametrize("name", ["", "nothing", "attention", "*.0.atention.*", "T*"])
def test_an_unknown_name_is_refused_with_a_hint(watch, name):
    model = random_model("learned", TINY)
    with (
        pytest.raises(ValueError, match="activation_names") as caught,
        watch(model, name),
    ):
        pytest.fail("was entered")
    assert repr(name) in str(caught.value)
    assert any(known in str(caught.value) for known in activation_names(model))
    assert not hooks_on(model)


@pytest.mark.parametrize("names", [3, [None], ["*.q", 3], True])
def test_names_that_are_no_strings_are_refused(names):
    with (
        pytest.raises(TypeError, match="name") as caught,
        capture(random_model("learned", TINY), names),
    ):
        pytest.fail("was entered")
    assert repr(names if isinstance(names, int) else names[-1]) in str(caught.value)


@pytest.mark.parametrize(
    ("functions", "words"),
    [
        (["*.q"], ["functions", "['*.q']"]),
        ("*.q", ["functions", "'*.q'"]),
        (None, ["functions", "None"]),
        ({3: double}, ["name", "3"]),
        ({"*.q": None}, ["*.q", "function", "None"]),
        ({"*.q": 0.5}, ["*.q", "function", "0.5"]),
    ],
)
def test_edits_that_are_no_functions_by_name_are_refused(functions, words):
    model = random_model("learned", TINY)
    with pytest.raises(TypeError) as caught, edit(model, functions):
        pytest.fail("was entered")
    for word in words:
        assert word in str(caught.value)
    assert not hooks_on(model)


# ---- no hook stays behind


def interrupted_in_the_model(model):
    model.transformer.norm.register_forward_hook(stop)
    model(text_for(model))


def read_bad_tokens(model):
    model(torch.full((1, 2), 99))


def edit_with_a_fault(model):
    with edit(model, {f"{ATTENTION}.k": lambda t: t.undefined}):
        model(text_for(model))


def edit_and_interrupt(model):
    def interrupt(_):
        raise KeyboardInterrupt

    with edit(model, {f"{ATTENTION}.heads": interrupt}):
        model(text_for(model))


def exit_early(model):
    raise SystemExit(1)


def enter_a_second_with_a_bad_name(model):
    with capture(model), capture(model, ["*.q", "nothing"]):
        pytest.fail("was entered")


def edit_what_is_to_be_looked_at(model):
    with edit(model, {"*.q": double, "*.weights": double}):
        pytest.fail("was entered")


@pytest.mark.parametrize(
    "watch",
    [
        capture,
        lambda model: capture(model, "*.weights"),
        lambda model: edit(model, dict.fromkeys(editable(model), torch.clone)),
    ],
    ids=["capture", "capture weights", "edit"],
)
@pytest.mark.parametrize(
    ("end", "error"),
    [
        (lambda model: None, None),
        (lambda model: model(text_for(model)), None),
        (lambda model: 1 / 0, ZeroDivisionError),
        (read_bad_tokens, ValueError),
        (edit_with_a_fault, AttributeError),
        (edit_and_interrupt, KeyboardInterrupt),
        (exit_early, SystemExit),
        (enter_a_second_with_a_bad_name, ValueError),
        (edit_what_is_to_be_looked_at, ValueError),
    ],
)
def test_hooks_are_gone_however_the_block_ends(position, watch, end, error):
    model = random_model(position)
    tokens = text_for(model)
    expected = model(tokens)
    with pytest.raises(error) if error else ExitStack(), watch(model):
        assert hooks_on(model)
        end(model)
    assert not hooks_on(model)
    assert torch.equal(model(tokens), expected)


def test_hooks_are_gone_when_a_generator_is_closed_early():
    model = random_model("rotary", TINY)

    def watched():
        with capture(model), edit(model, {"*.q": double}):
            yield from generate_stream(model, text_for(model), 5)

    for end in (lambda g: g.close(), lambda g: g.throw(KeyboardInterrupt()), list):
        stream = watched()
        next(stream)
        assert hooks_on(model)
        with suppress(KeyboardInterrupt):
            end(stream)
        assert not hooks_on(model)
    stream = watched()
    next(stream)
    del stream  # without a word
    assert not hooks_on(model)


def test_hooks_of_others_stay():
    model = random_model("learned", TINY)
    seen = []
    attention = model.get_submodule(ATTENTION)
    for module in (attention, attention.qkv, attention.proj):
        module.register_forward_hook(lambda *_: seen.append("after"))
        module.register_forward_pre_hook(lambda *_: seen.append("before"))
    theirs = hooks_on(model)
    with capture(model), edit(model, {f"{ATTENTION}.q": double}):
        pass
    assert hooks_on(model) == theirs
    model(text_for(model))
    assert sorted(seen) == ["after"] * 3 + ["before"] * 3


def test_entering_may_break_off_at_any_line(position):
    """As Ctrl-C may come anywhere, also between two hooks that belong together."""
    model = random_model(position, TINY)
    behind, number, more = [], 0, True

    def enter():
        with capture(model, [f"{ATTENTION}*", "*.resid_mid"]):
            sys.settrace(None)

    while more:
        number += 1
        more = reached(number, enter, "hooks.py")
        if hooks_on(model):
            behind.append(number)
            for module in model.modules():
                module._forward_hooks.clear()
                module._forward_pre_hooks.clear()
                module._forward_pre_hooks_with_kwargs.clear()
    assert number > 50
    assert not behind, f"hooks stay behind if it breaks off before lines {behind}"


@pytest.mark.parametrize("lacking", ["qkv", "proj"])
@pytest.mark.parametrize("watch", [capture, lambda m: edit(m, {"*.q": double})])
def test_an_attention_built_otherwise_leaves_no_hook(watch, lacking):
    """Someone's subclass without our parts can fail to be hooked, but not halfway."""
    model = random_model("rotary", TINY)
    delattr(model.get_submodule(ATTENTION), lacking)
    with pytest.raises(AttributeError, match=lacking), watch(model):
        pytest.fail("was entered")
    assert not hooks_on(model)


def test_a_context_serves_once_and_leaves_no_hook_if_used_again():
    model = random_model("learned", TINY)
    for context in (capture(model), edit(model, {"*.q": double})):
        with context, pytest.raises((AttributeError, RuntimeError)), context:
            pytest.fail("was entered")
        with pytest.raises((AttributeError, RuntimeError)), context:
            pytest.fail("was entered")
        assert not hooks_on(model)


# ---- passes that break off


def test_a_pass_that_breaks_off_leaves_nothing_to_the_next(position):
    model = random_model(position, TINY)
    tokens, wrong = text_for(model), text_for(model, 1, seed=1)
    expected = found_in(model, tokens)
    with capture(model) as found:
        for module in model.get_submodule(ATTENTION).modules():
            handle = module.register_forward_hook(stop)
            with pytest.raises(Stop):
                model(wrong, cache=KVCache(model.config))
            handle.remove()
            model(tokens)
            assert_same(found, expected)


def test_a_pass_may_break_off_at_any_line_of_its_hooks(position):
    model = random_model(position, TINY)
    tokens, wrong = text_for(model), text_for(model, 1, seed=1)
    edits = {f"{ATTENTION}.{part}": double for part in PARTS}
    with edit(model, edits), capture(model, f"{ATTENTION}.*") as found:
        logits, expected, number = model(tokens), dict(found), 1
        while reached(number, lambda: model(wrong), "hooks.py"):
            assert torch.equal(model(tokens), logits), f"after line {number}"
            assert_same(found, expected)
            number += 1
    assert number > 50
    assert not hooks_on(model)


def test_a_cache_refused_in_attention_leaves_nothing(position):
    model = random_model(position).double()
    tokens = text_for(model)
    expected = found_in(model, tokens)
    with capture(model) as found:
        with pytest.raises(ValueError, match="float32"):
            model(tokens, cache=KVCache(model.config, 2))
        model(tokens)
    assert_same(found, expected)


# ---- within one another


def test_captures_within_one_another_see_the_same(position):
    model = random_model(position)
    tokens = text_for(model)
    expected = found_in(model, tokens)
    with capture(model) as outer:
        with capture(model, "*.weights") as inner:
            model(tokens)
        model(tokens.flip(1))
    assert_same(outer, found_in(model, tokens.flip(1)))
    assert_same(inner, {n: t for n, t in expected.items() if n.endswith("weights")})


def test_contexts_may_end_in_any_order():
    model = random_model("learned", TINY)
    tokens = text_for(model)
    for order in itertools.permutations(range(3)):
        contexts = [
            capture(model),
            edit(model, {f"{ATTENTION}.v": double}),
            capture(model, "*.weights"),
        ]
        found, _, weights = (context.__enter__() for context in contexts)
        ended = set()
        for i in order:
            contexts[i].__exit__(None, None, None)
            ended.add(i)
            found.clear()
            weights.clear()
            model(tokens)
            assert (len(found) > 0, len(weights)) == (0 not in ended, 2 not in ended)
        assert not hooks_on(model)


def test_a_capture_within_an_edit_sees_every_edit(position):
    model = random_model(position)
    tokens = text_for(model)
    plain = editable(model)
    for name in plain:
        with edit(model, {name: double}), capture(model, name) as found:
            model(tokens)
        expected = double(plain[name])
        if name.endswith("rotary"):  # called for q, then for k: of two the last
            expected = double(plain[f"{name.removesuffix('rotary')}k"])
        assert torch.equal(found[name], expected), name


def test_an_edit_within_a_capture_is_seen_downstream_only(position):
    model = random_model(position)
    tokens = text_for(model)
    plain = found_in(model, tokens)
    for part in PARTS:
        with capture(model) as found, edit(model, {f"{ATTENTION}.{part}": double}):
            logits = model(tokens)
        upstream = list(plain)[: list(plain).index(f"{ATTENTION}.{part}") + 1]
        for name in upstream:
            assert torch.equal(found[name], plain[name]), name
        assert not torch.equal(found[f"{ATTENTION}.proj"], plain[f"{ATTENTION}.proj"])
        assert torch.equal(found["lm_head"], logits)


@pytest.mark.parametrize("part", PARTS)
def test_a_cache_does_not_change_what_is_seen_of_an_edit(position, part):
    """Whichever context is opened first."""
    model = random_model(position)
    tokens = text_for(model)
    for order in (1, -1):
        passes = []
        for cache in (None, KVCache(model.config, 2)):
            look, change = capture(model), edit(model, {f"{ATTENTION}.{part}": double})
            with ExitStack() as stack:
                entered = [stack.enter_context(c) for c in (look, change)[::order]]
                model(tokens, cache=cache)
            passes.append(entered[::order][0])
        assert list(passes[0]) == list(passes[1])
        for name, tensor in passes[0].items():
            assert_close(passes[1][name], tensor)


def test_of_two_edits_the_first_acts_first(position):
    model = random_model(position)
    tokens = text_for(model)
    plain = found_in(model, tokens)
    for name in (f"{ATTENTION}.{part}" for part in PARTS):
        with (
            edit(model, {name: lambda t: t + 1}),
            edit(model, {name: double}),
            capture(model, name) as found,
        ):
            model(tokens)
        assert torch.equal(found[name], 2 * (plain[name] + 1))


def test_edits_of_one_attention_act_together(position):
    """The output of qkv, then its parts, then what each head has gathered."""
    model = random_model(position).double()
    attention, x = model.get_submodule(ATTENTION), torch.randn(2, 5, 8).double()
    shifts = {"q": 1.0, "k": 0.5, "v": -2.0, "heads": 3.0}
    functions = {n: (lambda t, by=by: t + by) for n, by in shifts.items()}
    with edit(attention, functions | {"qkv": double}), capture(attention) as found:
        out = attention(x)
    with torch.no_grad():
        twice = copy.deepcopy(attention)
        twice.qkv.weight.mul_(2)
        twice.qkv.bias.mul_(2)
    plain = by_hand(twice, x)
    q, k, v = (plain[part] + shifts[part] for part in "qkv")
    weights = weights_by_hand(q, k, attention.window or 5)
    heads = weights @ v + 3
    made = {"q": q, "k": k, "v": v, "weights": weights, "heads": heads}
    for part, expected in made.items():
        assert_close(found[part], expected, 1e-12)
    output = attention.proj(heads.transpose(1, 2).flatten(2))
    assert_close(out.detach(), output.detach(), 1e-12)


# ---- memory, copies, threads


@pytest.mark.parametrize("position", ["learned", "rotary"])
def test_a_thousand_captures_leave_nothing_behind(position):
    model = random_model(position, TINY)
    tokens = text_for(model, 1)

    def look(n):
        cache = KVCache(model.config)
        names = f"{ATTENTION}.*" if n % 10 else None
        with (
            torch.no_grad(),
            capture(model, names),
            edit(model, {"*.q": torch.clone, "*.resid_pre": torch.clone}),
        ):
            if n % 7 == 0:
                with pytest.raises(ValueError, match="tokens"):
                    model(tokens * 99 + 99)
            model(tokens, cache=cache if n % 2 else None)

    def balance():
        gc.collect()
        return held(), tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        for n in range(20):
            look(n)
        before, bytes_before = balance()
        for n in range(1000):
            look(n)
        after, bytes_after = balance()
    finally:
        tracemalloc.stop()
    assert after == before
    assert bytes_after - bytes_before < 100_000
    assert not hooks_on(model)


@pytest.mark.parametrize("names", [None, "*.weights"])
def test_only_what_is_found_is_held_and_freed_at_once(position, names):
    model = random_model(position)
    tokens = text_for(model)
    gc.collect()
    gc.disable()
    try:
        _, before = held()
        with torch.no_grad(), capture(model, names) as found:
            model(tokens)
            assert held()[1] == before + len(found)
            model(tokens)
            assert held()[1] == before + len(found)
        some = weakref.ref(next(iter(found.values())))
        del found
        assert some() is None
        assert held()[1] == before
    finally:
        gc.enable()


def test_what_is_found_is_nobody_elses():
    """A copy without spare bytes, not a view of what the model goes on with."""
    model = random_model("rotary")
    tokens = text_for(model)
    cache = KVCache(model.config, 2)
    expected = model(tokens)
    with capture(model) as found, torch.no_grad():
        model(tokens[:, :4], cache=cache)
        for tensor in found.values():
            assert tensor.untyped_storage().nbytes() == tensor.numel() * 4
            tensor.fill_(math.nan)
        assert_close(model(tokens[:, 4:], cache=cache), expected[:, 4:])
    pointers = [tensor.untyped_storage().data_ptr() for tensor in found.values()]
    assert len(set(pointers)) == len(pointers)


@pytest.mark.parametrize("copied", [copy.deepcopy, quantize_int8])
def test_a_copy_made_in_a_capture_is_not_watched(position, copied):
    model = random_model(position)
    tokens = text_for(model)
    expected = copied(model)(tokens)
    with capture(model) as found:
        other = copied(model)
    found.clear()
    assert torch.equal(other(tokens), expected)
    assert not found


@pytest.mark.parametrize("copied", [copy.deepcopy, quantize_int8])
def test_a_copy_made_in_an_edit_is_not_edited_for_ever(position, copied):
    model = random_model(position)
    tokens = text_for(model)
    expected = copied(model)(tokens)
    with edit(model, {"*.heads": double, "*.resid_pre": double}):
        other = copied(model)
    assert torch.equal(other(tokens), expected)


def test_a_model_can_be_saved_within_a_capture_and_pickled_after_it(tmp_path):
    model = random_model("rotary")
    tokens = text_for(model)
    expected = model(tokens)
    with capture(model), edit(model, {"*.q": double}):
        model.save_pretrained(tmp_path)
        state = copy.deepcopy(model.state_dict())
    file = io.BytesIO(pickle.dumps(model))
    for again in (
        GPT2LMHeadModel.from_pretrained(tmp_path),
        pickle.load(file),
        copy.deepcopy(model),
    ):
        assert torch.equal(again(tokens), expected)
        assert not hooks_on(again)
        again.load_state_dict(state)


@pytest.mark.parametrize("use_cache", [True, False])
def test_generating_while_watched_writes_the_same(position, use_cache):
    model = random_model(position)
    tokens = random_tokens(model, 2, 3)

    def write():
        generator = torch.Generator().manual_seed(0)
        return generate(model, tokens, 9, use_cache=use_cache, generator=generator)

    expected = write()
    with capture(model) as found, edit(model, {"*.q": torch.clone}):
        assert torch.equal(write(), expected)
    read = expected[:, :-1]
    if position == "learned":
        read = read[:, -model.config.block_size :]
    whole = found_in(model, read)
    for name, tensor in found.items():
        if not name.endswith(("weights", "embedding")):
            rows = tensor.size(-2)
            assert_close(tensor, whole[name][..., -rows:, :], 2e-5)


def test_an_edit_directs_what_is_generated(position):
    """Logits that point at one token, whatever was read."""
    model = random_model(position)

    def point(logits):
        logits[..., 5] = 99

    with edit(model, {"lm_head": point}):
        text = generate(model, random_tokens(model, 2, 3), 6)
    assert (text[:, 3:] == 5).all()


def test_threads_with_models_of_their_own_do_not_touch(position):
    models = [random_model(position, seed=seed) for seed in range(4)]
    texts = [text_for(model, seed=n) for n, model in enumerate(models)]
    expected = list(map(found_in, models, texts))

    def look(n):
        return [found_in(models[n], texts[n]) for _ in range(10)]

    with ThreadPoolExecutor(4) as pool:
        for n, passes in enumerate(pool.map(look, range(4))):
            for found in passes:
                assert_same(found, expected[n])


def test_a_thread_may_run_a_model_that_another_watches(position):
    """Its pass begins, another comes and goes, and it ends as it would have."""
    model = random_model(position, TINY)
    tokens = text_for(model)
    expected = model(tokens)
    begun, go_on = threading.Event(), threading.Event()

    def pause(*_):
        if threading.current_thread() is not threading.main_thread():
            begun.set()
            go_on.wait(10)

    with capture(model), edit(model, {f"{ATTENTION}.k": torch.clone}):
        model.get_submodule(f"{ATTENTION}.qkv").register_forward_hook(pause)
        with ThreadPoolExecutor(1) as pool:
            other = pool.submit(model, tokens)
            assert begun.wait(10)
            logits = model(tokens)
            go_on.set()
    assert torch.equal(logits, expected)
    assert torch.equal(other.result(), expected)


# ---- edits


@pytest.mark.parametrize("h", [0, 3])
def test_a_head_set_to_zero_is_a_head_that_is_not_read(position, h):
    model = random_model(position).double()
    tokens, D = text_for(model), model.config.head_dim
    deaf = copy.deepcopy(model)
    with torch.no_grad():
        deaf.get_submodule(ATTENTION).proj.weight[:, h * D : (h + 1) * D] = 0

    def silence(heads):
        heads[:, h] = 0

    with edit(model, {f"{ATTENTION}.heads": silence}):
        assert_close(model(tokens), deaf(tokens), 1e-12)
    assert (model(tokens) - deaf(tokens)).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("part", "rows"), [("q", 0), ("k", 1), ("v", 2)], ids=["q", "k", "v"]
)
def test_a_scaled_part_is_a_part_with_scaled_weights(position, part, rows):
    """Turning does not change lengths, so it commutes with rotary positions too."""
    model = random_model(position).double()
    tokens, C = text_for(model), model.config.n_embd
    scaled = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in scaled.get_submodule(ATTENTION).qkv.parameters():
            parameter[rows * C : (rows + 1) * C] *= -1.5
    with edit(model, {f"{ATTENTION}.{part}": lambda t: t.mul_(-1.5)}):
        assert_close(model(tokens), scaled(tokens), 1e-12)
    assert (model(tokens) - scaled(tokens)).abs().max() > 1e-3


def test_an_edit_on_entry_is_another_input(position):
    model, x = random_model(position).transformer, torch.randn(2, 3, 8)
    with edit(model, {"blocks.0.resid_pre": lambda t: t - 1}):
        edited = model(x)
    assert torch.equal(edited, model(x - 1))
    with edit(model, {"blocks.1.resid_post": lambda t: t - 1}):
        edited = model(x)
    before = found_in(model, x, names="blocks.1.resid_post")["blocks.1.resid_post"]
    assert torch.equal(edited, model.norm(before - 1))


def test_a_patched_stream_makes_the_other_text(position):
    """From the block where the whole stream is exchanged, all is of the other text."""
    model = random_model(position)
    texts = [text_for(model, seed=seed) for seed in (1, 2)]
    other = found_in(model, texts[1])
    for n in range(2):
        for name in ("resid_pre", "resid_post"):
            name = f"transformer.blocks.{n}.{name}"
            with edit(model, {name: lambda _, new=other[name]: new}):
                assert torch.equal(model(texts[0]), other["lm_head"])


@pytest.mark.parametrize("t", [1, 5])
def test_a_patch_at_one_position_reaches_no_earlier_one(position, t):
    model = random_model(position)
    tokens = text_for(model)
    another = (tokens + 1) % model.config.vocab_size  # at every position
    plain, other = model(tokens), found_in(model, another)
    for name in editable(model):
        if name == "position_embedding":  # the same for every text
            continue

        def patch(tensor, new=other[name]):
            tensor[..., t, :] = new[..., t, :]

        with edit(model, {name: patch}):
            patched = model(tokens)
        assert torch.equal(patched[:, :t], plain[:, :t]), name
        assert not torch.equal(patched, plain), name


def test_in_place_or_returned_is_the_same_edit(position):
    model = random_model(position)
    tokens = text_for(model)

    def in_place(tensor):
        tensor[..., 1:, :] *= -3

    def returned(tensor):
        return torch.cat([tensor[..., :1, :], tensor[..., 1:, :] * -3], dim=-2)

    def both(tensor):
        new = returned(tensor)
        tensor.fill_(math.nan)  # its own copy: of no consequence
        return new

    for name in editable(model):
        results = []
        for function in (in_place, returned, both):
            with edit(model, {name: function}):
                results.append(model(tokens))
        assert torch.equal(results[0], results[1]), name
        assert torch.equal(results[1], results[2]), name


def test_an_edit_in_place_leaves_what_it_was_given(position):
    """Not even the input of the model changes, which may be a leaf of autograd."""
    model = random_model(position).transformer
    x = torch.randn(2, 3, 8, requires_grad=True)
    kept = x.detach().clone()
    with edit(model, {"blocks.0.resid_pre": torch.Tensor.zero_}):
        edited = model(x)
    assert torch.equal(x, kept)
    assert torch.equal(edited, model(torch.zeros(2, 3, 8)))


def test_an_edit_may_return_a_view(position):
    """A mean over heads, say, spread over all of them again."""
    model = random_model(position)
    tokens = text_for(model)
    for part in PARTS:
        name = f"{ATTENTION}.{part}"
        results = []
        for finish in (torch.clone, lambda t: t):

            def spread(tensor, finish=finish):
                return finish(tensor.mean(1, keepdim=True).expand_as(tensor))

            with edit(model, {name: spread}):
                results.append(model(tokens).detach())
        assert_close(*results)


def test_what_is_edited_is_what_a_cache_keeps(position):
    """An edit of the first chunk acts on the next ones, as without a cache."""
    model = random_model(position).double()
    tokens = text_for(model)
    shape, first = (model.config, 2), 4
    plain = model(tokens)

    def at_first(tensor):
        tensor[..., :first, :] *= -1.5

    for name in editable(model):
        cache = KVCache(*shape, dtype=torch.float64)
        with edit(model, {name: lambda t: t * -1.5}):
            start = model(tokens[:, :first], cache=cache)
        pieces = tokens[:, first:].split(1, dim=1)
        rest = [model(piece, cache=cache) for piece in pieces]
        with edit(model, {name: at_first}):
            expected = model(tokens)
        logits = torch.cat([start, *rest], dim=1).detach()
        assert_close(logits, expected.detach(), 1e-11)
        reaches = name.split(".")[-1] in ("k", "v", "resid_pre", "qkv", "norm1")
        changed = (expected - plain).abs()[:, first:].max() > 1e-6
        assert changed or not reaches, name


def test_gradients_flow_through_an_edit(position):
    """Of what is added, checked by small differences; and of the weights before it."""
    model = random_model(position, TINY).double()
    tokens = text_for(model, 1)
    for name, tensor in editable(model).items():

        def logits(shift, name=name):
            with edit(model, {name: lambda t: t + shift}):
                return model(tokens)[:, -1].tanh()

        shift = torch.zeros(tensor.size(-1)).double().requires_grad_()
        assert torch.autograd.gradcheck(logits, shift), name
        model.zero_grad()
        logits(shift).sum().backward()
        grads = [p.grad for p in model.parameters()]
        assert all(grad is not None for grad in grads), name


def test_an_edit_may_cut_the_gradient(position):
    model = random_model(position, TINY)
    tokens = text_for(model)
    with edit(model, {f"{ATTENTION}.heads": torch.detach}):
        model(tokens).sum().backward()
    attention = model.get_submodule(ATTENTION)
    assert attention.qkv.weight.grad is None
    assert attention.proj.weight.grad.abs().max() > 0


@pytest.mark.parametrize("part", [*PARTS, "qkv", "proj"])
@pytest.mark.parametrize(
    ("function", "error", "words"),
    [
        (lambda t: t[..., :1], ValueError, ["shape", "1])"]),
        (lambda t: t[:1], ValueError, ["shape", "[1, "]),
        (lambda t: t.mean(), ValueError, ["shape", "[]"]),
        (torch.Tensor.double, ValueError, ["dtype", "float32", "float64"]),
        (torch.Tensor.bool, ValueError, ["dtype", "float32", "bool"]),
        (lambda t: t.to("meta"), ValueError, ["device", "cpu", "meta"]),
        (torch.Tensor.tolist, TypeError, ["tensor", "list"]),
        (torch.Tensor.numpy, TypeError, ["tensor", "ndarray"]),
        (lambda t: 0.0, TypeError, ["tensor", "float"]),
        (lambda t: (t,), TypeError, ["tensor", "tuple"]),
    ],
)
def test_an_edit_must_return_its_like(part, function, error, words):
    model = random_model("learned", TINY)
    tokens = text_for(model)
    expected = model(tokens)
    with (
        torch.no_grad(),
        pytest.raises(error, match=rf"^{ATTENTION}.{part}: ") as caught,
        edit(model, {f"{ATTENTION}.{part}": function}),
    ):
        model(tokens)
    for word in words:
        assert word in str(caught.value)
    assert torch.equal(model(tokens), expected)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        (f"{ATTENTION}.weights", "q, k or heads"),
        ("transformer.blocks.0.resid_mid", "resid_pre or the output of attention"),
        ("*.weights", "q, k or heads"),
        ("*", "resid_pre|heads"),
    ],
)
def test_what_can_only_be_looked_at_says_what_to_edit_instead(name, hint):
    model = random_model("learned", TINY)
    with (
        pytest.raises(ValueError, match=rf"^transformer\S* cannot be .*({hint})"),
        edit(model, {name: double}),
    ):
        pytest.fail("was entered")
    assert not hooks_on(model)


@pytest.mark.parametrize("second", ["*.q", "*.attention.?", "transformer.*.*.*.q"])
def test_a_name_given_twice_is_refused(second):
    model = random_model("learned", TINY)
    with (
        pytest.raises(ValueError, match="twice") as caught,
        edit(model, {f"{ATTENTION}.q": double, second: torch.neg}),
    ):
        pytest.fail("was entered")
    assert f"{ATTENTION}.q" in str(caught.value)
    assert repr(second) in str(caught.value)
    assert not hooks_on(model)


def test_functions_are_called_once_for_each_pass_with_the_plain_tensor(position):
    model = random_model(position)
    tokens = text_for(model)
    for name, plain in editable(model).items():
        given_ = []
        with edit(model, {name: given_.append}):
            model(tokens)
            model(tokens)
        calls = 4 if name.endswith("rotary") else 2  # for q and for k
        assert len(given_) == calls, name
        assert torch.equal(given_[-1], plain), name


# ---- first_divergence


def logits_of(tokens):
    """A way to run: what `first_divergence` is given."""
    return lambda model: model(tokens)


@pytest.mark.parametrize("kind", ["float32", "float64", "bfloat16", "int8"])
def test_equal_models_do_not_part(position, kind):
    model = made(kind, position)
    run = logits_of(text_for(model))
    assert first_divergence(model, model, run, tolerance=0.0) is None
    assert first_divergence(model, made(kind, position), run, tolerance=0.0) is None
    assert not hooks_on(model)


class Masked(nn.Module):
    """A foreign part whose output holds what is not seen, as scores often do."""

    def forward(self, x):
        return x.masked_fill(x < 0, -math.inf)


def test_models_that_are_infinite_alike_do_not_part():
    model, x = nn.Sequential(Masked(), nn.Softmax(-1)), torch.tensor([[1.0, -1.0, 2.0]])
    assert first_divergence(model, model, logits_of(x)) is None


def test_models_that_return_nothing_alike_do_not_part():
    model = nn.Sequential(nn.Linear(2, 3))
    assert first_divergence(model, model, logits_of(torch.ones(0, 2))) is None


def test_each_weight_is_named_where_it_acts(position):
    reference = random_model(position)
    run = logits_of(text_for(reference))
    for name, _ in reference.named_parameters():
        suspect = copy.deepcopy(reference)
        with torch.no_grad():
            suspect.get_parameter(name).mul_(1.01).add_(0.01)
        apart = first_divergence(reference, suspect, run)
        assert apart.name == name.rpartition(".")[0]
        assert apart.size > 1e-4


def test_a_head_that_is_not_tied_is_named(position):
    reference = random_model(position)
    suspect = copy.deepcopy(reference)
    suspect.lm_head.weight = nn.Parameter(suspect.lm_head.weight.roll(1, 0))
    apart = first_divergence(reference, suspect, logits_of(text_for(reference)))
    assert apart.name == "lm_head"


def swapped(attention):
    """q and k in the wrong order: the scores are transposed."""
    with torch.no_grad():
        for parameter in attention.qkv.parameters():
            q, k, v = parameter.chunk(3)
            parameter.copy_(torch.cat([k, q, v]))


def unmasked(attention):
    """A forward pass that lets everything see the future."""

    def forward(x, *, cache=None):
        qkv = attention.qkv(x).unflatten(-1, (3, attention.n_head, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        return attention.proj_dropout(attention.proj(y.transpose(1, 2).flatten(2)))

    attention.forward = forward


def other_base(attention):
    attention.rotary.base = 100.0


def narrower_window(attention):
    attention.window -= 1


@pytest.mark.parametrize(
    ("position", "spoil", "name", "positions"),
    [
        ("learned", swapped, "qkv", range(6)),
        ("learned", unmasked, "heads", range(5)),  # the last sees all anyway
        ("rotary", other_base, "q", range(1, 13)),  # position 0 is not turned
        ("rotary", narrower_window, "weights", range(5, 13)),
    ],
)
def test_a_mistake_in_attention_is_named(position, spoil, name, positions):
    sizes = (2, 2, 8, 11, 6)
    reference, suspect = (random_model(position, sizes) for _ in range(2))
    spoil(suspect.transformer.blocks[1].attention)
    apart = first_divergence(reference, suspect, logits_of(text_for(reference)))
    assert apart.name == f"transformer.blocks.1.attention.{name}"
    assert apart.positions == tuple(positions)


def test_the_size_is_relative_to_the_largest_number():
    reference, suspect = (nn.Sequential(nn.Identity()) for _ in range(2))
    a = torch.tensor([[[1.0, -8.0], [2.0, 4.0], [0.0, 0.0]]]).double()
    b = a + torch.tensor([[[0.0, 0.0], [0.5, 0.0], [0.0, -2.0]]])

    def run(model):
        model(a if model is reference else b)

    apart = first_divergence(reference, suspect, run)
    assert apart == Divergence("0", 0.25, (1, 2))
    assert first_divergence(reference, suspect, run, tolerance=0.1).positions == (2,)
    assert first_divergence(reference, suspect, run, tolerance=0.25) is None


@given(
    shape=st.lists(st.integers(1, 4), max_size=4),
    value=st.sampled_from([1.0, -3.0, math.nan, math.inf, -math.inf]),
    data=st.data(),
)
@few
def test_positions_are_those_along_T_in_any_shape(shape, value, data):
    """(..., T, features); a vector or a number has no T."""
    places = [data.draw(st.integers(0, size - 1)) for size in shape]
    reference, suspect = (nn.Sequential(nn.Identity()) for _ in range(2))
    same = torch.full(shape, 2.0)
    other = same.clone()
    other[tuple(places)] = value
    apart = first_divergence(
        reference, suspect, lambda model: model(same if model is reference else other)
    )
    assert apart.name == "0"
    assert apart.positions == ((places[-2],) if len(shape) >= 2 else ())
    if math.isnan(value):
        assert math.isnan(apart.size)
    else:
        assert apart.size == abs(value - 2.0) / 2.0


def test_a_token_that_parts_is_named_by_its_positions(position):
    reference = random_model(position)
    suspect, tokens = (
        copy.deepcopy(reference),
        torch.tensor([[3, 1, 4, 1], [5, 3, 2, 6]]),
    )
    with torch.no_grad():
        suspect.token_embedding.weight[1] += 1
    apart = first_divergence(reference, suspect, logits_of(tokens))
    assert (apart.name, apart.positions) == ("token_embedding", (1, 3))
    if position == "learned":
        suspect = copy.deepcopy(reference)
        with torch.no_grad():
            suspect.position_embedding.weight[2] += 1
        apart = first_divergence(reference, suspect, logits_of(tokens))
        assert (apart.name, apart.positions) == ("position_embedding", (2,))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_numbers_are_named(position, value):
    reference = random_model(position)
    suspect = copy.deepcopy(reference)
    with torch.no_grad():
        suspect.get_submodule(ATTENTION).proj.bias[3] = value
    run = logits_of(text_for(reference))
    apart = first_divergence(reference, suspect, run)
    assert apart.name == f"{ATTENTION}.proj"
    assert not apart.size < math.inf
    assert first_divergence(suspect, reference, run).name == f"{ATTENTION}.proj"


def test_other_shapes_are_infinitely_far_apart(position):
    """The same weights, cut into other heads."""
    reference, suspect = (random_model(position, (2, h, 8, 11, 6)) for h in (2, 4))
    suspect.load_state_dict(reference.state_dict())
    apart = first_divergence(reference, suspect, logits_of(text_for(reference)))
    part = "q" if position == "learned" else "v"  # what is made first
    assert apart == Divergence(f"{ATTENTION}.{part}", math.inf, ())


def test_what_only_one_has_is_left_out():
    """A model of more blocks parts where the other has ended."""
    reference, suspect = (random_model("learned", (n, 2, 8, 11, 6)) for n in (2, 3))
    suspect.load_state_dict(reference.state_dict(), strict=False)
    for pair in ((reference, suspect), (suspect, reference)):
        apart = first_divergence(*pair, logits_of(text_for(reference)))
        assert apart.name == "transformer.norm"


def test_the_order_is_that_of_the_reference():
    torch.manual_seed(0)
    models = [nn.ModuleDict({name: nn.Linear(2, 2) for name in "ab"}) for _ in "12"]
    orders = dict(zip(models, ("ba", "ab"), strict=True))

    def run(model):
        for name in orders[model]:
            model[name](torch.ones(1, 2))

    assert first_divergence(*models, run).name == "b"
    assert first_divergence(*models[::-1], run).name == "a"


def test_of_several_passes_the_last_is_compared(position):
    reference = random_model(position).double()
    tokens, other = text_for(reference), text_for(reference, seed=5)
    suspect = copy.deepcopy(reference)

    def run(model):
        model(other if model is suspect else tokens)
        read_in(2)(model, tokens)

    assert first_divergence(reference, suspect, run, tolerance=0.0) is None


def test_another_precision_is_told_by_the_tolerance():
    reference = random_model("rotary")
    suspect, run = copy.deepcopy(reference).bfloat16(), logits_of(text_for(reference))
    assert first_divergence(reference, suspect, run).name == "token_embedding"
    assert first_divergence(reference, suspect, run, tolerance=0.1) is None
    exact = copy.deepcopy(reference).double()
    assert first_divergence(reference, exact, run) is None


def test_models_without_a_common_name_are_refused():
    first, second = (nn.ModuleDict({name: nn.Linear(2, 2)}) for name in "ab")
    with pytest.raises(ValueError, match="share no activation"):
        first_divergence(first, second, lambda model: None)
    with pytest.raises(ValueError, match="share no activation"):
        first_divergence(
            first, second, lambda model: next(model.children())(torch.ones(2))
        )


@pytest.mark.parametrize("tolerance", [-1e-4, math.nan, "0.1", None])
def test_a_tolerance_that_is_none_is_refused(tolerance):
    """One that is not a number would let any two models agree."""
    model = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises((ValueError, TypeError), match="tolerance") as caught:
        first_divergence(model, model, logits_of(torch.ones(1, 2)), tolerance=tolerance)
    assert repr(tolerance) in str(caught.value)


@pytest.mark.parametrize("broken", [0, 1])
def test_a_run_that_fails_leaves_no_hook(broken):
    models = [random_model("learned", TINY) for _ in range(2)]

    def run(model):
        model(text_for(model))
        if model is models[broken]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        first_divergence(*models, run)
    assert not any(map(hooks_on, models))
