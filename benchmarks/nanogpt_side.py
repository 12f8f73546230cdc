"""A GPT-2 with nanoGPT's choices for training, for `gpu.py` to time beside ours.

Not nanoGPT's source: a plain model that does the same arithmetic. Unlike ours it has no
biases, 50,304 rows in its tables of tokens (a multiple of 64), the exact GELU, and
computes its loss inside, so that `torch.compile` sees both together.
"""

from torch import nn
from torch.nn import functional as F

ROWS = 64  # tables of tokens are rounded up to a multiple of it


class Block(nn.Module):
    """Attention, then feed-forward, each added to the stream."""

    def __init__(self, n_head, n_embd):
        super().__init__()
        self.n_head = n_head
        self.before_attention = nn.LayerNorm(n_embd, bias=False)
        self.read = nn.Linear(n_embd, 3 * n_embd, bias=False)
        self.write = nn.Linear(n_embd, n_embd, bias=False)
        self.feedforward = nn.Sequential(
            nn.LayerNorm(n_embd, bias=False),
            nn.Linear(n_embd, 4 * n_embd, bias=False),
            nn.GELU(),
            nn.Linear(4 * n_embd, n_embd, bias=False),
        )

    def forward(self, x):
        three = self.read(self.before_attention(x)).chunk(3, dim=-1)
        q, k, v = (t.unflatten(-1, (self.n_head, -1)).transpose(1, 2) for t in three)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)  # (B, H, T, D)
        x = x + self.write(y.transpose(1, 2).flatten(2))
        return x + self.feedforward(x)


class PlainGPT(nn.Module):
    """Tokens and the tokens that follow them, `(B, T)` both -> the mean loss."""

    def __init__(self, config):
        super().__init__()
        rows = -(-config.vocab_size // ROWS) * ROWS
        self.tokens = nn.Embedding(rows, config.n_embd)
        self.positions = nn.Embedding(config.block_size, config.n_embd)
        blocks = (Block(config.n_head, config.n_embd) for _ in range(config.n_layer))
        self.blocks = nn.Sequential(*blocks, nn.LayerNorm(config.n_embd, bias=False))
        self.head = nn.Linear(config.n_embd, rows, bias=False)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)
        self.head.weight = self.tokens.weight

    def forward(self, tokens, targets):
        x = self.tokens(tokens) + self.positions.weight[: tokens.size(1)]
        logits = self.head(self.blocks(x))  # (B, T, rows)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())
