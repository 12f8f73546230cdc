"""The small model that comes with the library: what its card says, and its heads."""

import json

import pytest
import torch
from conftest import ROOT

from gpt2lib.data import load_corpus
from gpt2lib.language_model import GPT2LMHeadModel
from gpt2lib.train import TRAIN_PRESETS, TrainConfig, _command, evaluate

FOLDER = ROOT / "gpt2lib" / "static" / "shakespeare-char"


@pytest.fixture(scope="module")
def card():
    return json.loads((FOLDER / "card.json").read_text())


@pytest.fixture(scope="module")
def corpus():
    return load_corpus("shakespeare")


@pytest.fixture(scope="module")
def model():
    return GPT2LMHeadModel.from_pretrained("shakespeare-char")


def test_its_loss_is_that_of_its_card(card, corpus, model):
    loss = evaluate(model, corpus.validation)
    assert loss == pytest.approx(card["validation_loss"], abs=1e-4)


def test_its_card_says_how_to_make_it(card, corpus, model):
    settings = TrainConfig(**card["settings"])
    assert _command(settings) == card["command"]
    assert settings == TrainConfig.preset("shakespeare-char", out=settings.out)
    assert card["data_sha256"] == corpus.digest
    assert card["parameters"] == model.config.num_parameters
    assert card["steps"] == settings.n_steps
    assert card["seconds"] > 0
    assert card["machine"]


def test_its_preset_promises_that_loss(card):
    assert f"{card['validation_loss']:.2f} in" in TRAIN_PRESETS["shakespeare-char"][0]


def test_its_file_holds_weights_alone_and_is_small():
    assert (FOLDER / "model.safetensors").stat().st_size <= 4_000_000
    names = {path.name for path in FOLDER.iterdir()}
    weights_and_cards = {"model.safetensors", "config.json", "card.json"}
    assert names == weights_and_cards | {"characters.json"}


# What its heads have learned, beside an untrained model as the control ----------------


def attention_weights(model, tokens):
    """Return the attention weights of all layers, `(L, B, H, T, T)`."""
    found, hooks = [], []
    positions = torch.arange(tokens.size(1))
    future = torch.ones(len(positions), len(positions), dtype=torch.bool).triu(1)

    def keep(attention, qkv):
        q, k, _ = qkv.unflatten(-1, (3, model.config.n_head, -1)).permute(2, 0, 3, 1, 4)
        q, k = attention.rotary(q, positions), attention.rotary(k, positions)
        scores = q @ k.mT / q.size(-1) ** 0.5  # (B, H, T, T)
        found.append(scores.masked_fill(future, -torch.inf).softmax(-1))

    for block in model.transformer.blocks:
        attention = block.attention

        def hook(_, __, qkv, attention=attention):
            keep(attention, qkv)

        hooks.append(attention.qkv.register_forward_hook(hook))
    with torch.no_grad():
        model(tokens)
    for hook in hooks:
        hook.remove()
    return torch.stack(found)


def previous_token_scores(weights):
    """Return the mean attention to the token before, `(L, H)`."""
    return weights.diagonal(-1, -2, -1).mean((1, 3))


def induction_scores(weights, tokens, n=6):
    """Return how many times as much attention heads pay as elsewhere, `(L, H)`.

    To the token that followed, earlier in the text, the `n` tokens that stand here;
    "elsewhere" is the mean of all texts at the same two positions.
    """
    same = torch.ones(*tokens.shape, tokens.size(1), dtype=torch.bool)  # (B, T, T)
    for back in range(n):
        shifted = tokens.roll(back, 1)
        same &= shifted[:, :, None] == shifted[:, None, :]
    followed = same.roll(1, 2).tril(-n - 1)
    followed[:, :n], followed[:, :, : n + 1] = False, False  # the roll went around
    followed = followed[None, :, None]  # (1, B, 1, T, T)
    elsewhere = weights.mean(1, keepdim=True)
    return (weights * followed).sum((1, 3, 4)) / (elsewhere * followed).sum((1, 3, 4))


@pytest.fixture(scope="module")
def texts(corpus):
    starts = range(0, 64 * 1500, 1500)
    ids = torch.from_numpy(corpus.validation)
    return torch.stack([ids[start : start + 192] for start in starts])


@pytest.fixture(scope="module")
def untrained(model):
    torch.manual_seed(0)
    return GPT2LMHeadModel(model.config).eval()


def test_a_head_looks_at_the_character_before(model, untrained, texts):
    trained = previous_token_scores(attention_weights(model, texts))
    control = previous_token_scores(attention_weights(untrained, texts))
    assert trained.max() > 0.6
    assert control.max() < 0.1


def test_a_head_looks_at_what_followed_the_same_characters(model, untrained, texts):
    trained = induction_scores(attention_weights(model, texts), texts)
    control = induction_scores(attention_weights(untrained, texts), texts)
    assert trained.max() > 2
    assert (control - 1).abs().max() < 0.1
