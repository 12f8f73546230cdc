"""Text, whole and as a stream: what it does to the model, and the command."""

import codecs
import gc
import math
import os
import subprocess
import sys
from collections import Counter

import pytest
import torch
import transformers
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import (
    POSITIONS,
    SHAPES,
    assert_close,
    by_policy,
    held,
    random_model,
    random_tokens,
)

from gpt2lib.kv_cache import KVCache
from gpt2lib.language_model import GPT2LMHeadModel, next_token_loss
from gpt2lib.sampling import generate, generate_stream, main, text_pieces
from gpt2lib.tokenizer import BPETokenizer, CharTokenizer

some = settings(deadline=None, derandomize=True, max_examples=150)


@pytest.fixture(params=POSITIONS)
def position(request):
    return request.param


@pytest.fixture(params=[True, False], ids=["cached", "uncached"])
def use_cache(request):
    return request.param


# ---- what is generated


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("prompt", [1, 10])
def test_greedy_takes_the_most_probable(position, use_cache, shape, prompt):
    """At each step to three times the window, but for ties within rounding."""
    model = random_model(position, SHAPES[shape])
    B, window = 1 + prompt % 4, model.config.block_size
    tokens = random_tokens(model, B, prompt)
    n = max(1, 3 * window - prompt)
    out = generate(model, tokens, n, greedy=True, use_cache=use_cache)
    assert out.shape == (B, prompt + n)
    assert out.dtype == tokens.dtype
    assert torch.equal(out[:, :prompt], tokens)
    for end in range(prompt, prompt + n):
        logits = by_policy(model, out[:, :end])
        chosen = logits.gather(1, out[:, end : end + 1])[:, 0]
        slack = 1e-5 * logits.abs().max()
        assert (chosen >= logits.amax(-1) - slack).all()


def test_the_cache_changes_no_text(position):
    """Here no two logits are as near as rounding, as the loop above would show."""
    model = random_model(position, SHAPES["deeper"])
    tokens = random_tokens(model, 4, 3)
    texts = [generate(model, tokens, 40, greedy=True, use_cache=c) for c in (1, 0)]
    assert torch.equal(*texts)
    for b in range(4):  # nor do the neighbours in a batch
        alone = generate(model, tokens[b : b + 1], 40, greedy=True)
        assert torch.equal(alone, texts[0][b : b + 1])


def test_the_cache_is_used_and_spares_what_it_can(position, use_cache):
    """How many tokens each pass reads, in a window of 6."""
    model = random_model(position)
    read = []
    model.token_embedding.register_forward_pre_hook(
        lambda _, inputs: read.append(inputs[0].size(1))
    )
    generate(model, random_tokens(model, 2, 3), 7, use_cache=use_cache)
    if position == "rotary":
        assert read == ([3, 1, 1, 1, 1, 1, 1] if use_cache else [3, 4, 5, 6, 7, 8, 9])
    else:
        assert read == ([3, 1, 1, 1, 6, 6, 6] if use_cache else [3, 4, 5, 6, 6, 6, 6])


def test_greedy_is_the_limit_of_a_low_temperature(position):
    model = random_model(position)
    tokens = random_tokens(model, 3, 2)
    greedy = generate(model, tokens, 20, greedy=True)
    for knobs in ({"temperature": 1e-300}, {"top_k": 1}, {"top_p": 1e-9}):
        assert torch.equal(generate(model, tokens, 20, **knobs), greedy)


