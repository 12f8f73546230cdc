"""A model as one file for the page: written and read back in Python."""

import json
import math
import os
import random
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
import torch
from conftest import HOSTILE, ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import random_model, random_tokens

from gpt2lib import web
from gpt2lib.language_model import GPT2LMHeadModel
from gpt2lib.quantize import quantize_int8
from gpt2lib.tokenizer import BPETokenizer, CharTokenizer, load_tokenizer
from gpt2lib.train import TrainConfig, train

few = settings(deadline=None, derandomize=True, max_examples=60)
SIZES = {
    "learned": (2, 3, 15, 17, 9),
    "rotary": (3, 5, 30, 31, 8),
    "smallest": (1, 1, 1, 1, 1),
}
CONFIG = {
    "n_layer": 1,
    "n_head": 1,
    "n_embd": 2,
    "vocab_size": 2,
    "block_size": 3,
    "position": "learned",
}
DTYPES = ("float32", "float16", "int8")
SUBNORMAL = 2**-126  # below this a step has few digits: nobody misses such weights


def letters(n):
    return CharTokenizer(chr(32 + i) for i in range(n))


def small(name="learned", seed=0):
    position = "rotary" if name == "rotary" else "learned"
    return random_model(position, SIZES[name], seed=seed)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "model.gpt2"


def parts_of(path):
    """What a file is made of: version, header, numbers; its check sum fits."""
    data = path.read_bytes()
    assert data[:8] == b"GPT2PAGE"
    version, length = struct.unpack("<II", data[8:16])
    assert struct.unpack("<I", data[-4:])[0] == zlib.crc32(data[:-4])
    return version, json.loads(data[16 : 16 + length]), data[16 + length : -4]


def forge(path, header, numbers, version=1):
    """A file with any header around any numbers; the check sum fits."""
    if not isinstance(header, bytes):
        header = json.dumps(header).encode()
    data = b"GPT2PAGE" + struct.pack("<II", version, len(header)) + header + numbers
    path.write_bytes(data + struct.pack("<I", zlib.crc32(data)))
    return path


# There and back -----------------------------------------------------------------------


@pytest.mark.parametrize("name", SIZES)
def test_float32_is_exact(file, name):
    model = small(name)
    assert web.export(model, letters(model.config.vocab_size), file, "float32") == file
    again, tokenizer = web.read(file)
    assert tokenizer.characters == letters(model.config.vocab_size).characters
    for field in (
        "n_layer",
        "n_head",
        "n_embd",
        "vocab_size",
        "block_size",
        "position",
    ):
        assert getattr(again.config, field) == getattr(model.config, field)
    assert not again.training
    assert again.lm_head.weight is again.token_embedding.weight
    state = again.state_dict()
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(state[key], x) for key, x in model.state_dict().items())
    tokens = random_tokens(model, 2, model.config.block_size)
    assert torch.equal(again(tokens), model(tokens))


@pytest.mark.parametrize("name", SIZES)
def test_float16_is_the_nearest(file, name):
    model = small(name)
    web.export(model, letters(model.config.vocab_size), file, "float16")
    state = web.read(file)[0].state_dict()
    for key, x in model.state_dict().items():
        wanted = x.half().float() if x.dim() == 2 else x
        assert torch.equal(state[key], wanted), key


@pytest.mark.parametrize("name", SIZES)
def test_int8_is_within_half_a_step(file, name):
    model = small(name)
    web.export(model, letters(model.config.vocab_size), file, "int8")
    state = web.read(file)[0].state_dict()
    for key, x in model.state_dict().items():
        if x.dim() == 1:
            assert torch.equal(state[key], x), key
        else:
            step = x.abs().amax(1, keepdim=True) / 127
            assert ((state[key] - x).abs() <= 0.5001 * step).all(), key
            largest = x.abs().argmax(1, keepdim=True)
            assert torch.allclose(state[key].gather(1, largest), x.gather(1, largest))


