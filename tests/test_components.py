"""Phase 1's parts against `transformers`, on the meta device, and in training."""

import pytest
import torch
import transformers

from gpt2lib.attention import MultiHeadSelfAttention
from gpt2lib.config import GPT2Config
from gpt2lib.model import GPT2Model, initialise_weights

NAMES = {  # ours: theirs, whose Conv1D keeps the transpose of a Linear's weight
    "norm1": "ln_1",
    "attention.qkv": "attn.c_attn",
    "attention.proj": "attn.c_proj",
    "norm2": "ln_2",
    "feedforward.expand": "mlp.c_fc",
    "feedforward.proj": "mlp.c_proj",
}
SHAPES = [  # n_layer, n_head, n_embd, batch, time
    (1, 1, 8, 1, 1),
    (2, 2, 16, 3, 7),
    (3, 3, 48, 2, 16),
    (4, 4, 32, 1, 33),
    (2, 12, 96, 2, 64),
]


def oracle(n_layer, n_head, n_embd):
    """A `transformers` body with random weights, and no positions: ours has none."""
    torch.manual_seed(n_embd)
    theirs = transformers.GPT2Model(
        transformers.GPT2Config(
            n_layer=n_layer, n_head=n_head, n_embd=n_embd, n_positions=64, vocab_size=1
        )
    ).eval()
    for parameter in theirs.parameters():  # norms and biases too
        torch.nn.init.normal_(parameter, std=0.2)
    torch.nn.init.zeros_(theirs.wpe.weight)
    return theirs


def copy_block(theirs, ours):
    for our_name, their_name in NAMES.items():
        source, target = theirs.get_submodule(their_name), ours.get_submodule(our_name)
        transposed = isinstance(target, torch.nn.Linear)
        with torch.no_grad():
            target.weight.copy_(source.weight.T if transposed else source.weight)
            target.bias.copy_(source.bias)


def assert_equal(ours, theirs):
    """Within rounding: 2e-5 of the largest number."""
    tolerance = 2e-5 * theirs.abs().max().item()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)


@pytest.mark.parametrize(("n_layer", "n_head", "n_embd", "B", "T"), SHAPES)
def test_same_as_transformers(n_layer, n_head, n_embd, B, T):
    theirs = oracle(n_layer, n_head, n_embd)
    config = GPT2Config(n_layer=n_layer, n_head=n_head, n_embd=n_embd)
    ours = GPT2Model(config).eval()
    for our_block, their_block in zip(ours.blocks, theirs.h, strict=True):
        copy_block(their_block, our_block)
    ours.norm.load_state_dict(theirs.ln_f.state_dict())

    x = torch.randn(B, T, n_embd)
    block_output = theirs.h[0](x)
    if isinstance(block_output, tuple):
        block_output = block_output[0]
    assert_equal(ours.blocks[0](x), block_output)

    x.requires_grad_()
    outputs = ours(x), theirs(inputs_embeds=x).last_hidden_state
    assert_equal(*outputs)
    direction = torch.randn(B, T, n_embd)
    assert_equal(*(torch.autograd.grad(y, x, direction)[0] for y in outputs))


def test_rotary_positions_are_the_only_difference():
    """At one position nothing turns, and the weights have the same names and shapes."""
    configs = [
        GPT2Config(n_layer=2, n_head=2, n_embd=8, block_size=4, position=position)
        for position in ("learned", "rotary")
    ]
    learned, rotary = (GPT2Model(config).eval() for config in configs)
    rotary.load_state_dict(learned.state_dict())
    x = torch.randn(3, 1, 8)
    assert_equal(rotary(x), learned(x))
    x = torch.randn(3, 4, 8)
    assert_equal(rotary(x)[:, :1], learned(x)[:, :1])
    assert (rotary(x) - learned(x))[:, 1:].abs().max() > 1e-6


@pytest.mark.parametrize("position", ["learned", "rotary"])
def test_no_position_sees_the_future(position):
    torch.manual_seed(0)
    config = GPT2Config(n_layer=2, n_head=2, n_embd=8, block_size=4, position=position)
    model, x = GPT2Model(config).eval(), torch.randn(1, 9, 8)
    x, y = x.requires_grad_(), model(x)
    for t in range(9):
        gradient = torch.autograd.grad(y[0, t].square().sum(), x, retain_graph=True)[0]
        assert not gradient[0, t + 1 :].any()
        assert gradient[0, t].any()


def test_124m_on_the_meta_device():
    with torch.device("meta"):
        model = GPT2Model(GPT2Config.preset("gpt2"))
        y = model(torch.empty(1, 3, 768))
    assert y.shape == (1, 3, 768)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert sum(p.numel() for p in model.parameters()) == 85_056_000


def test_dropout_only_in_training():
    torch.manual_seed(0)
    attention = MultiHeadSelfAttention(GPT2Config(n_head=2, n_embd=8, dropout=0.5))
    attention.proj_dropout.p = 0.0  # what is left is the dropout of the weights
    x = torch.randn(1, 6, 8)
    assert not torch.equal(attention(x), attention(x))
    attention.eval()
    assert torch.equal(attention(x), attention(x))


def test_layers_without_a_bias_can_be_drawn_too():
    layer = torch.nn.Linear(64, 64, bias=False)
    initialise_weights(torch.nn.Sequential(layer), 2)
    assert 0.015 < layer.weight.std() < 0.025
