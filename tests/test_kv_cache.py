"""A cache changes nothing but the time: same logits, however a text is read."""

import copy
import gc
import random
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import (
    POSITIONS,
    SHAPES,
    assert_close,
    by_policy,
    compositions,
    held,
    in_chunks,
    plain_logits,
    random_model,
    random_tokens,
)

from gpt2lib.attention import causal_attention, explicit_attention
from gpt2lib.config import GPT2Config
from gpt2lib.kv_cache import KVCache

few = settings(deadline=None, derandomize=True, max_examples=25)


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


@pytest.fixture(params=POSITIONS)
def position(request):
    return request.param


def steps_of(model, tokens):
    """How far `tokens` can be read at once: to the window, or to the end."""
    if model.config.position == "learned":
        return tokens[:, : model.config.block_size]
    return tokens


# ---- without a cache: the model itself, band and all


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_equal_the_plain_implementation(position, shape):
    model = random_model(position, SHAPES[shape])
    tokens = steps_of(model, random_tokens(model, 2, 3 * model.config.block_size))
    expected = plain_logits(model, tokens)
    assert_close(model(tokens).double(), expected)
    assert_close(model.double()(tokens), expected, 1e-11)


def test_causal_attention_is_a_band():
    """The last T of S positions, each reading at most `window`, by the formula."""
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 3, 6, 4, dtype=torch.float64)
    for window in (*range(1, 8), None):
        rows = []
        for i in range(6):
            seen = slice(0 if window is None else max(0, i + 1 - window), i + 1)
            parts = (q[..., seen, :], k[..., seen, :], v[..., seen, :])
            rows.append(explicit_attention(*parts)[0][..., -1, :])
        band = torch.stack(rows, dim=-2)
        for T in range(1, 7):
            out = causal_attention(q[..., -T:, :], k, v, window=window)
            assert_close(out, band[..., -T:, :], 1e-13)
    with pytest.raises(ValueError, match=r"k must hold the 6 positions of q, got 5"):
        causal_attention(q, k[..., 1:, :], v[..., 1:, :])


@pytest.mark.parametrize("n_layer", [1, 2, 3])
def test_a_cropped_rotary_text_is_another_text_beyond_one_layer(n_layer):
    """Why a rolling cache is right and reading the last window again is not.

    With one layer the last position reads the same window either way, and only
    distances count. With two it reads states that had read further back.
    """
    model = random_model("rotary", (n_layer, 2, 8, 11, 4)).double()
    tokens = random_tokens(model, 3, 12)
    rolled = model(tokens)[:, -1]
    cropped = model(tokens[:, -4:])[:, -1]
    if n_layer == 1:
        assert_close(cropped, rolled, 1e-11)
    else:
        assert (cropped - rolled).abs().max() > 0.01 * rolled.abs().max()
    reach = n_layer * 3 + 1  # each layer reaches 3 positions further back
    assert_close(model(tokens[:, -reach:])[:, -1], rolled, 1e-11)


# ---- with a cache: equal logits


@pytest.mark.parametrize("B", [1, 3])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_way_to_cut_a_short_text(position, shape, B):
    """Shorter texts are beginnings of these."""
    model = random_model(position, SHAPES[shape])
    tokens = steps_of(model, random_tokens(model, B, 6))
    expected = model(tokens)
    for chunks in compositions(tokens.size(1)):
        cache = KVCache(model.config, B)
        assert_close(in_chunks(model, tokens, chunks, cache), expected)
        assert cache.length == tokens.size(1)


@given(st.data())
@few
def test_random_chunks_of_longer_texts(data):
    position = data.draw(st.sampled_from(POSITIONS))
    n_head, pairs = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 3))
    window = data.draw(st.integers(1, 12))
    sizes = (data.draw(st.integers(1, 3)), n_head, 2 * n_head * pairs, 13, window)
    seed, B = data.draw(st.integers(0, 99)), data.draw(st.integers(1, 4))
    model = random_model(position, sizes, seed=seed)
    tokens = steps_of(model, random_tokens(model, B, 3 * window + 5, seed))
    expected, cache, read = model(tokens), KVCache(model.config, B), 0
    while read < tokens.size(1):
        chunk = data.draw(st.integers(1, tokens.size(1) - read))
        last_only = data.draw(st.booleans())
        new = tokens[:, read : read + chunk]
        logits = model(new, cache=cache, last_only=last_only)
        right = expected[:, read : read + chunk]
        assert_close(logits, right[:, -1:] if last_only else right)
        read += chunk
        assert cache.length == read


