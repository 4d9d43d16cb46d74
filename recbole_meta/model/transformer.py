r"""A transformer over a set: no positions, padding is masked, and the first entry is always there.

.. math::
    h \leftarrow h + [\sum_s a^m_{ts} v^m_s]_m W_o, \qquad
    a^m_t = softmax_s(q^m_t \cdot k^m_s / \sqrt{e}), \qquad
    h \leftarrow h + W_2 \, ReLU(W_1 \, n(h) + b_1) + b_2

q, k, v: linear in n(h), the normed entries, split into heads m of e numbers each. Functions of one
set [S, M], without a batch axis; ``torch.func.vmap`` lifts them. Heads are taken one by one: with
an axis of them a program that is exported would have fixed sizes.
"""

import torch
from torch import Tensor, nn


def attention(query: Tensor, key: Tensor, present: Tensor) -> Tensor:
    """Weights [S, N] of queries [N, e] on the entries with these keys [S, e] that are present [S];
    there is one. N comes last: softmax over a short last axis is slow.
    """
    logits = key @ query.T / key.shape[1] ** 0.5
    lowest = torch.finfo(logits.dtype).min
    return torch.softmax(torch.where(present.unsqueeze(-1) > 0, logits, lowest), dim=0)


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
        projections = (self.to_query, self.to_key, self.to_value)
        by_head = zip(*(part(normed).chunk(self.heads, 1) for part in projections), strict=True)
        mixes = self.mix.weight.T.chunk(self.heads)  # [e, M] each
        for (query, key, value), mix in zip(by_head, mixes, strict=True):
            h = h + attention(query, key, present).T @ value @ mix
        return h + self.narrow(torch.relu(self.wide(self.norms[1](h))))
