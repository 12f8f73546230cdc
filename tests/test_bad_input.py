"""Bad input is refused at the door: what was given, its name, and what is allowed."""

from dataclasses import replace

import pytest
import torch

from gpt2lib.attention import MultiHeadSelfAttention, explicit_attention
from gpt2lib.block import TransformerBlock
from gpt2lib.config import GPT2Config
from gpt2lib.embeddings import PositionalEmbedding, TokenEmbedding
from gpt2lib.feedforward import FeedForward
from gpt2lib.kv_cache import KVCache
from gpt2lib.language_model import GPT2LMHeadModel, next_token_loss
from gpt2lib.model import GPT2Model, initialise_weights
from gpt2lib.training_loop import fit

SMALL = GPT2Config(
    n_layer=1, n_head=2, n_embd=8, vocab_size=11, block_size=4, dropout=0.0
)
WHOLE = torch.zeros(2, 4, dtype=torch.long)


def ids(*rows):
    return torch.tensor(rows)


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("n_layer", [0, -1, 1.0, "12", None, True]),
        ("n_head", [0, 7, 2.0]),
        ("n_embd", [0, 100, "768"]),
        ("vocab_size", [0, -5, 50257.0]),
        ("block_size", [0, -1, None]),
        ("dropout", [-0.1, 1.0, 2, "0.1", None, float("nan")]),
        ("position", ["", "sinusoidal", None, 3]),
    ],
)
def test_configuration(field, values):
    for value in values:
        with pytest.raises(ValueError, match=field) as caught:
            GPT2Config(**{field: value})
        assert str(value) in str(caught.value)


def test_rotary_needs_pairs_of_features():
    with pytest.raises(ValueError, match="even"):
        GPT2Config(n_head=2, n_embd=6, position="rotary")


@pytest.mark.parametrize("name", ["gpt-2", "GPT2", "", None, 2])
def test_preset(name):
    with pytest.raises(ValueError, match="gpt2-xl") as caught:
        GPT2Config.preset(name)
    assert repr(name) in str(caught.value)


@pytest.mark.parametrize(
    ("tokens", "error", "words"),
    [
        ([[1, 2]], TypeError, ["tensor", "list"]),
        (None, TypeError, ["tensor", "NoneType"]),
        (torch.ones(1, 2), TypeError, ["int64", "float32"]),
        (torch.ones(1, 2).bool(), TypeError, ["int64", "bool"]),
        (torch.ones(1, 2).byte(), TypeError, ["int64", "uint8"]),
        (ids(1, 2), ValueError, ["(B, T)", "(2,)"]),
        (torch.tensor(1), ValueError, ["(B, T)", "()"]),
        (ids([[1, 2]]), ValueError, ["(B, T)", "(1, 1, 2)"]),
        (WHOLE[:, :0], ValueError, ["at least 1", "(2, 0)"]),
        (WHOLE[:0], ValueError, ["at least 1", "(0, 4)"]),
        (ids([0] * 5), ValueError, ["block_size", "4", "5"]),
        (ids([0, 11]), ValueError, ["0 to 10", "vocab_size", "11"]),
        (ids([-1, 3]), ValueError, ["0 to 10", "-1"]),
        (ids([0, 2**40]), ValueError, ["0 to 10", str(2**40)]),
    ],
)
def test_tokens(tokens, error, words):
    with pytest.raises(error, match="tokens") as caught:
        GPT2LMHeadModel(SMALL)(tokens)
    for word in words:
        assert word in str(caught.value)


def test_tokens_of_either_integer_type_give_the_same():
    model = GPT2LMHeadModel(SMALL)
    tokens = ids([1, 2, 10])
    assert torch.equal(model(tokens), model(tokens.int()))


def test_tokens_after_a_cache_must_still_fit():
    model, cache = GPT2LMHeadModel(SMALL), KVCache(SMALL)
    model(ids([1, 2, 3]), cache=cache)
    with pytest.raises(ValueError, match=r"tokens .* 4 positions, got 5.* 3 .*cache"):
        model(ids([1, 2]), cache=cache)
    assert cache.length == 3
    model(ids([1]), cache=cache)
    assert cache.length == 4


