"""What a notebook cannot check itself: formulas against PyTorch's own counters."""

import dataclasses

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from gpt2lib.config import GPT2Config, flops_by_part, memory_by_part
from gpt2lib.language_model import GPT2LMHeadModel


@pytest.mark.parametrize(("N", "H", "C", "T"), [(1, 1, 8, 5), (2, 4, 32, 16)])
def test_flops_are_those_that_pytorch_counts(N, H, C, T):
    config = GPT2Config(N, H, C, vocab_size=51, block_size=16)
    model = GPT2LMHeadModel(config).eval()
    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH):  # the others hide their products
        model(torch.zeros(1, T, dtype=torch.long))
    assert counter.get_total_flops() == sum(flops_by_part(config, T).values())


def test_config_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        GPT2Config().n_layer = 3


@pytest.mark.parametrize("name", ["gpt3", "", None])
def test_unknown_preset_names_the_known_ones(name):
    with pytest.raises(ValueError, match="gpt2-medium"):
        GPT2Config.preset(name)


@pytest.mark.parametrize("n_tokens", [0, -1, 2.5, True])
def test_costs_refuse_impossible_lengths(n_tokens):
    for cost in (flops_by_part, memory_by_part):
        with pytest.raises(ValueError, match="n_tokens"):
            cost(GPT2Config(), n_tokens=n_tokens)
