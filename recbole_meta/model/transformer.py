r"""A transformer over a set: no positions, padding is masked, and the first entry is always there.

.. math::
    h \leftarrow h + [\sum_s a^m_{ts} v^m_s]_m W_o, \qquad
    a^m_t = softmax_s(q^m_t \cdot k^m_s / \sqrt{e}), \qquad
    h \leftarrow h + W_2 \, ReLU(W_1 \, n(h) + b_1) + b_2

q, k, v: linear in n(h), the normed entries, split into heads m of e numbers each. Functions of one
set [S, M], without a batch axis; ``torch.func.vmap`` lifts them.
"""

import torch
from torch import Tensor, nn


def in_heads(h: Tensor, heads: int) -> Tensor:
    """[N, M] as [m, N, e]."""
    return h.view(h.shape[0], heads, -1).transpose(0, 1)


def attention(query: Tensor, key: Tensor, present: Tensor) -> Tensor:
    """Weights [m, S, N] of queries [m, N, e] on the entries with these keys [m, S, e] that are
    present [S]; there is one. N comes last: softmax over a short last axis is slow.
    """
    logits = key @ query.transpose(1, 2) / key.shape[-1] ** 0.5
    lowest = torch.finfo(logits.dtype).min
    return torch.softmax(torch.where(present.unsqueeze(-1) > 0, logits, lowest), dim=1)


class Norm(nn.Module):
    """``nn.LayerNorm``, which fixes all sizes where vmap is traced, in plain operations."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(size)), nn.Parameter(torch.zeros(size))

    def forward(self, h: Tensor) -> Tensor:
        """Entries of mean 0 and variance 1, then scaled and moved."""
        centred = h - h.mean(-1, keepdim=True)
        deviation = (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return centred / deviation * self.weight + self.bias


class SelfAttention(nn.Module):
    """One layer, [S, M] to [S, M]."""

    def __init__(self, size: int, heads: int, forward_size: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(Norm(size) for _ in range(2))
        self.to_query, self.to_key, self.to_value = (
            nn.Linear(size, size, bias=False) for _ in range(3)
        )
        self.mix = nn.Linear(size, size, bias=False)
        self.wide, self.narrow = nn.Linear(size, forward_size), nn.Linear(forward_size, size)

    def forward(self, h: Tensor, present: Tensor) -> Tensor:
        """The entries after the layer; those that are not present are read by none."""
        normed = self.norms[0](h)
        query, key, value = (
            in_heads(part(normed), self.heads)
            for part in (self.to_query, self.to_key, self.to_value)
        )
        read = attention(query, key, present).transpose(1, 2) @ value  # [m, S, e]
        h = h + self.mix(read.transpose(0, 1).reshape(h.shape))
        return h + self.narrow(torch.relu(self.wide(self.norms[1](h))))