def test_greedy_takes_the_earlier_of_equals(use_cache):
    model = random_model("learned")
    with torch.no_grad():
        model.token_embedding.weight[4] = model.token_embedding.weight[2]
    out = generate(model, torch.tensor([[2]]), 200, greedy=False, top_k=1)
    assert 4 not in out
    out = generate(model, random_tokens(model, 20, 1), 30, greedy=True)
    assert 4 not in out[:, 1:]


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_tokens_keep_their_type_and_the_prompt_is_left_alone(dtype, use_cache):
    model = random_model("rotary")
    tokens = random_tokens(model, 2, 3).to(dtype)
    kept = tokens.clone()
    out = generate(model, tokens, 5, greedy=True, use_cache=use_cache)
    assert out.dtype == dtype
    out += 1
    assert torch.equal(tokens, kept)
    none = generate(model, tokens, 0)
    none += 1
    assert torch.equal(tokens, kept)
    assert [t.dtype for t in generate_stream(model, tokens, 1)] == [dtype]
    assert list(generate_stream(model, tokens, 0)) == []


def test_a_prompt_changed_under_way_changes_nothing():
    model = random_model("rotary")
    tokens = random_tokens(model, 2, 3)
    expected = generate(model, tokens, 8, greedy=True)[:, 3:]
    stream, got = generate_stream(model, tokens, 8, greedy=True), []
    tokens.zero_()
    for token in stream:
        got.append(token.clone())
        token.zero_()
    assert torch.equal(torch.stack(got, dim=1), expected)


def test_strided_prompts(position):
    model = random_model(position)
    tokens = random_tokens(model, 4, 6)
    expected = generate(model, tokens[:, ::2].contiguous(), 9, greedy=True)
    assert torch.equal(generate(model, tokens[:, ::2], 9, greedy=True), expected)
    one = tokens[:1, :3]
    out = generate(model, one.expand(5, 3), 9, greedy=True)
    assert torch.equal(out, generate(model, one, 9, greedy=True).expand(5, 12))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions(position, use_cache, dtype):
    model = random_model(position).to(dtype)
    out = generate(model, random_tokens(model, 2, 3), 15, use_cache=use_cache)
    assert out.shape == (2, 18)
    assert 0 <= out.min() <= out.max() < model.config.vocab_size


