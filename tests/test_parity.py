"""The same weights give what `transformers` gives: logits, loss, gradients, counts."""

import pytest
import torch
import transformers
from torch.nn import functional as F

from gpt2lib.config import GPT2Config
from gpt2lib.language_model import GPT2LMHeadModel, next_token_loss

# Blocks, heads, width, vocabulary, window; texts and their length.
CASES = {
    "smallest": ((1, 1, 8, 11, 4), (1, 4)),
    "whole-window": ((2, 2, 32, 101, 16), (3, 16)),
    "part-of-window": ((3, 4, 48, 257, 64), (2, 33)),
    "wide-heads": ((2, 1, 96, 1009, 32), (2, 32)),
    "deep": ((12, 12, 96, 503, 128), (1, 128)),
}
PUBLISHED = {
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
}


def their_model(sizes, attention, spread):
    """Return a GPT-2 of `transformers`, in evaluation mode.

    Its own initialisation (`spread` None) leaves biases at 0 and norms at 1, where
    faults can hide; otherwise every parameter is random.
    """
    names = ("n_layer", "n_head", "n_embd", "vocab_size", "n_positions")
    config = transformers.GPT2Config(
        **dict(zip(names, sizes, strict=True)),
        bos_token_id=None,
        eos_token_id=None,
        attn_implementation=attention,
    )
    torch.manual_seed(sum(sizes))
    model = transformers.GPT2LMHeadModel(config).eval()
    if spread is not None:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(std=spread)
    return model


def their_loss(logits, tokens):
    """What `transformers` computes from labels, which it does in float32 only."""
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


def gradient_norm(model):
    return torch.stack([p.grad.norm() for p in model.parameters()]).norm()


@pytest.mark.parametrize("spread", [None, 0.1], ids=["fresh", "random"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("case", CASES)
def test_logits_loss_and_gradients(case, attention, spread, tmp_path):
    sizes, (B, T) = CASES[case]
    theirs = their_model(sizes, attention, spread)
    theirs.save_pretrained(tmp_path)
    ours = GPT2LMHeadModel.from_pretrained(tmp_path)
    tokens = torch.randint(sizes[3], (B, T))

    expected = theirs(tokens, labels=tokens)
    logits = ours(tokens)
    largest = expected.logits.abs().max()
    assert (logits - expected.logits).abs().max() <= 2e-5 * largest
    last = ours(tokens, last_only=True)
    assert (last - expected.logits[:, -1:]).abs().max() <= 2e-5 * largest

    loss = next_token_loss(logits, tokens)
    torch.testing.assert_close(loss, expected.loss, rtol=1e-4, atol=0)
    loss.backward()
    expected.loss.backward()
    torch.testing.assert_close(
        gradient_norm(ours), gradient_norm(theirs), rtol=1e-4, atol=0
    )


@pytest.mark.parametrize("case", CASES)
def test_only_rounding_is_left_in_double_precision(case, tmp_path):
    """In float64 a fault as small as another epsilon stands out."""
    sizes, (B, T) = CASES[case]
    theirs = their_model(sizes, "sdpa", 0.1).double()
    theirs.save_pretrained(tmp_path)
    ours = GPT2LMHeadModel.from_pretrained(tmp_path)
    tokens = torch.randint(sizes[3], (B, T))
    expected, logits = theirs(tokens).logits, ours(tokens)
    assert logits.dtype == torch.float64
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-10)
    losses = [next_token_loss(logits, tokens), their_loss(expected, tokens)]
    torch.testing.assert_close(*losses, rtol=1e-12, atol=0)
    for loss in losses:
        loss.backward()
    norms = [gradient_norm(model) for model in (ours, theirs)]
    torch.testing.assert_close(*norms, rtol=1e-10, atol=0)


@pytest.mark.parametrize("name", PUBLISHED)
def test_presets_count_what_was_published(name):
    with torch.device("meta"):
        config = GPT2Config.preset(name)
        model = GPT2LMHeadModel(config)
    assert all(p.is_meta for p in model.parameters())
    assert sum(p.numel() for p in model.parameters()) == PUBLISHED[name]
    assert config.num_parameters == PUBLISHED[name]


def test_logits_on_meta_have_the_shape():
    with torch.device("meta"):
        model = GPT2LMHeadModel(GPT2Config.preset("gpt2"))
        logits = model(torch.zeros(2, 1024, dtype=torch.long))
    assert logits.shape == (2, 1024, 50257)


def test_training_stays_together(tmp_path):
    """Ten updates from the same weights lead to the same weights."""
    sizes, (B, T) = CASES["whole-window"]
    theirs = their_model(sizes, "eager", None).double()
    theirs.save_pretrained(tmp_path)
    ours = GPT2LMHeadModel.from_pretrained(tmp_path)
    tokens = torch.randint(sizes[3], (B, T))
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.5) for m in (ours, theirs)]
    for _ in range(10):
        losses = [
            next_token_loss(ours(tokens), tokens),
            their_loss(theirs(tokens).logits, tokens),
        ]
        for loss, optimizer in zip(losses, optimizers, strict=True):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    torch.testing.assert_close(ours(tokens), theirs(tokens).logits, rtol=0, atol=1e-9)
