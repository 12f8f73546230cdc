"""Checkpoints: what is read, what is refused, what is written."""

import hashlib
import json
import os
import pickle
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from gpt2lib import pretrained
from gpt2lib.config import GPT2Config
from gpt2lib.language_model import GPT2LMHeadModel
from gpt2lib.pretrained import find_checkpoint, read_checkpoint, write_checkpoint

SMALL = GPT2Config(
    n_layer=2, n_head=2, n_embd=16, vocab_size=37, block_size=8, dropout=0.2
)
TOKENS = torch.arange(16).view(2, 8)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return GPT2LMHeadModel(SMALL).eval()


@pytest.fixture
def folder(model, tmp_path):
    """A sound checkpoint, for a test to break."""
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def tensors_of(folder):
    return load_file(folder / "model.safetensors")


def put(folder, tensors):
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def as_pickle(folder, content, **options):
    (folder / "model.safetensors").unlink()
    torch.save(content, folder / "pytorch_model.bin", **options)


def edit_config(folder, **changes):
    path = folder / "config.json"
    saved = json.loads(path.read_text("utf-8")) | changes
    saved = {key: value for key, value in saved.items() if value != "REMOVE"}
    path.write_text(json.dumps(saved), "utf-8")


# ---- read


def test_round_trip_to_the_bit(model, folder):
    again = GPT2LMHeadModel.from_pretrained(folder)
    assert again.config == SMALL
    assert not again.training
    assert again.lm_head.weight is again.token_embedding.weight
    assert all(p.requires_grad and not p.is_meta for p in again.parameters())
    assert all(p.is_contiguous() for p in again.parameters())
    assert torch.equal(again(TOKENS), model(TOKENS))


@pytest.mark.parametrize("prefix", ["", "transformer."])
@pytest.mark.parametrize("extras", [False, True])
@pytest.mark.parametrize("zipped", [None, True, False])
def test_every_dialect_of_names(model, folder, prefix, extras, zipped):
    """With and without the prefix, old buffers, a stored head; three file formats."""
    old = tensors_of(folder)
    tensors = {prefix + k.removeprefix("transformer."): t for k, t in old.items()}
    if extras:
        for n in range(SMALL.n_layer):
            tensors[f"{prefix}h.{n}.attn.bias"] = torch.ones(1, 1, 8, 8).bool()
            tensors[f"{prefix}h.{n}.attn.masked_bias"] = torch.tensor(-1e4)
        tensors["lm_head.weight"] = tensors[f"{prefix}wte.weight"].clone()
    if zipped is None:
        put(folder, tensors)
    else:
        as_pickle(folder, tensors, _use_new_zipfile_serialization=zipped)
    assert torch.equal(GPT2LMHeadModel.from_pretrained(folder)(TOKENS), model(TOKENS))


def test_openai_config_with_its_many_other_keys(folder):
    edit_config(
        folder,
        n_ctx=8,
        initializer_range=0.02,
        summary_type="cls_index",
        task_specific_params={"text-generation": {"do_sample": True}},
        embd_pdrop="REMOVE",
        attn_pdrop="REMOVE",
        tie_word_embeddings="REMOVE",
        scale_attn_weights="REMOVE",
        n_inner=64,
        activation_function="gelu_pytorch_tanh",
    )
    assert read_checkpoint(folder)[0] == SMALL


def shard(folder):
    tensors = tensors_of(folder)
    names = sorted(tensors)
    parts = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, folder / file)
    (folder / "model.safetensors").unlink()
    weight_map = {name: file for file, part in parts.items() for name in part}
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return index


def test_several_files(model, folder):
    shard(folder)
    assert torch.equal(GPT2LMHeadModel.from_pretrained(folder)(TOKENS), model(TOKENS))


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "a.bin", 3])
def test_an_index_cannot_point_elsewhere(folder, name):
    index = shard(folder)
    index["weight_map"]["wte.weight"] = name
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="index"):
        read_checkpoint(folder)


def test_a_missing_part_is_named(folder):
    shard(folder)
    (folder / "model-2.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="model-2"):
        read_checkpoint(folder)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_precision_is_kept(model, tmp_path, dtype):
    model.to(dtype).save_pretrained(tmp_path)
    again = GPT2LMHeadModel.from_pretrained(tmp_path)
    assert {p.dtype for p in again.parameters()} == {dtype}
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path, dtype="auto")
    assert theirs.dtype == dtype