@pytest.mark.parametrize("T", [4, 5, 20])
def test_rotary_texts_have_any_length(T):
    config = replace(SMALL, position="rotary")
    assert GPT2LMHeadModel(config)(WHOLE[:, :1].expand(2, T)).shape == (2, T, 11)
    with pytest.raises(ValueError, match="tokens"):
        GPT2LMHeadModel(config)(WHOLE[:, :0])


LOGITS = torch.zeros(2, 4, 11)


@pytest.mark.parametrize(
    ("logits", "tokens", "error", "words"),
    [
        (LOGITS, WHOLE[:, :3], ValueError, ["(2, 4, 11)", "(2, 3)"]),
        (LOGITS[:, :3], WHOLE, ValueError, ["(2, 3, 11)", "(2, 4)"]),
        (LOGITS[0], WHOLE[0], ValueError, ["(B, T, V)", "(4, 11)"]),
        (LOGITS.flatten(0, 1), WHOLE.flatten(), ValueError, ["(8, 11)", "(8,)"]),
        (LOGITS[:, :1], WHOLE[:, :1], ValueError, ["T at least 2", "(2, 1)"]),
        (LOGITS, WHOLE + 11, ValueError, ["0 to 10", "11"]),
        (LOGITS, WHOLE - 100, ValueError, ["0 to 10", "-100"]),
        (LOGITS, WHOLE.float(), TypeError, ["int64", "float32"]),
        (LOGITS, WHOLE.tolist(), TypeError, ["tensors", "list"]),
        (None, WHOLE, TypeError, ["tensors", "NoneType"]),
    ],
)
def test_loss(logits, tokens, error, words):
    with pytest.raises(error, match="tokens") as caught:
        next_token_loss(logits, tokens)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("table", "name", "rows"),
    [(TokenEmbedding, "tokens", 11), (PositionalEmbedding, "positions", 4)],
)
def test_embeddings(table, name, rows):
    table = table(SMALL)
    for wrong in (rows, -1):
        with pytest.raises(ValueError, match=f"{name} .* 0 to {rows - 1}"):
            table(torch.tensor([0, wrong]))
    for wrong in (torch.ones(2), [0, 1], 3):
        with pytest.raises(TypeError, match=name):
            table(wrong)


@pytest.mark.parametrize(
    "part", [MultiHeadSelfAttention, FeedForward, TransformerBlock, GPT2Model]
)
def test_hidden_states_of_another_width(part):
    with pytest.raises(ValueError, match=r"x must .*8.* got \(2, 3, 9\)"):
        part(SMALL)(torch.ones(2, 3, 9))


@pytest.mark.parametrize("part", [MultiHeadSelfAttention, TransformerBlock, GPT2Model])
def test_hidden_states_of_another_rank(part):
    with pytest.raises(ValueError, match=r"x must .*got \(3, 8\)"):
        part(SMALL)(torch.ones(3, 8))


@pytest.mark.parametrize("n_layer", [0, -1, 1.5, "2", None, True])
def test_weights_for_an_impossible_number_of_blocks(n_layer):
    layer = torch.nn.Linear(2, 2)
    before = layer.weight.clone()
    with pytest.raises(ValueError, match=r"n_layer must be .* at least 1") as caught:
        initialise_weights(torch.nn.ModuleDict({"proj": layer}), n_layer)
    assert repr(n_layer) in str(caught.value)
    assert torch.equal(layer.weight, before)


def test_queries_and_keys_of_two_shapes():
    with pytest.raises(ValueError, match=r"q, k and v .*\(1, 3, 4\)"):
        explicit_attention(
            torch.ones(1, 2, 4), torch.ones(1, 3, 4), torch.ones(1, 3, 4)
        )


def test_training_loop_without_enough_batches():
    weight = torch.nn.Parameter(torch.ones(()))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    with pytest.raises(ValueError, match="accumulate must be at least 1, got 0"):
        fit([1, 2], lambda batch: weight * batch, optimizer, n_steps=1, accumulate=0)
    with pytest.raises(ValueError, match=r"batches .* 3 "):
        fit([1, 2], lambda batch: weight * batch, optimizer, n_steps=3)
