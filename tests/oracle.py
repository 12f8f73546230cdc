"""A second implementation of the model, plain and slow, that the tests trust instead.

It shares no code with the library: float64, attention by a loop over positions, rotary
positions by complex numbers, GELU and LayerNorm written out.
"""

import gc
import itertools
import math

import torch

from gpt2lib.config import GPT2Config
from gpt2lib.language_model import GPT2LMHeadModel

POSITIONS = ("learned", "rotary")
# Blocks, heads, width, vocabulary, window. Heads 2 wide are the narrowest that rotate.
SHAPES = {
    "one-of-each": (1, 1, 8, 11, 4),
    "narrow-heads": (2, 4, 8, 7, 6),
    "one-feature-pair": (2, 1, 2, 5, 3),
    "window-of-one": (2, 2, 8, 5, 1),
    "deeper": (4, 3, 24, 31, 8),
}


def random_model(position, sizes=SHAPES["narrow-heads"], *, seed=0, dropout=0.0):
    """Return a model in evaluation mode, all of whose parameters are random.

    As they are initialised, biases are 0 and norms 1, where faults can hide.
    """
    names = ("n_layer", "n_head", "n_embd", "vocab_size", "block_size")
    sizes = dict(zip(names, sizes, strict=True))
    torch.manual_seed(seed)
    model = GPT2LMHeadModel(GPT2Config(**sizes, dropout=dropout, position=position))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=0.4).add_("norm" in name and "weight" in name)
    return model.eval()


def random_tokens(model, B, T, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(model.config.vocab_size, (B, T), generator=generator)


def assert_close(logits, expected, tolerance=1e-5):
    """Equal within `tolerance` of the largest logit, and numbers at all."""
    assert logits.shape == expected.shape
    difference = (logits - expected).abs().max().item()
    assert difference <= tolerance * expected.abs().max().item()  # NaN would fail


def compositions(n):
    """Every way to write `n` as a sum of positive integers, in every order."""
    for cuts in itertools.product((False, True), repeat=n - 1):
        ends = [i + 1 for i, cut in enumerate(cuts) if cut]
        yield [b - a for a, b in itertools.pairwise([0, *ends, n])]


def in_chunks(model, tokens, chunks, cache):
    """The logits of `tokens`, read in pieces of the lengths `chunks`."""
    pieces = tokens.split(chunks, dim=1)
    return torch.cat([model(piece, cache=cache) for piece in pieces], dim=1)


def by_policy(model, text):
    """The logits `(B, V)` of what follows `text`, as the book says, without a cache.

    Learned positions: the last `block_size` tokens, counted from 0. Rotary: all.
    """
    if model.config.position == "learned":
        text = text[:, -model.config.block_size :]
    with torch.no_grad():
        return model(text)[:, -1]


def rotate(x, positions, base=10000.0):
    """Rotary positions in complex numbers: feature i and i + D/2 are one number."""
    x, D = x.double(), x.size(-1)
    rates = [base ** (-2 * i / D) for i in range(D // 2)]
    rates = torch.tensor(rates, dtype=torch.float64)
    angles = positions.double()[:, None] * rates
    z = torch.complex(x[..., : D // 2], x[..., D // 2 :])
    z = z * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([z.real, z.imag], dim=-1)


def plain_logits(model, tokens, start=0):
    """The logits `(B, T, V)` in float64; rotary texts begin at position `start`."""
    config = model.config
    w = {name: value.double() for name, value in model.state_dict().items()}

    def norm(x, name):
        x = x - x.mean(-1, keepdim=True)
        x = x / ((x * x).mean(-1, keepdim=True) + 1e-5).sqrt()
        return x * w[f"{name}.weight"] + w[f"{name}.bias"]

    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def gelu(x):
        return x / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    (B, T), H, D = tokens.shape, config.n_head, config.n_embd // config.n_head
    x = w["token_embedding.weight"][tokens]
    if config.position == "learned":
        x = x + w["position_embedding.weight"][:T]
    for n in range(config.n_layer):
        block = f"transformer.blocks.{n}"
        y = linear(norm(x, f"{block}.norm1"), f"{block}.attention.qkv")
        q, k, v = (t.reshape(B, T, H, D).transpose(1, 2) for t in y.chunk(3, dim=-1))
        if config.position == "rotary":
            positions = torch.arange(start, start + T)
            q, k = rotate(q, positions), rotate(k, positions)
        read = torch.empty(B, T, H, D).double()
        for i in range(T):
            seen = [j for j in range(T) if i - config.block_size < j <= i]
            for b, h in itertools.product(range(B), range(H)):
                scores = [q[b, h, i] @ k[b, h, j] / math.sqrt(D) for j in seen]
                weights = torch.stack(scores).softmax(0)
                read[b, i, h] = weights @ v[b, h, seen]
        x = x + linear(read.flatten(2), f"{block}.attention.proj")
        y = gelu(linear(norm(x, f"{block}.norm2"), f"{block}.feedforward.expand"))
        x = x + linear(y, f"{block}.feedforward.proj")
    return norm(x, "transformer.norm") @ w["token_embedding.weight"].T


def held():
    """The bytes of all tensors alive, and how many there are."""
    kinds = (torch.Tensor, torch.nn.Parameter)
    objects = (o for o in gc.get_objects() if type(o) in kinds)
    tensors = [t for t in objects if t.layout == torch.strided]
    storages = {t.untyped_storage()._cdata: t.untyped_storage() for t in tensors}
    return sum(s.nbytes() for s in storages.values()), len(tensors)
