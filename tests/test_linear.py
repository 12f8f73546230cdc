"""`Linear` gives what `nn.Linear` gives, whichever of its ways it takes."""

import copy
import math
import pickle
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import assert_close, plain_logits, random_tokens
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from gpt2lib import linear
from gpt2lib.config import GPT2Config
from gpt2lib.kv_cache import KVCache
from gpt2lib.language_model import GPT2LMHeadModel
from gpt2lib.linear import Linear
from gpt2lib.quantize import quantize_int8

OUTPUTS = (352, 347, 1009, 2304)  # 347 and 1009 are prime: no groups, not aligned


def torch_linear(layer):
    """PyTorch's own layer with the weights of `layer`, shared."""
    twin = nn.Linear(layer.in_features, layer.out_features, device="meta")
    twin.weight, twin.bias = layer.weight, layer.bias
    return twin


class Products(TorchDispatchMode):
    """Write down which matrix products run."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        name = op.overloadpacket.__name__
        if name in ("mm", "bmm", "addmm"):
            self.names.append(name + (".out" if "out" in (kwargs or {}) else ""))
        return op(*args, **kwargs or {})


def product_of(layer, x):
    with Products() as products:
        layer(x)
    (name,) = products.names
    return name


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    n_out=st.sampled_from(OUTPUTS),
    bias=st.booleans(),
    shape=st.lists(st.integers(1, 9), max_size=3),
    seed=st.integers(0, 99),
)
def test_any_shape_gives_the_same_numbers(n_out, bias, shape, seed):
    torch.manual_seed(seed)
    layer = Linear(768, n_out, bias=bias)
    x = torch.randn(*shape, 768)
    with torch.inference_mode():
        y, expected = layer(x), torch_linear(layer)(x)
    assert y.shape == expected.shape
    torch.testing.assert_close(y, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("strides", ["transposed", "expanded", "every second"])
def test_input_may_lie_in_memory_as_it_likes(strides):
    x = {
        "transposed": torch.randn(768, 5).T,
        "expanded": torch.randn(1, 768).expand(5, -1),
        "every second": torch.randn(5, 2 * 768)[:, ::2],
    }[strides]
    for n_out in OUTPUTS:
        layer = Linear(768, n_out)
        with torch.no_grad():
            torch.testing.assert_close(layer(x), torch_linear(layer)(x))


def test_which_product_runs():
    wide, prime, small = Linear(768, 2304), Linear(768, 1009), Linear(64, 128)
    one, many = torch.randn(1, 768), torch.randn(linear._FEW + 1, 768)
    with torch.no_grad():
        assert product_of(wide, one) == product_of(wide, many[1:]) == "bmm"
        assert product_of(wide, many) == "addmm"
        assert product_of(prime, one) == product_of(prime, many) == "mm.out"
        assert product_of(small, torch.randn(1, 64)) == "addmm"
    assert product_of(wide, one) == "addmm", "with gradients it is nn.Linear"


def test_gradients_are_those_of_pytorch():
    for n_out in OUTPUTS:
        layer = Linear(768, n_out)
        gradients = []
        for each in (layer, torch_linear(layer)):
            x = torch.linspace(-1, 1, 2 * 768).view(2, 768).requires_grad_()
            inputs = (x, layer.weight, layer.bias)
            gradients.append(torch.autograd.grad(each(x).square().sum(), inputs))
        for ours, theirs in zip(*gradients, strict=True):
            assert torch.equal(ours, theirs)


def test_padded_rows_change_no_number_and_no_gradient():
    """The way that a GPU takes in training."""
    for n_out in OUTPUTS:
        layer = Linear(768, n_out)
        found = []
        for way in (layer._padded, torch_linear(layer)):
            x = torch.linspace(-1, 1, 2 * 768).view(1, 2, 768).requires_grad_()
            y = way(x)
            inputs = (x, layer.weight, layer.bias)
            found.append([y, *torch.autograd.grad(y.square().sum(), inputs)])
        for ours, theirs in zip(*found, strict=True):
            torch.testing.assert_close(ours, theirs)


def test_a_gpu_pads_in_training_alone():
    on_gpu = SimpleNamespace(device=torch.device("cuda"))
    head, even, small = Linear(768, 347), Linear(768, 352), Linear(8, 10)
    assert head._trains(on_gpu)
    assert not head._trains(torch.empty(3, 768))
    assert not even._trains(on_gpu)
    assert not small._trains(on_gpu)
    with torch.no_grad():  # a copy of all weights would cost more than it gives
        assert not head._trains(on_gpu)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_precisions_are_left_to_pytorch(dtype):
    layer = Linear(768, 347).to(dtype)
    x = torch.randn(3, 768, dtype=dtype)
    with torch.no_grad():
        assert torch.equal(layer(x), torch_linear(layer)(x))


def test_autocast_decides_the_precision():
    layer, x = Linear(768, 347), torch.randn(3, 768)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16


def test_another_width_or_precision_is_refused_as_pytorch_does():
    layer = Linear(768, 352)
    wrong = (
        torch.randn(2, 384),  # as many numbers as a row
        torch.randn(3, 769),
        torch.randn(()),
        torch.randn(1, 768).double(),
    )
    for x in wrong:
        with torch.no_grad():
            with pytest.raises(RuntimeError) as ours:
                layer(x)
            with pytest.raises(RuntimeError) as theirs:
                torch_linear(layer)(x)
        assert str(ours.value) == str(theirs.value)


def test_nothing_in_gives_nothing():
    with torch.no_grad():
        assert Linear(768, 352)(torch.randn(0, 5, 768)).shape == (0, 5, 352)


def test_not_finite_stays_not_finite():
    layer, x = Linear(768, 352), torch.randn(2, 768)
    x[0, 3] = math.nan
    with torch.no_grad():
        nan = layer(x).isnan()
    assert nan[0].all()
    assert not nan[1].any()


def test_it_is_a_linear_layer_to_everybody_else():
    layer = Linear(768, 2304)
    assert isinstance(layer, nn.Linear)
    assert layer.state_dict().keys() == nn.Linear(3, 3).state_dict().keys()
    assert repr(layer) == repr(nn.Linear(768, 2304))
    x = torch.randn(1, 768)
    with torch.no_grad():
        for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            assert torch.equal(twin(x), layer(x))
        before = layer(x)
        layer.weight[0] += 1  # the weights that count are those of now
        assert (layer(x) - before)[0, 0] == pytest.approx(x.sum().item(), abs=1e-4)


def test_result_can_be_changed_and_kept():
    layer, x = Linear(768, 352), torch.randn(1, 768)
    with torch.no_grad():
        first = layer(x)
        kept = first.clone()
        layer(torch.randn(1, 768))  # writes somewhere else
        assert torch.equal(first, kept)
        bias = layer.bias.clone()
        first.zero_()
        assert torch.equal(layer.bias, bias)


# ---- in the model: the other tests' models are too small for it


@pytest.fixture(params=["learned", "rotary"])
def wide_model(request):
    """A model whose layers all take the ways of `Linear`, its head the aligned one."""
    config = GPT2Config(
        2, 4, 512, vocab_size=521, block_size=16, dropout=0.0, position=request.param
    )
    torch.manual_seed(0)
    model = GPT2LMHeadModel(config).eval()
    layers = [m for m in model.modules() if isinstance(m, nn.Linear)]
    assert len(layers) == 9
    assert all(layer.weight.numel() >= linear._LARGE for layer in layers)
    return model


@torch.no_grad()
def test_logits_are_those_of_the_plain_implementation(wide_model):
    tokens = random_tokens(wide_model, 3, 16)
    with Products() as products:
        logits = wide_model(tokens)
    assert products.names.count("bmm") == 8
    assert products.names.count("mm.out") == 1
    assert_close(logits.double(), plain_logits(wide_model, tokens))


@torch.no_grad()
def test_cached_is_uncached(wide_model):
    tokens = random_tokens(wide_model, 2, 16)
    expected = wide_model(tokens)
    for sizes in ((1,) * 16, (5, 1, 7, 3), (15, 1)):
        cache = KVCache(wide_model.config, 2)
        parts = [wide_model(c, cache=cache) for c in tokens.split(sizes, 1)]
        assert_close(torch.cat(parts, 1), expected)


@torch.no_grad()
def test_int8_takes_these_layers_too(wide_model):
    eighth = quantize_int8(wide_model)
    assert not any(isinstance(layer, nn.Linear) for layer in eighth.modules())
    assert not any(layer.training for layer in eighth.modules())


@pytest.mark.parametrize("name", ["transformer.norm.weight", "lm_head.weight"])
def test_a_weight_that_is_no_number_is_refused_by_name(name):
    model = GPT2LMHeadModel(GPT2Config(1, 1, 8, 9, 4))
    model.get_parameter(name).data[3] = math.nan
    with pytest.raises(ValueError, match=r"weights must be finite .*\.weight is not"):
        quantize_int8(model)


def test_a_weight_of_another_size_is_left_to_pytorch():
    layer = Linear(512, 1024)
    layer.weight = nn.Parameter(torch.randn(1025, 512))
    layer.bias = None
    with torch.no_grad():
        assert layer(torch.randn(1, 512)).shape == (1, 1025)