row = st.lists(
    st.floats(-(2.0**127), 2.0**127, width=32)
    | st.floats(-1, 1, width=32)
    | st.just(0.0),
    min_size=3,
    max_size=3,
)


def with_rows(rows):
    """A model whose token embedding begins with the rows, each three numbers long."""
    model = random_model("learned", (1, 1, 3, 5, 2))
    with torch.no_grad():
        model.token_embedding.weight[: len(rows)] = torch.tensor(rows)
    return model


@given(rows=st.lists(row, min_size=1, max_size=5))
@few
def test_any_numbers_in_any_dtype(tmp_path_factory, rows):
    file = tmp_path_factory.getbasetemp() / "any.gpt2"
    model = with_rows(rows)
    x = model.token_embedding.weight
    web.export(model, letters(5), file, "float32")
    assert torch.equal(web.read(file)[0].token_embedding.weight, x)
    if x.abs().max() > 65519:
        with pytest.raises(ValueError, match=r"token_embedding.weight.*float16"):
            web.export(model, letters(5), file, "float16")
    else:
        web.export(model, letters(5), file, "float16")
        assert torch.equal(web.read(file)[0].token_embedding.weight, x.half().float())
    web.export(model, letters(5), file, "int8")
    found = web.read(file)[0].token_embedding.weight.double()
    step = x.double().abs().amax(1, keepdim=True) / 127
    assert ((found - x).abs() <= 0.5001 * step + SUBNORMAL).all()


@pytest.mark.parametrize(
    "size",
    [2.5e-43, 1.3e-42, 1e-40, 1e-38, 3.4028234e38, torch.finfo(torch.float32).max],
)
def test_int8_at_the_ends_of_the_range(file, size):
    """Where a step has few digits or is next to overflow."""
    model = with_rows([[size, -size, size / 3], [0.0, 0.0, size]])
    web.export(model, letters(5), file, "int8")
    found = web.read(file)[0].token_embedding.weight[:2].double()
    x = model.token_embedding.weight[:2].double()
    assert found.isfinite().all()
    assert ((found - x).abs() <= max(size / 127, SUBNORMAL)).all()