@pytest.mark.parametrize("shape", SHAPES)
def test_every_step_to_three_times_the_window(position, shape):
    """After prompts of several lengths, one token at a time.

    Past the window a learned cache is spent: a new one reads the last window again.
    """
    model, B = random_model(position, SHAPES[shape]), 1 + len(shape) % 4
    window = model.config.block_size
    tokens = random_tokens(model, B, 3 * window)
    for prompt in {1, window // 2 + 1, window, 2 * window + 1}:
        cache = KVCache(model.config, B)
        for end in range(prompt, 3 * window + 1):
            text = tokens[:, :end]
            if position == "learned" and end > window:
                cache.reset()
                text = text[:, -window:]
            logits = model(text[:, cache.length :], cache=cache)[:, -1]
            assert_close(logits, by_policy(model, tokens[:, :end]))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_rolling_cache_equals_the_plain_implementation(shape):
    model = random_model("rotary", SHAPES[shape]).double()
    window = model.config.block_size
    tokens = random_tokens(model, 2, 4 * window)
    expected = plain_logits(model, tokens)
    for chunks in ([1] * 4 * window, [3 * window, *[1] * window], [window] * 4):
        cache = KVCache(model.config, 2, dtype=torch.float64)
        assert_close(in_chunks(model, tokens, chunks, cache), expected, 1e-11)


def test_a_long_rolling_cache_keeps_its_precision():
    """Far from the start only distances count, so the same band gives the same."""
    model = random_model("rotary", (2, 2, 16, 11, 4))
    tokens = random_tokens(model, 1, 20_000)
    cache = KVCache(model.config)
    for piece in tokens[:, :-8].split(500, dim=1):
        model(piece, cache=cache, last_only=True)
    for piece in tokens[:, -8:].split(1, dim=1):
        logits = model(piece, cache=cache)
    assert cache.length == 20_000
    assert_close(logits[:, -1], model(tokens[:, -16:])[:, -1])


def test_texts_of_a_batch_do_not_touch(position):
    model = random_model(position)
    tokens = steps_of(model, random_tokens(model, 4, 18))
    cache = KVCache(model.config, 4)
    logits = in_chunks(model, tokens, [2, *[1] * (tokens.size(1) - 2)], cache)
    for b in range(4):
        assert_close(logits[b : b + 1], model(tokens[b : b + 1]))


def test_two_caches_of_one_model_do_not_touch(position):
    model = random_model(position)
    texts = [random_tokens(model, 1, 6, seed) for seed in (1, 2)]
    caches = [KVCache(model.config) for _ in texts]
    for i in range(6):
        for text, cache in zip(texts, caches, strict=True):
            logits = model(text[:, i : i + 1], cache=cache)
            assert_close(logits[:, -1], model(text[:, : i + 1])[:, -1])


def test_a_copied_cache_goes_its_own_way(position):
    """As beam search would need it."""
    model = random_model(position)
    tokens = random_tokens(model, 1, 6)
    cache = KVCache(model.config)
    model(tokens[:, :3], cache=cache)
    other = copy.deepcopy(cache)
    model(tokens[:, :3].flip(1), cache=other)
    assert (cache.length, other.length) == (3, 6)
    assert_close(model(tokens[:, 3:], cache=cache), model(tokens)[:, 3:])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions(position, dtype):
    model = random_model(position).to(dtype)
    tokens = steps_of(model, random_tokens(model, 2, 14))
    cache = KVCache(model.config, 2, dtype=dtype)
    logits = in_chunks(model, tokens, [1] * tokens.size(1), cache)
    assert logits.dtype == dtype
    tolerance = 1e-11 if dtype == torch.float64 else 0.05
    assert_close(logits.double(), model(tokens).double(), tolerance)


def test_parts_of_the_model_take_the_cache_too(position):
    model = random_model(position)
    x = torch.randn(2, 6, model.config.n_embd)
    body, cache = model.transformer, KVCache(model.config, 2)
    out = torch.cat([body(x[:, :4], cache=cache), body(x[:, 4:], cache=cache)], dim=1)
    assert_close(out, body(x))
    assert cache.length == 6
    for part in (body.blocks[1], body.blocks[1].attention):
        cache.reset()
        layer, pieces = cache.layers[1], []
        for piece in x.split([1, 3, 2], dim=1):
            pieces.append(part(piece, cache=layer))
            cache.length += piece.size(1)
        assert_close(torch.cat(pieces, dim=1), part(x))


def test_a_cache_holds_no_graph(position):
    model = random_model(position)
    tokens = random_tokens(model, 1, 6)
    cache, x = KVCache(model.config), torch.randn(1, 3, 8)
    with torch.enable_grad():
        for start in (0, 3):
            x.grad, x.requires_grad = None, True
            y = model.transformer(x, cache=cache)
            assert y.requires_grad
            (y**2).sum().backward()  # the first graph is gone, and nobody misses it
            assert cache.length == start + 3
    cache.reset()
    with torch.enable_grad():
        model(tokens[:, :3], cache=cache)
        logits = model(tokens[:, 3:], cache=cache)
    assert_close(logits.detach(), model(tokens)[:, 3:])


@pytest.mark.parametrize("other", ["grad", "no_grad", "inference_mode"])
@pytest.mark.parametrize("mode", ["no_grad", "inference_mode"])
def test_one_cache_across_modes_of_autograd(position, mode, other):
    modes = {
        "grad": torch.enable_grad,
        "no_grad": torch.no_grad,
        "inference_mode": torch.inference_mode,
    }
    model = random_model(position)
    tokens = steps_of(model, random_tokens(model, 1, 18))
    for filled in range(1, tokens.size(1)):
        with modes[mode]():
            cache = KVCache(model.config)
            for piece in tokens[:, :filled].split(1, dim=1):
                model(piece, cache=cache)
        with modes[other]():
            logits = model(tokens[:, filled:], cache=cache)
        assert_close(logits.detach(), model(tokens)[:, filled:])


# ---- reset


def test_reset_gives_a_cache_like_new(position):
    model = random_model(position)
    tokens = steps_of(model, random_tokens(model, 2, 18))
    cache, rng = KVCache(model.config, 2), random.Random(0)
    for _ in range(20):
        n = rng.randint(1, tokens.size(1))
        cut = rng.randint(1, n)
        chunks = [cut, n - cut] if cut < n else [n]
        text = tokens[:, :n]
        fresh = in_chunks(model, text, chunks, KVCache(model.config, 2))
        assert torch.equal(in_chunks(model, text, chunks, cache), fresh)
        cache.reset()
        assert cache.length == 0


# ---- broken off


class Stop(BaseException):
    """Not an `Exception`, as Ctrl-C is not."""


def break_off(module):
    """Make the next call of `module` end before its result is used."""

    def stop(*_):
        handle.remove()
        raise Stop

    handle = module.register_forward_hook(stop)


PARTS = [
    *["token_embedding", "dropout", "transformer", "lm_head", "transformer.norm"],
    *[
        f"transformer.blocks.{n}{part}"
        for n in range(3)
        for part in ("", ".attention", ".attention.qkv", ".norm2", ".feedforward")
    ],
]


@pytest.mark.parametrize("chunks", [[1] * 12, [4, 5, 1, 2], [12], [5, 7]], ids=str)
def test_a_pass_that_breaks_off_anywhere_leaves_no_trace(position, chunks):
    """Each pass is broken off in every part, then repeated, and all is as before."""
    model = random_model(position, (3, 2, 8, 11, 12 if position == "learned" else 4))
    tokens = random_tokens(model, 2, 12)
    expected, cache, read = model(tokens), KVCache(model.config, 2), 0
    for chunk in chunks:
        new = tokens[:, read : read + chunk]
        counted = []
        for name in PARTS:
            break_off(model.get_submodule(name))
            with pytest.raises(Stop):
                model(new, cache=cache)
            if cache.length != read:
                counted.append(name)
                cache.length = read
        assert not counted, f"counted tokens whose logits nobody got: in {counted}"
        assert_close(model(new, cache=cache), expected[:, read : read + chunk])
        read += chunk


def stop_at_line(number):
    """Raise `Stop` before that line of the library, counted from now; return counts."""
    passed = [0]

    def line(frame, event, _):
        if event == "line":
            passed[0] += 1
            if passed[0] == number:
                raise Stop
        return line

    def call(frame, *_):
        return line if "gpt2lib" in frame.f_code.co_filename else None

    sys.settrace(call)
    return passed


def test_a_pass_may_break_off_at_any_line(position):
    """As Ctrl-C may come anywhere: also between two things that belong together."""
    model = random_model(position, (2, 1, 4, 5, 6 if position == "learned" else 2))
    tokens = random_tokens(model, 1, 6)
    expected, full = model(tokens)[:, 4:], KVCache(model.config)
    model(tokens[:, :4], cache=full)
    tracer, number = sys.gettrace(), 0
    while True:
        number += 1
        cache = copy.deepcopy(full)
        passed = stop_at_line(number)
        try:
            model(tokens[:, 4:], cache=cache)
        except Stop:
            pass
        finally:
            sys.settrace(tracer)
        if passed[0] < number:
            break  # it came to its end
        assert cache.length == 4, f"after line {number}"
        assert_close(model(tokens[:, 4:], cache=cache), expected)
    assert number > 50


def test_another_text_may_follow_one_that_broke_off():
    """What a broken pass wrote past the end of the cache is never read."""
    model = random_model("rotary", (3, 2, 8, 11, 4))
    tokens, rng = random_tokens(model, 1, 60), random.Random(0)
    cache, text = KVCache(model.config), tokens[:, :0]
    for _ in range(40):
        wrong = random_tokens(model, 1, rng.randint(1, 12), seed=rng.randrange(999))
        break_off(model.get_submodule(f"transformer.blocks.{rng.randrange(3)}"))
        with pytest.raises(Stop):
            model(wrong, cache=cache)
        assert cache.length == text.size(1)
        right = random_tokens(model, 1, rng.randint(1, 6), seed=rng.randrange(999))
        text = torch.cat([text, right], dim=1)
        logits = model(right, cache=cache)
        assert_close(logits[:, -1], model(text)[:, -1])
        if rng.random() < 0.1:
            cache.reset()
            text = text[:, :0]


# ---- bad caches


@pytest.mark.parametrize("batch_size", [0, -1, 2.0, True, "2", None])
def test_batch_size(batch_size):
    with pytest.raises(ValueError, match="batch_size") as caught:
        KVCache(GPT2Config(n_layer=1, n_head=1, n_embd=2), batch_size)
    assert repr(batch_size) in str(caught.value)


BASE = {"n_layer": 2, "n_head": 2, "n_embd": 8, "block_size": 4}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n_layer", 1),
        ("n_layer", 3),
        ("n_head", 1),
        ("n_head", 4),
        ("n_embd", 16),
        ("block_size", 3),
        ("block_size", 8),
        ("position", None),
    ],
)
def test_a_cache_of_another_configuration(position, field, value):
    model = random_model(position, (2, 2, 8, 11, 4))
    value = value or ("rotary" if position == "learned" else "learned")
    config = GPT2Config(**BASE | {"position": position} | {field: value})
    cache = KVCache(config)
    with pytest.raises(ValueError, match=f"cache .*{field}") as caught:
        model(torch.tensor([[1, 2]]), cache=cache)
    for theirs in (value, getattr(model.config, field)):
        assert repr(theirs) in str(caught.value)
    assert cache.length == 0


