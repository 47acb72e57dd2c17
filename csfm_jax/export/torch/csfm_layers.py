"""Building blocks of the encoder, pre-LN with the exact GELU; attribute names make the published parameter names."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn


class Attention(nn.Module):
    def __init__(self, width, heads, head_dim, dropout):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.to_qkv = nn.Linear(width, 3 * heads * head_dim, bias=False)
        self.to_out = nn.Sequential(nn.Linear(heads * head_dim, width), nn.Dropout(dropout))

    def forward(self, x, keys, turn):
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in self.to_qkv(self.norm(x)).chunk(3, -1))
        if turn is not None:
            q, k = _rotate(q, turn), _rotate(k, turn)
        dropout = self.to_out[1].p if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=keys[:, None, None], dropout_p=dropout)
        return self.to_out(y.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    def __init__(self, width, hidden, dropout):
        super().__init__()
        self.net = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, hidden),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, width),
            nn.Dropout(dropout),
        )

    def forward(self, x):
        return self.net(x)


class Transformer(nn.Module):
    def __init__(self, width, depth, heads, head_dim, mlp, dropout, output):
        super().__init__()
        self.output = output
        self.layers = nn.ModuleList(
            nn.ModuleList([Attention(width, heads, head_dim, dropout), FeedForward(width, mlp, dropout)])
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, x, keys, turn):
        outputs = list(self.blocks(x, keys, turn))[0 if self.output == "average" else -1 :]
        return sum(self.norm(y) for y in outputs) / len(outputs)

    def blocks(self, x, keys, turn):
        """Yields what leaves each block."""
        for attention, feed_forward in self.layers:
            x = x + attention(x, keys, turn)
            x = x + feed_forward(x)
            yield x


class Centre(nn.Module):
    """Takes a patch's mean away, which the LayerNorm after it would do too, but with three times its rounding error."""

    def forward(self, x):
        return x - x.mean(-1, keepdim=True)


def projection(patch, width):
    return nn.Sequential(Centre(), nn.LayerNorm(patch), nn.Linear(patch, width), nn.LayerNorm(width))


def angles(time, pairs):
    """[...] seconds -> [..., pairs] radians on periods of 0.2 s to 30 min, geometrically spaced."""
    per_second = torch.from_numpy((2 * np.pi / np.geomspace(0.2, 1800.0, pairs)).astype(np.float32))
    return time.float()[..., None] * per_second.to(time.device)


def _rotate(x, turn):
    first, second = x.chunk(2, -1)
    cos, sin = turn.cos()[:, None].to(x.dtype), turn.sin()[:, None].to(x.dtype)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)
