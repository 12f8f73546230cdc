"""Train the small character model that ships with the library, and write its card.

    python tools/train_shakespeare.py           about a quarter of an hour on two cores
    python tools/train_shakespeare.py --steps 20 --out model    a quick look

Phase 0's loop, cross-entropy of the next character and AdamW, as in Phase 3; a warm-up
and a cosine for the learning rate, and clipped gradients, are all that is added. The
last tenth of the plays is held out. The folder holds the model in Hugging Face's
format, its tokenizer, and `card.json`: how it was made, and its loss over the whole
held-out text.
"""

import argparse
import json
import math
import os
import platform
import re
import sys
import time
from datetime import date
from pathlib import Path

import torch
from torch.nn import functional as F
from tqdm import tqdm

from gpt2lib.config import GPT2Config
from gpt2lib.data import load_corpus
from gpt2lib.language_model import GPT2LMHeadModel
from gpt2lib.training_loop import fit, keep_freed_memory

ROOT = Path(__file__).resolve().parent.parent
BATCH_SIZE, LENGTH = 16, 128
PEAK_RATE, WARM_UP, WEIGHT_DECAY, SEED = 4e-3, 100, 0.1, 0


def random_texts(ids, generator):
    """Yield batches of texts `(BATCH_SIZE, LENGTH + 1)` from anywhere in `ids`."""
    windows = ids.unfold(0, LENGTH + 1, 1)  # a view: nothing is copied
    while True:
        starts = torch.randint(len(windows), (BATCH_SIZE,), generator=generator)
        yield windows[starts]


@torch.no_grad()
def validation_loss(model, ids):
    """Return the mean loss over all of `ids`, in consecutive windows of `block_size`.

    Each window predicts from its second token on, and its last token opens the next
    window, so that every token but the first is predicted once.
    """
    T = model.config.block_size
    nats = 0.0
    for start in range(0, len(ids) - 1, T):
        window = ids[start : start + T + 1]
        logits = model(window[None, :-1])
        nats += F.cross_entropy(logits[0], window[1:], reduction="sum").item()
    return nats / (len(ids) - 1)


def learning_rate(step, n_steps):
    """Rise over `WARM_UP` steps, then fall along a cosine to a tenth."""
    if step < WARM_UP:
        return PEAK_RATE * (step + 1) / WARM_UP
    done = (step - WARM_UP) / max(1, n_steps - WARM_UP)
    return PEAK_RATE * (0.55 + 0.45 * math.cos(math.pi * done))


def train(model, ids, n_steps):
    """Train `model` in place on batches drawn from `ids`."""
    matrices = [p for p in model.parameters() if p.dim() == 2]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    optimizer = torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": WEIGHT_DECAY},
            {"params": vectors, "weight_decay": 0.0},
        ],
        betas=(0.9, 0.95),
        fused=True,
    )

    def before_step(step):
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, n_steps)

    def loss_of(texts):
        logits = model(texts[:, :-1])
        return F.cross_entropy(logits.flatten(0, 1), texts[:, 1:].flatten())

    with tqdm(total=n_steps, file=sys.stdout, mininterval=5) as progress:
        fit(
            random_texts(ids, torch.Generator().manual_seed(SEED)),
            loss_of,
            optimizer,
            n_steps=n_steps,
            before_step=before_step,
            after_step=lambda step, loss: progress.update(),
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=4000, help="default: 4000")
    default = ROOT / "gpt2lib" / "static" / "shakespeare-char"
    parser.add_argument("--out", type=Path, default=default)
    args = parser.parse_args()

    corpus = load_corpus("shakespeare")
    tokenizer = corpus.tokenizer
    keep_freed_memory()
    torch.manual_seed(SEED)
    config = GPT2Config(
        4, 4, 128, vocab_size=tokenizer.vocab_size, block_size=LENGTH, dropout=0.0
    )
    model = GPT2LMHeadModel(config)
    start = time.perf_counter()
    train(model, torch.from_numpy(corpus.train), args.steps)
    seconds = time.perf_counter() - start

    loss = validation_loss(model.eval(), torch.from_numpy(corpus.validation))

    model.save_pretrained(args.out)
    tokenizer.save(args.out)
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    card = {
        "command": f"python tools/train_shakespeare.py --steps {args.steps}",
        "date": date.today().isoformat(),
        "machine": f"{os.cpu_count()} cores of {cpu[1] if cpu else platform.machine()}",
        "torch": torch.__version__,
        "seed": SEED,
        "data": "load_shakespeare(), its last tenth held out",
        "data_sha256": corpus.digest,
        "parameters": config.num_parameters,
        "seconds": round(seconds),
        "validation_loss": round(loss, 4),
    }
    (args.out / "card.json").write_text(json.dumps(card, indent=1) + "\n")
    print(json.dumps(card, indent=1))


if __name__ == "__main__":
    main()