@pytest.mark.parametrize(
    ("cache", "words"),
    [
        ({"batch_size": 1}, ["B = 1", "(2, "]),
        ({"batch_size": 3}, ["B = 3", "(2, "]),
        ({"dtype": torch.bfloat16}, ["bfloat16", "float32", "dtype"]),
        ({"dtype": torch.float64}, ["float64", "float32", "dtype"]),
        ({"device": "meta"}, ["meta", "cpu", "device"]),
    ],
)
@pytest.mark.parametrize("T", [1, 3])
def test_a_cache_of_another_batch_dtype_or_device(position, cache, words, T):
    model = random_model(position)
    cache = KVCache(model.config, **{"batch_size": 2} | cache)
    with pytest.raises(ValueError, match="cache") as caught:
        model(random_tokens(model, 2, T), cache=cache)
    for word in words:
        assert word in str(caught.value)
    assert cache.length == 0


def test_a_refused_batch_leaves_the_text_as_it_was(position):
    model = random_model(position)
    tokens = random_tokens(model, 2, 6)
    cache = KVCache(model.config, 2)
    model(tokens[:, :2], cache=cache)
    refused = [
        tokens[:1, :1],
        tokens[:, :0],
        tokens[:, 2:] * 100,
        tokens[:, 2:].float(),
        tokens[:, 2],
        tokens.tolist(),
    ]
    for wrong in refused:
        with pytest.raises((ValueError, TypeError)):
            model(wrong, cache=cache)
        assert cache.length == 2
    assert_close(model(tokens[:, 2:], cache=cache), model(tokens)[:, 2:])