def test_the_model_does_not_depend_on_the_file(model, folder):
    again = GPT2LMHeadModel.from_pretrained(folder)
    with open(folder / "model.safetensors", "r+b") as file:
        file.write(bytes(file.seek(0, os.SEEK_END)))
    assert torch.equal(again(TOKENS), model(TOKENS))


# ---- refuse


def refused(folder, *words, error=ValueError):
    with pytest.raises(error) as caught:
        GPT2LMHeadModel.from_pretrained(folder)
    for word in words:
        assert word in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model_type", "llama"),
        ("model_type", "REMOVE"),
        ("activation_function", "gelu"),
        ("activation_function", ["gelu_new"]),
        ("layer_norm_epsilon", 1e-6),
        ("n_inner", 63),
        ("scale_attn_weights", False),
        ("scale_attn_by_inverse_layer_idx", True),
        ("tie_word_embeddings", False),
        ("add_cross_attention", True),
        ("n_layer", "REMOVE"),
        ("position", "alibi"),
    ],
)
def test_another_architecture(folder, key, value):
    edit_config(folder, **{key: value})
    refused(folder, "config.json", key)


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("n_head", 3, "n_head"),
        ("n_layer", 0, "n_layer"),
        ("n_embd", "16", "n_embd"),
        ("n_positions", -1, "block_size"),
        ("vocab_size", 37.5, "vocab_size"),
        ("vocab_size", None, "vocab_size"),
        ("resid_pdrop", 1.5, "dropout"),
        ("resid_pdrop", "much", "dropout"),
    ],
)
def test_impossible_sizes(folder, key, value, named):
    edit_config(folder, **{key: value})
    refused(folder, "config.json", named, repr(value))


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", "[" * 100_000, "\xff"])
def test_config_that_is_no_config(folder, text):
    (folder / "config.json").write_text(text, "latin-1")
    refused(folder, "config.json")


def test_missing_folder_and_files(folder, tmp_path):
    for missing in (tmp_path / "nowhere", str(tmp_path / "nowhere")):
        refused(missing, "nowhere", error=FileNotFoundError)
        with pytest.raises(FileNotFoundError, match="nowhere"):
            read_checkpoint(missing)
    weights = folder / "model.safetensors"
    weights.unlink()
    refused(folder, weights.name, "pytorch_model.bin", error=FileNotFoundError)
    (folder / "config.json").unlink()
    refused(folder, "config.json", error=FileNotFoundError)


def test_tensors_that_do_not_fit_are_listed(folder):
    sound = tensors_of(folder)
    name = "transformer.h.1.mlp.c_proj.weight"
    turned = {name: sound[name].T.contiguous()}
    put(folder, sound | turned)
    refused(folder, "h.1.mlp.c_proj.weight (16, 64) instead of (64, 16)")
    put(folder, {k: t for k, t in sound.items() if ".h.1." not in k})
    refused(folder, "lacks h.1.ln_1.weight", "and 8 more")
    put(folder, sound | {"transformer.h.2.ln_1.bias": torch.ones(16)})
    refused(folder, "no place for h.2.ln_1.bias")
    put(folder, sound | {"wte.weight": torch.ones(37, 16)})
    refused(folder, "wte.weight twice")
    put(folder, sound | {"lm_head.weight": torch.ones(37, 16)})
    refused(folder, "lm_head.weight", "tied")
    put(folder, sound | {"transformer.ln_f.bias": torch.ones(16).half()})
    refused(folder, "float16", "float32")
    put(folder, {k: t.int() for k, t in sound.items()})
    refused(folder, "int32", "float32")


def test_sizes_that_belong_to_another_file(folder):
    edit_config(folder, vocab_size=38)
    refused(folder, "wte.weight (37, 16) instead of (38, 16)")


def test_safetensors_cut_anywhere(folder):
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    for end in (0, 1, 7, 8, 9, header // 2, header - 1, header, len(whole) - 1):
        path.write_bytes(whole[:end])
        refused(folder, "model.safetensors")


@pytest.mark.parametrize("zipped", [True, False])
def test_pickle_cut_anywhere(folder, zipped):
    as_pickle(folder, tensors_of(folder), _use_new_zipfile_serialization=zipped)
    path = folder / "pytorch_model.bin"
    whole = path.read_bytes()
    for end in [0, 1, 2, *range(3, len(whole), len(whole) // 40), len(whole) - 1]:
        path.write_bytes(whole[:end])
        refused(folder, "pytorch_model.bin")


class Attack:
    """Unpickling this calls `os.system`."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"echo > {self.path}",)


@pytest.mark.parametrize("how", ["plain", "zip", "legacy", "hidden"])
def test_a_pickle_cannot_run_code(folder, tmp_path, how):
    proof = tmp_path / "proof"
    attack = {"transformer.wte.weight": Attack(proof)}
    if how == "hidden":
        attack = tensors_of(folder) | {"transformer.h.0.attn.bias": Attack(proof)}
    as_pickle(folder, attack, _use_new_zipfile_serialization=how != "legacy")
    path = folder / "pytorch_model.bin"
    if how == "plain":
        path.write_bytes(pickle.dumps(attack, protocol=2))
    message = refused(folder, "pytorch_model.bin", "nothing of it was loaded or run")
    assert "weights_only" not in message  # the advice to turn the guard off
    assert not proof.exists()
    if how == "plain":
        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)
    assert proof.exists()  # the attack is a real one


@pytest.mark.parametrize(
    "content",
    [
        [torch.ones(3)],
        torch.ones(3),
        {"transformer.wte.weight": "text"},
        {"model": {"transformer.wte.weight": torch.ones(3)}},
        {1: torch.ones(3)},
        {"transformer.wte.weight": torch.ones(3, device="meta")},
        {"transformer.wte.weight": torch.ones(3, 3).to_sparse()},
    ],
    ids=["list", "tensor", "text", "nested", "number", "meta", "sparse"],
)
def test_pickles_of_something_else(folder, content):
    as_pickle(folder, content)
    refused(folder, "pytorch_model.bin", "by name")


def test_nothing_is_built_before_everything_is_checked(folder, monkeypatch):
    put(folder, {"transformer.wte.weight": torch.ones(37, 16)})

    def fail(*_):
        raise AssertionError("a model was made from a checkpoint that is not sound")

    monkeypatch.setattr(GPT2LMHeadModel, "__init__", fail)
    refused(folder, "lacks")


# ---- write


def test_transformers_reads_what_we_write(model, folder):
    theirs, report = transformers.GPT2LMHeadModel.from_pretrained(
        folder, output_loading_info=True
    )
    assert not any(report.values())
    torch.testing.assert_close(
        theirs.eval()(TOKENS).logits, model(TOKENS), rtol=0, atol=1e-6
    )
    assert theirs.config.resid_pdrop == theirs.config.embd_pdrop == 0.2
    assert theirs.config.attn_pdrop == 0.2


def test_what_is_written(folder):
    assert {p.name for p in folder.iterdir()} == {"config.json", "model.safetensors"}
    assert "position" not in json.loads((folder / "config.json").read_text("utf-8"))
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert set(file.keys()) == {
            f"transformer.{name}" for name in pretrained.checkpoint_layout(SMALL)
        }


def test_gpt2_keeps_its_end_of_text(tmp_path):
    config = GPT2Config(n_layer=1, n_head=1, n_embd=4, block_size=4)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text("utf-8"))
    assert saved["eos_token_id"] == saved["bos_token_id"] == 50256


def test_rotary_has_one_more_key_and_no_table(tmp_path):
    config = GPT2Config(1, 1, 4, vocab_size=5, block_size=3, position="rotary")
    layout = pretrained.checkpoint_layout(config)
    tensors = {
        ours: torch.randn(shape[::-1] if theirs.startswith("h.") else shape)
        for theirs, (ours, shape) in layout.items()
    }
    write_checkpoint(tmp_path, config, tensors)
    saved = json.loads((tmp_path / "config.json").read_text("utf-8"))
    assert saved["position"] == "rotary"
    again, found = read_checkpoint(tmp_path)
    assert again == config
    assert found.keys() == tensors.keys()
    assert "position_embedding.weight" not in found
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)


def test_a_failed_write_leaves_the_old_model(model, folder, monkeypatch):
    def fail(tensors, path, metadata):
        Path(path).write_bytes(b"half")
        raise OSError("no space left on device")

    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    monkeypatch.setattr(pretrained, "save_file", fail)
    with torch.no_grad():
        model.lm_head.weight += 1
    with pytest.raises(OSError, match="no space"):
        model.save_pretrained(folder)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_what_cannot_be_written(model, tmp_path):
    untied = GPT2LMHeadModel(SMALL)
    untied.lm_head.weight = torch.nn.Parameter(torch.ones(37, 16))
    with pytest.raises(ValueError, match="tied"):
        untied.save_pretrained(tmp_path)
    sound = model.state_dict()
    lacking = {k: t for k, t in sound.items() if k != "transformer.norm.bias"}
    with pytest.raises(ValueError, match=r"lacks ln_f\.bias"):
        write_checkpoint(tmp_path, SMALL, lacking)
    with pytest.raises(ValueError, match="no place for adapter"):
        write_checkpoint(tmp_path, SMALL, sound | {"adapter": torch.ones(1)})
    with pytest.raises(ValueError, match="instead of"):
        write_checkpoint(tmp_path, GPT2Config(2, 2, 16, 38, 8), sound)
    assert not list(tmp_path.iterdir())


# ---- find


def hub(monkeypatch, download):
    """Put a stand-in in the place of `huggingface_hub`."""
    stand_in = SimpleNamespace(snapshot_download=download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", stand_in)


def test_without_a_network_one_sentence_says_what_to_do(monkeypatch):
    def unreachable(name, allow_patterns):
        raise ConnectionError("name or service not known")

    hub(monkeypatch, unreachable)
    with pytest.raises(
        FileNotFoundError, match=r"'gpt2' .* check the name and the network"
    ):
        GPT2LMHeadModel.from_pretrained("gpt2")


@pytest.mark.parametrize("name", ["gpt2-", "gpt--2", "my..model", "x.git"])
def test_a_name_that_the_hub_refuses_is_not_found(name):
    with pytest.raises(
        FileNotFoundError, match=r"\(HFValidationError\): check the name"
    ):
        find_checkpoint(name)


@pytest.mark.parametrize("name", [Path("gpt2"), "./gpt2", "a/b/c", "../x", "~/gpt2"])
def test_a_path_is_never_asked_of_the_hub(monkeypatch, tmp_path, name):
    def forbidden(name, allow_patterns):
        raise AssertionError("the hub was asked for a path")

    hub(monkeypatch, forbidden)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError):
        find_checkpoint(name)


def cached(folder, cache, digest):
    """Lay `folder`'s weights out as the hub's cache does: a link to a named blob."""
    snapshot, blob = cache / "snapshot", cache / digest
    snapshot.mkdir(parents=True)
    (folder / "model.safetensors").rename(blob)
    (folder / "config.json").rename(snapshot / "config.json")
    (snapshot / "model.safetensors").symlink_to(blob)
    return snapshot


def test_a_download_is_checked_against_its_digest(model, folder, tmp_path, monkeypatch):
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    snapshot = cached(folder, tmp_path / "cache", digest)
    asked = []

    def download(name, allow_patterns):
        asked.append((name, *allow_patterns))
        return str(snapshot)

    hub(monkeypatch, download)
    again = GPT2LMHeadModel.from_pretrained("somebody/small")
    assert torch.equal(again(TOKENS), model(TOKENS))
    assert [name for name, *_ in asked] == ["somebody/small"]
    assert "pytorch_model.bin" not in asked[0]

    with open(tmp_path / "cache" / digest, "r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"?")
    with pytest.raises(ValueError, match="damaged: delete it"):
        GPT2LMHeadModel.from_pretrained("somebody/small")


def test_only_what_is_needed_is_downloaded(folder, monkeypatch):
    as_pickle(folder, tensors_of(folder))
    asked = []

    def download(name, allow_patterns):
        asked.append(allow_patterns)
        return str(folder)

    hub(monkeypatch, download)
    GPT2LMHeadModel.from_pretrained("gpt2")
    assert asked[1:] == [["pytorch_model.bin"]]