def test_mixed_precision(position, use_cache):
    """A training run may ask for a sample inside of its autocast."""
    model = random_model(position, (2, 2, 16, 11, 8))
    tokens = random_tokens(model, 2, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = generate(model, tokens, 12, greedy=True, use_cache=use_cache)
    assert out.shape == (2, 15)


# ---- the same as `transformers`


def their_copy(model, folder):
    model.save_pretrained(folder)
    theirs = transformers.GPT2LMHeadModel.from_pretrained(folder).eval()
    assert theirs.config.eos_token_id is None
    return theirs


@pytest.mark.parametrize(
    ("sizes", "B", "T"),
    [
        ((1, 1, 8, 11, 16), 1, 1),
        ((2, 4, 32, 101, 32), 3, 5),
        ((4, 3, 48, 503, 48), 2, 9),
    ],
)
def test_greedy_text_equals_that_of_transformers(sizes, B, T, use_cache, tmp_path):
    ours = random_model("learned", sizes)
    theirs = their_copy(ours, tmp_path)
    tokens, n = random_tokens(ours, B, T), sizes[4] - T
    expected = theirs.generate(
        tokens,
        attention_mask=torch.ones_like(tokens),
        do_sample=False,
        max_new_tokens=n,
        use_cache=use_cache,
        pad_token_id=0,
    )
    out = generate(ours, tokens, n, greedy=True, use_cache=use_cache)
    assert torch.equal(out, expected)
    assert out.unique().numel() > 3


@torch.no_grad()
def test_logits_with_a_cache_equal_those_of_transformers(tmp_path):
    ours = random_model("learned", (3, 2, 32, 101, 24))
    theirs = their_copy(ours, tmp_path)
    tokens = random_tokens(ours, 3, 24)
    cache, theirs_cache, read = KVCache(ours.config, 3), transformers.DynamicCache(), 0
    for n in (5, 1, 1, 7, 1, 3, 1, 1, 1, 1, 1, 1):
        new = tokens[:, read : read + n]
        # By place: the argument's name is not the same in every release.
        result = theirs(new, theirs_cache, use_cache=True)
        assert_close(ours(new, cache=cache), result.logits, 2e-5)
        read += n
    assert cache.length == read == 24


# ---- what it does to the model


def modes(model):
    return {name: module.training for name, module in model.named_modules()}


def mix_modes(model):
    """As in fine-tuning with frozen parts: some train, some do not."""
    model.train()
    model.transformer.blocks[0].eval()
    model.transformer.blocks[1].attention.eval()
    model.transformer.blocks[0].feedforward.dropout.train()
    return model


STATES = {
    "evaluation": lambda model: model.eval(),
    "training": lambda model: model.train(),
    "mixed": mix_modes,
}


@pytest.fixture(params=STATES)
def dropped(request, position):
    """A model that would drop half, in one of three states."""
    return STATES[request.param](random_model(position, dropout=0.5))


def test_dropout_is_off_while_generating(dropped, use_cache):
    tokens = random_tokens(dropped, 2, 3)
    plain = random_model(dropped.config.position)
    expected = generate(plain, tokens, 15, greedy=True)
    before = modes(dropped)
    out = generate(dropped, tokens, 15, greedy=True, use_cache=use_cache)
    assert torch.equal(out, expected)
    assert modes(dropped) == before
    seed = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    out = generate(dropped, tokens, 15, generator=seed[0], use_cache=use_cache)
    assert torch.equal(out, generate(plain, tokens, 15, generator=seed[1]))


def test_modes_are_restored_between_two_tokens_and_after(dropped, use_cache):
    before, tokens = modes(dropped), random_tokens(dropped, 2, 3)
    stream = generate_stream(dropped, tokens, 9, use_cache=use_cache)
    assert modes(dropped) == before
    for _ in stream:
        assert modes(dropped) == before
    assert modes(dropped) == before
    for taken in (0, 6):  # past the window too
        stream = generate_stream(dropped, tokens, 12, use_cache=use_cache)
        for _ in range(taken):
            next(stream)
        stream.close()
        assert modes(dropped) == before
        assert list(stream) == []
    stream = generate_stream(dropped, tokens, 12, use_cache=use_cache)
    next(stream)
    del stream
    assert modes(dropped) == before


def test_a_mode_set_between_two_tokens_stays():
    model = random_model("learned", dropout=0.5).train()
    stream = generate_stream(model, random_tokens(model, 1, 2), 4)
    next(stream)
    model.eval()
    next(stream)
    assert not any(modes(model).values())
    model.train()
    next(stream)
    assert all(modes(model).values())


def gradient_state():
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled()


@pytest.mark.parametrize(
    "mode", [torch.enable_grad, torch.no_grad, torch.inference_mode]
)
def test_gradients_are_as_the_caller_set_them(mode, position, use_cache):
    model = random_model(position)
    with mode():
        before = gradient_state()
        stream = generate_stream(model, random_tokens(model, 1, 2), 12)
        assert gradient_state() == before
        for token in stream:
            assert gradient_state() == before
            assert token.is_inference() == before[1]
            if before == (True, False):
                assert model(token[:, None]).requires_grad
        generate(model, random_tokens(model, 1, 2), 3, use_cache=use_cache)
        assert gradient_state() == before
        next(generate_stream(model, random_tokens(model, 1, 2), 12))
        assert gradient_state() == before
    assert gradient_state() == (True, False)


@pytest.mark.parametrize("started", [torch.inference_mode, torch.no_grad])
def test_a_stream_may_cross_from_one_mode_to_another(started, position, use_cache):
    model = random_model(position)
    tokens = random_tokens(model, 1, 2)
    expected = generate(model, tokens, 20, greedy=True)[0, 2:].tolist()
    with started():
        stream = generate_stream(model, tokens, 20, greedy=True, use_cache=use_cache)
    assert [token.item() for token in stream] == expected
    stream = generate_stream(model, tokens, 20, greedy=True, use_cache=use_cache)
    with started():
        first = [next(stream).item() for _ in range(9)]
    assert first + [token.item() for token in stream] == expected


def test_generated_tokens_can_be_trained_on(position, use_cache):
    model = random_model(position, (2, 2, 8, 11, 8)).train()
    out = generate(model, random_tokens(model, 2, 3), 5, use_cache=use_cache)
    assert not out.is_inference()
    next_token_loss(model(out), out).backward()
    assert all(
        p.grad.isfinite().all() and not p.is_inference() for p in model.parameters()
    )
    model.zero_grad()
    for token in generate_stream(model, out, 4, use_cache=use_cache):
        text = torch.cat([out[:, -3:], token[:, None]], dim=1)
        next_token_loss(model(text), text).backward()
        assert all(p.grad is not None for p in model.parameters())


def test_no_gradient_and_no_weight_is_touched(position, use_cache):
    model = random_model(position).train()
    weights = {name: p.clone() for name, p in model.named_parameters()}
    generate(model, random_tokens(model, 2, 3), 12, use_cache=use_cache)
    for name, p in model.named_parameters():
        assert torch.equal(p, weights[name])
        assert p.grad is None
        assert p.requires_grad


def test_two_streams_at_once(position):
    model = random_model(position)
    prompts = [random_tokens(model, 1, n, seed=n) for n in (2, 5)]
    expected = [generate(model, prompt, 12, greedy=True) for prompt in prompts]
    streams = [generate_stream(model, prompt, 12, greedy=True) for prompt in prompts]
    got = zip(*streams, strict=True)
    got = [torch.cat(tokens) for tokens in zip(*got, strict=True)]
    for prompt, tokens, whole in zip(prompts, got, expected, strict=True):
        assert torch.equal(tokens, whole[0, prompt.size(1) :])


# ---- broken off


@pytest.mark.parametrize(
    ("part", "error"),
    [
        ("transformer.blocks.1", KeyboardInterrupt),
        ("lm_head", KeyboardInterrupt),
        ("dropout", RuntimeError),
    ],
)
def test_an_interrupted_text_can_be_begun_again(position, use_cache, part, error):
    """Stopped at several steps, within the window and past it."""
    model = mix_modes(random_model(position, dropout=0.5))
    tokens, before, passes = random_tokens(model, 2, 3), modes(model), Counter()

    def text():
        generator = torch.Generator().manual_seed(7)
        return generate(model, tokens, 10, generator=generator, use_cache=use_cache)

    expected = text()
    for stop_at in (1, 2, 9):

        def stop(*_, stop_at=stop_at):
            passes[stop_at] += 1
            if passes[stop_at] == stop_at:
                raise error

        handle = model.get_submodule(part).register_forward_hook(stop)
        with pytest.raises(error):
            text()
        assert gradient_state() == (True, False)
        assert modes(model) == before
        handle.remove()
        assert torch.equal(text(), expected)


def test_a_stream_that_failed_is_over():
    model = random_model("rotary", dropout=0.5).train()
    stream = generate_stream(model, random_tokens(model, 1, 2), 12)
    next(stream)

    def stop(*_):
        raise KeyboardInterrupt

    handle = model.transformer.blocks[1].register_forward_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        next(stream)
    handle.remove()
    assert list(stream) == []
    assert all(modes(model).values())


# ---- memory


def test_a_stream_holds_no_more_after_many_tokens(position):
    model = random_model(position, (2, 2, 8, 11, 16))
    stream, seen = generate_stream(model, random_tokens(model, 1, 2), 1500), []
    gc.collect()
    for i, _ in enumerate(stream, start=1):
        if i in (500, 1000, 1500):
            seen.append(held())
    assert i == 1500
    assert seen[0] == seen[1] == seen[2]


def test_a_finished_text_leaves_nothing_behind(position):
    """Nor does Python have to look for cycles first."""
    model = random_model(position)
    tokens = random_tokens(model, 2, 3)
    gc.collect()
    gc.disable()
    try:
        before = held()
        for _ in range(3):
            generate(model, tokens, 10)
        stream = generate_stream(model, tokens, 10)
        next(stream)
        del stream
        assert held() == before
    finally:
        gc.enable()


def resident():
    """Bytes of memory that this process has, by Linux."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
@pytest.mark.skipif(
    not os.path.exists("/proc/self/statm"), reason="needs Linux's /proc"
)
def test_memory_of_ten_thousand_tokens(position):
    model = random_model(position, (2, 2, 32, 101, 64))
    stream = generate_stream(model, random_tokens(model, 4, 2), 10_000)
    for i, _ in enumerate(stream, start=1):
        if i == 1000:
            start = resident()
    assert i == 10_000
    assert resident() - start < 8 * 2**20


# ---- characters


@pytest.fixture(scope="module")
def gpt2():
    return BPETokenizer.gpt2()


ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]))
WIDE_TEXT = st.text(
    st.sampled_from("aé ñ€→漢字仮名カタカナーッ한글🌹👩‍🚀🇫🇷\u0301\ufffd\U0010fffd")
)


@given(text=ANY_TEXT | WIDE_TEXT)
@some
def test_pieces_join_to_the_text(gpt2, text):
    pieces = list(text_pieces(gpt2, gpt2.encode(text)))
    assert "".join(pieces) == text
    assert all(pieces)


@pytest.mark.parametrize("text", ["贈辦", "鄶惽", "嬚鎺", "噈艨", "\ufffd漢字"])
def test_pieces_where_one_token_ends_a_character_and_begins_the_next(gpt2, text):
    pieces = list(text_pieces(gpt2, gpt2.encode(text)))
    assert "".join(pieces) == text


@given(text=WIDE_TEXT)
@some
def test_pieces_of_single_bytes(text):
    """The worst case: no token holds a whole character."""
    by_byte, out = BPETokenizer([]), ""
    for piece in text_pieces(by_byte, by_byte.encode(text)):
        out += piece
        assert text.startswith(out)
    assert out == text


@given(data=st.data())
@some
def test_pieces_of_whatever_a_model_may_write(gpt2, data):
    """Ids that no text encodes to, where bytes may fit nowhere."""
    alike = [i for i, token in enumerate(gpt2.tokens) if not token.isascii()]
    choice = st.integers(0, gpt2.vocab_size - 1) | st.sampled_from(alike)
    ids = data.draw(st.lists(choice, max_size=12))
    pieces = list(text_pieces(gpt2, ids))
    assert "".join(pieces) == gpt2.decode(ids)


def test_a_piece_comes_as_soon_as_its_characters_are_whole(gpt2):
    """After each token all that is certain is out, and nothing else."""
    text = "O Romeo 🌹, wherefore 羅密歐? ウォーッ 👩‍🚀 naïve"
    fed, out = [], ""

    def feed():
        for i in gpt2.encode(text):
            fed.append(i)
            yield i

    for piece in text_pieces(gpt2, feed()):
        out += piece
        data = b"".join(gpt2.tokens[i] for i in fed)
        whole = codecs.getincrementaldecoder("utf-8")().decode(data)
        assert out == whole
    assert out == text


def test_a_cut_character_is_not_lost(gpt2):
    ids = gpt2.encode("🌹")[:-1]
    assert "".join(text_pieces(gpt2, ids)) == gpt2.decode(ids)
    assert list(text_pieces(gpt2, [])) == []


def test_pieces_of_characters_and_of_a_stream():
    tokenizer = CharTokenizer("abcdefg")
    assert list(text_pieces(tokenizer, [1, 0, 6])) == ["b", "a", "g"]
    model = random_model("learned")  # 7 tokens
    stream = generate_stream(model, torch.tensor([[1]]), 9, greedy=True)
    expected = generate(model, torch.tensor([[1]]), 9, greedy=True)[0, 1:]
    assert "".join(text_pieces(tokenizer, stream)) == tokenizer.decode(expected)


# ---- the command


@pytest.fixture
def folder(tmp_path, position):
    """A model of 7 characters in a folder."""
    random_model(position).save_pretrained(tmp_path / "model")
    CharTokenizer("abcdef\n").save(tmp_path / "model")
    return str(tmp_path / "model")


def run(capsys, *arguments):
    """What the command prints, with these arguments."""
    main(list(arguments))
    printed = capsys.readouterr()
    assert printed.err == ""
    return printed.out


def expected_text(folder, prompt, n, **knobs):
    tokenizer = CharTokenizer("abcdef\n")
    tokens = torch.tensor([tokenizer.encode(prompt)])
    model = GPT2LMHeadModel.from_pretrained(folder)
    return tokenizer.decode(generate(model, tokens, n, **knobs)[0]) + "\n"


def test_command_prints_what_generate_gives(folder, capsys):
    arguments = ["--model", folder, "--prompt", "abc", "--tokens", "30"]
    greedy = run(capsys, *arguments, "--greedy")
    assert greedy == expected_text(folder, "abc", 30, greedy=True)
    assert run(capsys, *arguments, "--greedy", "--no-cache") == greedy
    options = ["--temperature", "0.7", "--top-k", "5", "--top-p", "0.9", "--seed", "4"]
    drawn = run(capsys, *arguments, *options)
    knobs = {"temperature": 0.7, "top_k": 5, "top_p": 0.9}
    generator = torch.Generator().manual_seed(4)
    assert drawn == expected_text(folder, "abc", 30, generator=generator, **knobs)
    assert run(capsys, *arguments, *options, "--no-cache") == drawn


def test_command_hands_no_cache_on(folder, capsys, monkeypatch):
    def refuse(*_, **__):
        raise ZeroDivisionError

    monkeypatch.setattr("gpt2lib.kv_cache.KVCache", refuse)
    with pytest.raises(ZeroDivisionError):
        run(capsys, "--model", folder, "--prompt", "a")
    capsys.readouterr()
    assert run(capsys, "--model", folder, "--prompt", "a", "--no-cache")


def test_command_repeats_with_a_seed_only(folder, capsys):
    arguments = ["--model", folder, "--prompt", "a", "--tokens", "40"]
    seeded = [run(capsys, *arguments, "--seed", seed) for seed in ("1", "1", "2")]
    assert seeded[0] == seeded[1] != seeded[2]
    assert seeded[0].startswith("a")
    assert len(seeded[0]) == 42
    assert run(capsys, *arguments) != run(capsys, *arguments)
    assert run(capsys, *arguments[:4], "--tokens", "0") == "a\n"
    assert run(capsys, *arguments, "--temperature", "1e-300") == run(
        capsys, *arguments, "--greedy"
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--temperature", "0"], ["temperature", "greedy"]),
        (["--temperature", "-1"], ["temperature", "-1.0"]),
        (["--temperature", "nan"], ["temperature", "nan"]),
        (["--temperature", "warm"], ["temperature", "warm"]),
        (["--top-k", "0"], ["top_k", "0"]),
        (["--top-k", "2.5"], ["top-k", "2.5"]),
        (["--top-p", "0"], ["top_p", "0.0"]),
        (["--top-p", "1.5"], ["top_p", "1.5"]),
        (["--tokens", "-3"], ["-3"]),
        (["--tokens", "many"], ["tokens", "many"]),
        (["--seed", "x"], ["seed", "x"]),
        (["--seed", str(2**70)], ["seed", str(2**70)]),
        (["--prompt", ""], ["prompt", "at least"]),
        (["--prompt", "abXc"], ["'X'", "position 2"]),
        (["--prompt", "a\u20ac"], ["'€'", "position 1"]),
        (["--wild"], ["--wild"]),
    ],
)
def test_command_refuses(arguments, words, tmp_path, capsys):
    random_model("learned").save_pretrained(tmp_path)
    CharTokenizer("abcdef\n").save(tmp_path)
    with pytest.raises(SystemExit) as caught:
        main(["--model", str(tmp_path), "--tokens", "3", *arguments])
    assert caught.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    for word in words:
        assert word in printed.err.splitlines()[-1]


def test_command_refuses_what_is_no_model(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    only_model, only_tokenizer = tmp_path / "model", tmp_path / "tokenizer"
    random_model("learned").save_pretrained(only_model)
    CharTokenizer("abcdef\n").save(only_tokenizer)
    damaged = tmp_path / "damaged"
    random_model("learned").save_pretrained(damaged)
    CharTokenizer("abcdef\n").save(damaged)
    (damaged / "model.safetensors").write_bytes(b"\x00" * 30)
    nowhere = tmp_path / "nowhere"
    for name in (only_model, only_tokenizer, damaged, nowhere, "no-such-model", ""):
        with pytest.raises(SystemExit) as caught:
            main(["--model", str(name)])
        assert caught.value.code == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert str(name) in printed.err.splitlines()[-1]


COMMAND = [sys.executable, "-m", "gpt2lib.sampling"]


def test_command_tells_of_damaged_weights(tmp_path, capsys):
    model = random_model("learned")  # of 7 characters
    with torch.no_grad():
        model.transformer.norm.bias[0] = math.nan
    model.save_pretrained(tmp_path)
    CharTokenizer("abcdef\n").save(tmp_path)
    with pytest.raises(SystemExit) as caught:
        main(["--model", str(tmp_path), "--prompt", "a", "--tokens", "2"])
    assert caught.value.code == 2
    assert "not numbers" in capsys.readouterr().err


def test_command_in_a_shell(tmp_path):
    random_model("rotary").save_pretrained(tmp_path)
    CharTokenizer("ab→€🌹ñ\n").save(tmp_path)
    arguments = ["--model", str(tmp_path), "--prompt", "→b", "--seed", "1"]
    done = subprocess.run(
        [*COMMAND, *arguments, "--tokens", "20"],
        cwd=ROOT,
        env=os.environ | {"PYTHONUTF8": "1"},
        capture_output=True,
        encoding="utf-8",
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("→b")
    assert len(done.stdout) == 23


def test_command_into_a_pipe_that_closes(tmp_path):
    """`... | head -c 100` is no reason for a traceback."""
    random_model("rotary").save_pretrained(tmp_path)
    CharTokenizer("abcdef\n").save(tmp_path)
    with subprocess.Popen(
        [*COMMAND, "--model", str(tmp_path), "--tokens", "100000"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert len(process.stdout.read(100)) == 100
        process.stdout.close()
        errors = process.stderr.read().decode()
        process.wait(timeout=120)
    assert "Traceback" not in errors


def test_command_stopped_by_ctrl_c(tmp_path, capsys):
    """What was written stays, the line ends, and a shell is told why."""
    model = random_model("learned")
    model.save_pretrained(tmp_path)
    CharTokenizer("abcdef\n").save(tmp_path)
    expected = expected_text(tmp_path, "ab", 9, greedy=True)

    def pieces(tokenizer, ids):
        for n, i in enumerate(ids):
            if n == 4:
                raise KeyboardInterrupt
            yield tokenizer.decode([int(i)])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gpt2lib.sampling.text_pieces", pieces)
        with pytest.raises(SystemExit) as caught:
            main(["--model", str(tmp_path), "--prompt", "ab", "--greedy"])
    assert caught.value.code == 130
    assert capsys.readouterr().out == expected[:6] + "\n"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_loss_of_half_precision_is_a_float32(dtype):
    torch.manual_seed(0)
    logits = torch.randn(8, 1024, 2000).to(dtype)
    tokens = torch.randint(2000, (8, 1024))
    expected = next_token_loss(logits.float(), tokens)
    assert torch.equal(next_token_loss(logits, tokens), expected)