def test_learned_positions_end_with_the_window():
    model = random_model("learned", (2, 2, 8, 11, 4))
    tokens = random_tokens(model, 1, 8)
    cache = KVCache(model.config)
    for read, new in [(0, 5), (3, 2), (3, 9), (4, 1)]:
        if read > cache.length:
            model(tokens[:, cache.length : read], cache=cache)
        for part in (model, model.transformer):
            given_ = tokens[:, :1].expand(1, new)
            x = given_ if part is model else torch.randn(1, new, 8)
            with pytest.raises(ValueError, match="block_size") as caught:
                part(x, cache=cache)
            assert "4" in str(caught.value)
            if read:
                assert "reset()" in str(caught.value)
            assert cache.length == read
    cache.reset()
    assert_close(model(tokens[:, 4:], cache=cache), model(tokens[:, 4:]))


def test_the_body_refuses_a_cache_of_other_layers():
    model = random_model("learned", (2, 2, 8, 11, 4))
    for n_layer in (1, 3):
        cache = KVCache(GPT2Config(**BASE | {"n_layer": n_layer}))
        with pytest.raises(ValueError, match=f"2 layers, got {n_layer}"):
            model.transformer(torch.ones(1, 2, 8), cache=cache)
        assert cache.length == 0


# ---- memory


