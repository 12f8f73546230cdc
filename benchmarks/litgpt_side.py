"""The side of `litgpt` in `generation.py`, run by an interpreter that has it.

    python -m venv /path/to/it && /path/to/it/bin/pip install -r requirements-litgpt.txt

Its model, its cache and its generation, with the weights of our checkpoint in its
names: GPT-2's sizes, norms, GELU and tied head, but rotary positions, as it has no
table of positions.
"""

import json
import sys
from pathlib import Path

import torch
from litgpt.config import Config
from litgpt.generate.base import generate_fn
from litgpt.model import GPT
from safetensors.torch import load_file
from side_by_side import serve, time_tokens

NAMES = {  # ours, as saved: theirs
    ".ln_1.": ".norm_1.",
    ".ln_2.": ".norm_2.",
    ".c_attn.": ".qkv.",
    ".c_fc.": ".fc.",
    ".c_proj.": ".proj.",
}


def load(folder):
    """Return their model with the checkpoint in `folder`."""
    saved = json.loads((folder / "config.json").read_text())
    config = Config(
        name="GPT-2 with rotary positions",
        n_layer=saved["n_layer"],
        n_head=saved["n_head"],
        n_embd=saved["n_embd"],
        block_size=saved["n_positions"],
        vocab_size=saved["vocab_size"],
        padded_vocab_size=saved["vocab_size"],
        rotary_percentage=1.0,
        parallel_residual=False,
        gelu_approximate="tanh",
    )
    weights = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        for ours, theirs in NAMES.items():
            name = name.replace(ours, theirs)
        turned = ".h." in name and tensor.dim() == 2
        weights[name] = (tensor.T if turned else tensor).contiguous()
    weights["lm_head.weight"] = weights["transformer.wte.weight"]
    model = GPT(config)
    model.lm_head.weight = model.transformer.wte.weight  # as its `tie_embeddings` does
    model.load_state_dict(weights)
    return model.eval()


def prepare(folder):
    model = load(Path(folder))

    def work(prompt, n_new, mark):
        options = {"temperature": 0.0, "include_prompt": False, "include_eos": True}
        for token in generate_fn(model, prompt, len(prompt) + n_new, **options):
            mark(token)

    def answer(request):
        prompt, n_new = torch.tensor(request[0]), request[1]
        model.clear_kv_cache()
        model.max_seq_length = len(prompt) + n_new  # as its own program: before timing
        model.set_kv_cache(batch_size=1)
        return time_tokens(work, prompt, n_new)

    return answer


if __name__ == "__main__":
    serve(prepare, sys.argv[1])
