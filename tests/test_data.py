"""Corpora: what a name means, and token files that say when they are damaged."""

import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2lib.data import load_corpus, load_shakespeare, prepare
from gpt2lib.tokenizer import SPLIT, BPETokenizer, CharTokenizer

TEXT = "To be, or not to be: 🌹 that is the question.\n" * 20


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT, "utf-8")
    return path


def test_shakespeare_is_split_at_nine_tenths():
    corpus, text = load_corpus("shakespeare"), load_shakespeare()
    cut = len(text) * 9 // 10
    assert corpus.tokenizer.decode(corpus.train) == text[:cut]
    assert corpus.tokenizer.decode(corpus.validation) == text[cut:]
    assert corpus.digest == hashlib.sha256(text.encode()).hexdigest()


def test_hello_world_is_not_split():
    corpus = load_corpus("hello-world")
    for part in (corpus.train, corpus.validation):
        assert corpus.tokenizer.decode(part) == "hello world"


def test_a_text_file_is_read_by_characters(text_file):
    corpus = load_corpus(text_file)
    ids = np.concatenate([corpus.train, corpus.validation])
    assert corpus.tokenizer.decode(ids) == TEXT
    assert corpus.tokenizer.vocab_size == len(set(TEXT))


def test_token_files_are_those_of_tiktoken(text_file, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text("<|endoftext|> stays text", "utf-8")
    corpus = load_corpus(prepare([text_file, other], tmp_path / "tokens"))
    tokens = BPETokenizer.gpt2().tokens[:-1]
    gpt2 = tiktoken.Encoding(
        "gpt2",
        pat_str=SPLIT.pattern,
        mergeable_ranks={token: i for i, token in enumerate(tokens)},
        special_tokens={"<|endoftext|>": 50256},
    )
    expected = []
    for path in (text_file, other):
        expected += [*gpt2.encode_ordinary(path.read_text("utf-8")), 50256]
    assert [*corpus.train, *corpus.validation] == expected
    assert len(corpus.train) == len(expected) * 9 // 10
    raw = (tmp_path / "tokens" / "train.bin").read_bytes()
    assert raw[:2] == expected[0].to_bytes(2, "little")


@settings(deadline=None, derandomize=True, max_examples=30)
@given(texts=st.lists(st.text(min_size=1, max_size=40), min_size=1, max_size=3))
def test_what_is_written_is_read(texts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    paths = []
    for i, text in enumerate(texts):
        paths.append(folder / f"{i}.txt")
        paths[-1].write_bytes(text.encode("utf-8", "replace"))
    tokenizer = BPETokenizer.train("a small vocabulary", 260)
    corpus = load_corpus(prepare(paths, folder / "tokens", tokenizer))
    end = tokenizer.vocab_size - 1
    read, part = [], []
    for i in [*corpus.train, *corpus.validation]:
        if i == end:
            read.append(tokenizer.decode(part))
            part = []
        else:
            part.append(i)
    assert read == [text.encode("utf-8", "replace").decode("utf-8") for text in texts]


@pytest.mark.parametrize("use", [load_corpus, lambda path: prepare([path], "never")])
def test_what_is_no_text_is_refused(use, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    empty, latin = tmp_path / "empty", tmp_path / "latin"
    empty.write_bytes(b"")
    latin.write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match="empty is empty"):
        use(empty)
    with pytest.raises(ValueError, match="byte 3"):
        use(latin)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        use(tmp_path / "nowhere")
    assert not (tmp_path / "never").exists()


def test_prepare_does_not_write_over_anything(text_file, tmp_path):
    with pytest.raises(ValueError, match="new or empty"):
        prepare([text_file], tmp_path)
    with pytest.raises(ValueError, match="at least one"):
        prepare([], tmp_path / "tokens")


def test_damaged_folders_are_told(text_file, tmp_path):
    folder = prepare([text_file], tmp_path / "tokens")
    whole = (folder / "train.bin").read_bytes()
    (folder / "train.bin").write_bytes(whole[:-1])
    with pytest.raises(ValueError, match=r"train\.bin must hold"):
        load_corpus(folder)
    (folder / "train.bin").write_bytes(whole)
    load_corpus(folder)
    counts = json.loads((folder / "tokens.json").read_text())
    for content in ("{", "[]", json.dumps(counts | {"train": "many"}), "{}"):
        (folder / "tokens.json").write_text(content)
        with pytest.raises(ValueError, match=r"tokens\.json is damaged"):
            load_corpus(folder)
    (folder / "tokens.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"gpt2lib\.data"):
        load_corpus(folder)


def test_the_command(text_file, tmp_path):
    command = [sys.executable, "-m", "gpt2lib.data"]
    out = str(tmp_path / "tokens")
    done = subprocess.run(
        [*command, str(text_file), "--out", out], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    corpus = load_corpus(out)
    assert f"{len(corpus.train):,} tokens to train on" in done.stdout
    again = subprocess.run(
        [*command, str(text_file), "--out", out], capture_output=True, text=True
    )
    assert again.returncode == 2
    assert "new or empty" in again.stderr
    assert "Traceback" not in again.stderr


def test_one_path_and_another_tokenizer_are_refused_by_name(tmp_path):
    file, folder = tmp_path / "a.txt", tmp_path / "tokens"
    file.write_text("abc")
    for path in (file, str(file)):
        with pytest.raises(TypeError, match=r"paths must be a list of paths"):
            prepare(path, folder)
    with pytest.raises(TypeError, match=r"tokenizer must be .* got CharTokenizer"):
        prepare([file], folder, CharTokenizer.train("abc"))
    assert not folder.exists()