def test_a_cache_is_allocated_at_once_and_does_not_grow(position):
    model = random_model(position, (2, 2, 8, 11, 16))
    tokens, rng = random_tokens(model, 3, 64), random.Random(0)
    gc.collect()
    before, _ = held()
    cache = KVCache(model.config, 3)
    start = held()[0] - before
    slots = 16 if position == "learned" else 32
    assert start == 2 * 2 * 3 * 8 * slots * 4  # keys, values; layers; B; C; float32
    for i in range(120):
        n = rng.randint(1, 16)
        if position == "learned" and cache.length + n > 16:
            cache.reset()
        model(tokens[:, :n], cache=cache)
        if i % 60 == 59:
            assert held()[0] - before == start


def test_a_long_chunk_is_forgotten_again():
    model = random_model("rotary", (2, 2, 8, 11, 4))
    tokens = random_tokens(model, 1, 500)
    gc.collect()
    before, _ = held()
    cache = KVCache(model.config)
    start = held()[0] - before
    model(tokens, cache=cache)
    for piece in tokens[:, :9].split(1, dim=1):
        model(piece, cache=cache)
    assert held()[0] - before == start


def test_a_cache_is_freed_as_soon_as_nobody_holds_it(position):
    """Not when Python next looks for cycles: caches are large, and made often."""
    model = random_model(position)
    gc.collect()
    gc.disable()
    try:
        before = held()
        cache = KVCache(model.config, 4)
        model(random_tokens(model, 4, 2), cache=cache)
        del cache
        assert held() == before
    finally:
        gc.enable()