def test_rows_of_zeros(file):
    model = with_rows([[0.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    for dtype in DTYPES:
        web.export(model, letters(5), file, dtype)
        found = web.read(file)[0].token_embedding.weight[:2]
        assert found.tolist() == [[0, 0, 0], [0, 1, 0]]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_models_in_other_dtypes(file, dtype):
    model = small().to(dtype)
    web.export(model, letters(17), file, "float32")
    for key, x in web.read(file)[0].state_dict().items():
        assert x.dtype == torch.float32
        assert torch.equal(x, model.state_dict()[key].float())


def test_float64_beyond_float32(file):
    model = small().double()
    with torch.no_grad():
        model.transformer.norm.weight[0] = 1e300
    with pytest.raises(ValueError, match=r"transformer\.norm\.weight"):
        web.export(model, letters(17), file, "float32")


def test_the_model_is_left_as_it_was(file):
    model = small().train()
    before = {key: x.clone() for key, x in model.state_dict().items()}
    web.export(model, letters(17), file)
    assert model.training
    assert all(torch.equal(before[key], x) for key, x in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())


CHARACTERS = ["\n \"\\'</script>\0\x1f\u2028\ud7ff\ue000🙂\U0010ffff\ufeffé\x85"]
CHARACTERS += ["\ufeffab", "a", "0"]


@pytest.mark.parametrize("characters", CHARACTERS, ids=ascii)
def test_characters_come_back(file, characters):
    tokenizer = CharTokenizer(dict.fromkeys(characters))
    model = random_model("learned", (1, 1, 2, tokenizer.vocab_size, 3))
    web.export(model, tokenizer, file)
    assert web.read(file)[1].characters == tokenizer.characters


@given(st.lists(st.characters(), min_size=1, max_size=40, unique=True))
@few
def test_any_characters_come_back_or_are_refused(tmp_path_factory, characters):
    """A lone surrogate, which UTF-8 cannot hold, may be refused."""
    file = tmp_path_factory.getbasetemp() / "characters.gpt2"
    file.unlink(missing_ok=True)
    model = random_model("learned", (1, 1, 2, len(characters), 3))
    try:
        web.export(model, CharTokenizer(characters), file)
    except ValueError:
        assert any("\ud800" <= character <= "\udfff" for character in characters)
        assert not file.exists()
    else:
        assert web.read(file)[1].characters == characters


@pytest.mark.parametrize("text", ["", "abab" * 20, "Zoë, 🙂 und 🙂. " * 20])
def test_bytes_come_back(file, text):
    tokenizer = BPETokenizer.train(text, 300)
    model = random_model("rotary", (1, 1, 2, tokenizer.vocab_size, 3))
    web.export(model, tokenizer, file)
    again = web.read(file)[1]
    assert again.tokens == tokenizer.tokens
    assert again.merges == tokenizer.merges
    assert again.encode(text + HOSTILE) == tokenizer.encode(text + HOSTILE)


# What lies in the file ----------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SIZES)
def test_the_file_is_as_the_book_says(file, name, dtype):
    """Read by a second reader, which knows the format alone."""
    model = small(name)
    config, C = model.config, model.config.n_embd
    web.export(model, letters(config.vocab_size), file, dtype)
    version, header, numbers = parts_of(file)
    assert version == 1
    assert header == {
        "name": "model",
        "precision": dtype,
        "config": {
            "n_layer": config.n_layer,
            "n_head": config.n_head,
            "n_embd": C,
            "vocab_size": config.vocab_size,
            "block_size": config.block_size,
            "position": config.position,
        },
        "tokenizer": {
            "kind": "characters",
            "characters": "".join(letters(config.vocab_size).characters),
        },
    }
    order = ["token_embedding.weight"]
    order += ["position_embedding.weight"] * (config.position == "learned")
    for n in range(config.n_layer):
        for part in (
            "norm1",
            "attention.qkv",
            "attention.proj",
            "norm2",
            "feedforward.expand",
            "feedforward.proj",
        ):
            order += [f"transformer.blocks.{n}.{part}.{kind}" for kind in WB]
    order += [f"transformer.norm.{kind}" for kind in WB]
    assert list(web.tensor_shapes(config)) == order
    at = 0
    for key in order:
        x = model.state_dict()[key]
        kind = "<f4" if x.dim() == 1 else KINDS[dtype]
        scales = 1.0
        if kind == "i1":
            scales = np.frombuffer(numbers, "<f4", len(x), at)[:, None]
            at += 4 * len(x)
        found = np.frombuffer(numbers, kind, x.numel(), at).reshape(x.shape) * scales
        at += x.numel() * np.dtype(kind).itemsize
        bound = {"<f4": 0, "<f2": 2**-11, "i1": 0.6 / 127}[kind] * x.abs().max().item()
        assert np.abs(found - x.numpy()).max() <= bound, key
    assert at == len(numbers)


WB = ("weight", "bias")
KINDS = {"float32": "<f4", "float16": "<f2", "int8": "i1"}


def test_int8_is_the_default_and_the_smallest(tmp_path):
    model = small("rotary")
    sizes = {}
    for dtype in DTYPES:
        path = tmp_path / dtype
        web.export(model, letters(31), path, dtype)
        sizes[dtype] = path.stat().st_size
    path = web.export(model, letters(31), tmp_path / "int8.gpt2", name="int8")
    assert path.read_bytes() == (tmp_path / "int8").read_bytes()
    assert sizes["int8"] < sizes["float16"] < sizes["float32"]


def test_names(tmp_path):
    for name, wanted in (
        (None, "a b"),
        ("", ""),
        ("My Model", "My Model"),
        (HOSTILE, HOSTILE),
        ("x" * 500, "x" * 200),
    ):
        path = web.export(small(), letters(17), tmp_path / "a b.gpt2", name=name)
        assert parts_of(path)[1]["name"] == wanted
        web.read(path)


def test_a_path_as_text(tmp_path):
    path = web.export(small(), letters(17), str(tmp_path / "a.gpt2"))
    assert path == tmp_path / "a.gpt2"
    web.read(str(path))


def test_the_shipped_model_fits_the_page(file):
    model = GPT2LMHeadModel.from_pretrained("shakespeare-char")
    web.export(model, load_tokenizer("shakespeare-char"), file)
    assert file.stat().st_size < 2_500_000
    again, tokenizer = web.read(file)
    tokens = torch.tensor([tokenizer.encode("First Citizen:\nBefore we proceed")])
    with torch.no_grad():
        p, q = model(tokens).softmax(-1), again(tokens).softmax(-1)
    assert (p - q).abs().max() < 0.02


# Refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"model": None}, TypeError, "model must be a GPT2LMHeadModel"),
        ({"model": torch.nn.Linear(2, 2)}, TypeError, "got Linear"),
        ({"tokenizer": None}, TypeError, "tokenizer.*NoneType"),
        ({"tokenizer": "abc"}, TypeError, "tokenizer.*str"),
        (
            {"tokenizer": letters(16)},
            ValueError,
            "tokenizer.*17.*16|tokenizer.*16.*17",
        ),
        ({"tokenizer": BPETokenizer([])}, ValueError, "257"),
        ({"dtype": "float64"}, ValueError, "dtype.*int8.*float64"),
        ({"dtype": None}, ValueError, "dtype"),
        ({"dtype": torch.int8}, ValueError, "dtype"),
        ({"name": "\ud800"}, ValueError, "name|surrogate"),
        ({"path": None}, TypeError, "path|str"),
    ],
)
def test_export_refuses(file, change, error, words):
    good = {"model": small(), "tokenizer": letters(17), "path": file}
    with pytest.raises(error, match=words):
        web.export(**good | change)
    assert list(file.parent.iterdir()) == []


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", DTYPES)
def test_numbers_that_are_none(file, dtype, value):
    for key in web.tensor_shapes(small().config):
        model = small()
        with torch.no_grad():
            model.get_parameter(key).flatten()[-1] = value
        with pytest.raises(ValueError, match=key.replace(".", r"\.")):
            web.export(model, letters(17), file, dtype)
    assert list(file.parent.iterdir()) == []


def test_a_head_of_its_own_would_be_lost(file):
    model = small()
    model.lm_head.weight = torch.nn.Parameter(torch.randn(17, 15))
    with pytest.raises(ValueError, match="lm_head"):
        web.export(model, letters(17), file)


def test_an_older_file_survives(file, monkeypatch):
    web.export(small(), letters(17), file)
    before = file.read_bytes()
    broken = small()
    with torch.no_grad():
        broken.transformer.norm.bias[0] = math.nan
    for bad in (
        {"model": broken},
        {"tokenizer": letters(3)},
        {"dtype": "int4"},
        {"name": "\udfff"},
    ):
        good = {"model": small(seed=1), "tokenizer": letters(17), "path": file}
        with pytest.raises(ValueError, match=r"must|finite|encode"):
            web.export(**good | bad)
        assert file.read_bytes() == before

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        web.export(small(seed=1), letters(17), file)
    assert file.read_bytes() == before
    assert list(file.parent.iterdir()) == [file]


def test_no_such_folder(tmp_path):
    with pytest.raises(OSError, match="nowhere"):
        web.export(small(), letters(17), tmp_path / "nowhere" / "a.gpt2")
    with pytest.raises(OSError, match=tmp_path.name):
        web.export(small(), letters(17), tmp_path)
    with pytest.raises(FileNotFoundError):
        web.read(tmp_path / "a.gpt2")


# Damaged files: always a ValueError that says which file ------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A small file, with its header and its numbers."""
    path = tmp_path_factory.mktemp("whole") / "whole.gpt2"
    model = random_model("learned", (1, 1, 2, 2, 3))
    web.export(model, CharTokenizer("ab"), path, "float32", name="t")
    return path.read_bytes(), *parts_of(path)[1:]


def assert_refused(path, words="gpt2"):
    with pytest.raises(ValueError, match=words) as caught:
        web.read(path)
    assert type(caught.value) is ValueError, repr(caught.value)
    message = str(caught.value)
    assert path.name in message
    assert len(message) < 600


def test_cut_short_anywhere(file, whole):
    data = whole[0]
    for end in range(len(data)):
        file.write_bytes(data[:end])
        assert_refused(file)


def test_any_byte_changed(file, whole):
    data = bytearray(whole[0])
    for at in range(len(data)):
        for flip in (1, 0x20, 0x80):
            data[at] ^= flip
            file.write_bytes(data)
            assert_refused(file)
            data[at] ^= flip


def test_something_after_the_end(file, whole):
    data, header, numbers = whole
    for more in (b"\0", bytes(4), bytes(100)):
        file.write_bytes(data + more)
        assert_refused(file)
        forge(file, header, numbers + more)
        assert_refused(file)


def test_numbers_missing_although_the_sum_fits(file, whole):
    _, header, numbers = whole
    for end in (0, 1, 4, 100, len(numbers) - 4, len(numbers) - 1):
        forge(file, header, numbers[:end])
        assert_refused(file)


@pytest.mark.parametrize("version", [0, 2, 2**32 - 1])
def test_another_version(file, whole, version):
    forge(file, *whole[1:], version)
    assert_refused(file, f"version {version}")


def test_a_header_longer_than_the_file(file, whole):
    data = whole[0]
    for length in (len(data), 2**31, 2**32 - 1):
        changed = data[:12] + struct.pack("<I", length) + data[16:-4]
        file.write_bytes(changed + struct.pack("<I", zlib.crc32(changed)))
        assert_refused(file)


def sized(**changes):
    return {"config": CONFIG | changes}


def bytes_of(*merges):
    stated = {"kind": "bytes", "merges": list(merges)}
    return {"tokenizer": stated, **sized(vocab_size=257 + len(merges))}


HEADERS = {
    "nothing": b"",
    "no JSON": b"{name: 1}",
    "no UTF-8": b'{"name": "\xff"}',
    "deep": b"[" * 100_000 + b"]" * 100_000,
    "long digits": b'{"name":"t","precision":' + b"9" * 10_000 + b"}",
    "null": b"null",
    "a list": b"[]",
    "a number": b"7",
    "a string": b'"name"',
    "an empty object": b"{}",
    "no precision": {"precision": None},
    "other precision": {"precision": "float64"},
    "precision a list": {"precision": ["int8"]},
    "no config": {"config": None},
    "config a list": {"config": [1, 1, 2, 2, 3]},
    "no sizes": {"config": {}},
    "one size missing": {"config": dict(list(CONFIG.items())[1:])},
    "a size too many": {"config": CONFIG | {"n_kv": 2}},
    "dropout": {"config": CONFIG | {"dropout": "x"}},
    **{
        f"{name} {value!r:.12}": sized(**{name: value})
        for name in CONFIG
        for value in (0, -1, 1.5, "2", None, True, [2], {}, 1e308, math.nan)
    },
    "n_head 3": sized(n_head=3),
    "odd heads": sized(n_head=2, position="rotary"),
    "large": sized(n_embd=10**6),
    "a large vocabulary": sized(vocab_size=10**9),
    "a large window": sized(block_size=10**30),
    "other vocabulary": sized(vocab_size=3),
    "no tokenizer": {"tokenizer": None},
    "tokenizer a list": {"tokenizer": ["characters", "ab"]},
    "tokenizer empty": {"tokenizer": {}},
    "other kind": {"tokenizer": {"kind": "words", "characters": "ab"}},
    "no characters": {"tokenizer": {"kind": "characters"}},
    "characters a number": {"tokenizer": {"kind": "characters", "characters": 7}},
    "characters in lists": {"tokenizer": {"kind": "characters", "characters": [[1]]}},
    "characters twice": {"tokenizer": {"kind": "characters", "characters": "aa"}},
    "characters empty": {"tokenizer": {"kind": "characters", "characters": ""}},
    "no merges": {"tokenizer": {"kind": "bytes"}},
    "merges a number": {"tokenizer": {"kind": "bytes", "merges": 7}},
    "merges an object": {"tokenizer": {"kind": "bytes", "merges": {"ab": 1}}},
    "merges twice": bytes_of([0, 1], [0, 1]),
    "two merges, one token": bytes_of([0, 0], [256, 0], [0, 256]),
    **{
        f"merge {pair!r:.20}": bytes_of([0, 1], pair)
        for pair in (
            [257, 0],
            [0, 258],
            [-1, 0],
            [0.5, 0],
            ["0", 1],
            [0],
            [0, 1, 2],
            None,
            7,
            "01",
            [[0], 1],
            [True, False],
        )
    },
}


def forge_with(path, whole, changes):
    """The small file with another header, and as many numbers as it may want."""
    _, header, numbers = whole
    if isinstance(changes, bytes):
        return forge(path, changes, numbers)
    header |= changes
    config = header["config"]
    V = config.get("vocab_size") if isinstance(config, dict) else None
    more = 4 * config["n_embd"] * (V - 2) if V in (259, 260) else 0
    return forge(path, header, bytes(more) + numbers)


@pytest.mark.parametrize("name", HEADERS)
def test_hostile_headers(file, whole, name):
    """The check sum is right, so nothing but the header can be at fault."""
    assert_refused(forge_with(file, whole, HEADERS[name]))


IN_TIME = """
import resource, sys
from gpt2lib import web
resource.setrlimit(resource.RLIMIT_DATA, (4 << 30, 4 << 30))
resource.setrlimit(resource.RLIMIT_CPU, (20, 20))
for path in sys.argv[1:]:
    try:
        web.read(path)
    except ValueError as error:
        print("refused:", error)
"""
DOUBLING = [[0, 0], *([255 + i, 255 + i] for i in range(1, 50))]


@pytest.mark.parametrize("kind", ["layers", "merges"])
def test_what_would_fill_the_memory(tmp_path, whole, kind):
    """In a process of its own, which has some memory and some time."""
    counts = (10**6, 10**9, 10**30)
    hostile = [sized(n_layer=n, position="rotary") for n in counts]
    if kind == "merges":  # fifty suffice for a token of 10**15 bytes
        hostile = [bytes_of(*DOUBLING)]
    paths = [
        forge_with(tmp_path / f"{n}.gpt2", whole, changes)
        for n, changes in enumerate(hostile)
    ]
    command = [sys.executable, "-c", IN_TIME, *paths]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert result.stdout.count("refused:") == len(paths), result.stderr[-200:]


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("dtype", DTYPES)
def test_numbers_in_a_file_that_are_none(tmp_path, dtype, value):
    """As the page does, Python refuses them."""
    path = web.export(
        random_model("learned", (1, 1, 2, 2, 3)),
        CharTokenizer("ab"),
        tmp_path / "a.gpt2",
        dtype,
    )
    _, header, numbers = parts_of(path)
    bad = struct.pack("<f", value)
    forge(path, header, numbers[:-4] + bad)
    assert_refused(path, "norm.bias")
    first = struct.pack("<e", value) if dtype == "float16" else bad
    forge(path, header, first + numbers[len(first) :])
    assert_refused(path, "token_embedding")


def test_random_bytes(file):
    rng = random.Random(0)
    for _ in range(300):
        start = rng.choice([b"", b"GPT2PAGE", b"GPT2PAGE\1\0\0\0"])
        data = start + rng.randbytes(rng.randint(0, 60))
        file.write_bytes(data + struct.pack("<I", zlib.crc32(data)))
        assert_refused(file)


# The command --------------------------------------------------------------------------


def run(*arguments, cwd=ROOT):
    return subprocess.run(
        [sys.executable, "-m", "gpt2lib.web", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder as training leaves it."""
    folder = tmp_path_factory.mktemp("run")
    text = folder / "text.txt"
    text.write_text("to be or not to be, that is the question. " * 60)
    train(
        TrainConfig(
            data=str(text),
            out=str(folder / "out"),
            n_layer=1,
            n_head=2,
            n_embd=8,
            block_size=16,
            n_steps=2,
            batch_size=2,
        ),
        watch=None,
    )
    return folder / "out"


def test_command(trained, tmp_path):
    out = tmp_path / "my-model.gpt2"
    result = run(trained, "-o", out, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    model, tokenizer = web.read(out)
    assert str(out) in result.stdout
    assert f"{model.config.num_parameters:,} parameters" in result.stdout
    assert f"{out.stat().st_size:,} bytes" in result.stdout
    wanted = GPT2LMHeadModel.from_pretrained(trained)
    assert model.config.position == wanted.config.position
    tokens = torch.tensor([tokenizer.encode("to be or not")])
    with torch.no_grad():
        assert (model(tokens) - wanted(tokens)).abs().max() < 0.05
    version, header, _ = parts_of(out)
    assert (version, header["name"], header["precision"]) == (1, "my-model", "int8")


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_command_in_other_dtypes(trained, tmp_path, dtype, capsys):
    out = tmp_path / "a.gpt2"
    web._main([str(trained), "--out", str(out), "--dtype", dtype])
    assert parts_of(out)[1]["precision"] == dtype
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_command_of_a_shipped_model(tmp_path, capsys):
    web._main(["shakespeare-char", "-o", str(tmp_path / "a.gpt2")])
    assert web.read(tmp_path / "a.gpt2")[1].vocab_size == 64


def test_command_says_in_a_line_what_is_wrong(trained, tmp_path, capsys):
    out = tmp_path / "a.gpt2"
    empty, damaged = tmp_path / "empty", tmp_path / "damaged"
    empty.mkdir()
    damaged.mkdir()
    for path in trained.iterdir():
        if path.is_file():
            (damaged / path.name).write_bytes(path.read_bytes()[:40])
    model_only = tmp_path / "model-only"
    model_only.mkdir()
    for name in ("config.json", "model.safetensors"):
        (model_only / name).write_bytes((trained / name).read_bytes())
    cases = [
        ([tmp_path / "nowhere", "-o", out], "nowhere"),
        ([empty, "-o", out], "config.json"),
        ([damaged, "-o", out], "damaged"),
        ([model_only, "-o", out], "characters.json"),
        ([trained, "-o", tmp_path / "no" / "folder.gpt2"], "folder.gpt2"),
        ([trained, "-o", tmp_path], str(tmp_path)),
        ([trained, "-o", out, "--dtype", "int4"], "int4"),
        ([trained], "--out"),
        ([], "model"),
    ]
    for arguments, words in cases:
        with pytest.raises(SystemExit) as caught:
            web._main([str(argument) for argument in arguments])
        assert caught.value.code == 2
        said = capsys.readouterr()
        assert said.out == ""
        *usage, last = said.err.splitlines()
        assert last.startswith("python -m gpt2lib.web: error: ")
        assert words in last
        assert usage[0].startswith("usage: ")
        assert len(usage) <= 4
    assert not out.exists()


def test_command_without_a_traceback(tmp_path):
    result = run(tmp_path / "nowhere", "-o", tmp_path / "a.gpt2")
    assert result.returncode == 2
    assert "Traceback" not in result.stderr


def test_a_quantised_model_is_refused(tmp_path):
    model = quantize_int8(random_model("rotary", (1, 1, 8, 3, 4)))
    with pytest.raises(TypeError, match="a quantised one cannot be exported"):
        web.export(model, CharTokenizer("abc"), tmp_path / "model.gpt2")
    assert not list(tmp_path.iterdir())
