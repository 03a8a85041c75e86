"""Log-sum-exp and best match over similarity matrices that are far too large to keep."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK = 2**25
"""Similarities in memory at a time (128 MiB of float32)."""


def logsumexp_and_best(queries: Tensor, keys: Tensor, scale: float = 1.0, block: int = BLOCK) -> tuple[Tensor, Tensor]:
    """Of each row of scale · queries · keysᵀ, its log-sum-exp (N, differentiable) and where its maximum is (N int64).

    queries: N×D.  keys: M×D, M ≥ 1.  The N×M similarities are made in blocks of whole rows, about `block` numbers
    each, and made again for the gradient, so that memory grows with N + M only.
    """
    return _LogSumExp.apply(queries, keys, scale, block)


class _LogSumExp(torch.autograd.Function):
    """A function of its own, not ``torch.utils.checkpoint`` on each block: with the log-sum-exps kept, the gradient
    needs one product and one exponential a block, in place, and adds into one buffer for all keys."""

    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor, scale: float, block: int) -> tuple[Tensor, Tensor]:
        totals, best = queries.new_empty(len(queries)), queries.new_empty(len(queries), dtype=torch.int64)
        for rows in _row_blocks(len(queries), len(keys), block):
            similarities = (scale * queries[rows]) @ keys.T
            largest, best[rows] = similarities.max(1)
            totals[rows] = similarities.sub_(largest[:, None]).exp_().sum(1).log_() + largest
        ctx.save_for_backward(queries, keys, totals)
        ctx.scale, ctx.block = scale, block
        ctx.mark_non_differentiable(best)
        return totals, best

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor, Tensor, None, None]:
        queries, keys, totals = ctx.saved_tensors
        query_gradient, key_gradient = torch.empty_like(queries), torch.zeros_like(keys)
        for rows in _row_blocks(len(queries), len(keys), ctx.block):
            softmax = torch.addmm(-totals[rows, None], queries[rows], keys.T, alpha=ctx.scale).exp_()
            softmax *= ctx.scale * gradient[rows, None]
            torch.mm(softmax, keys, out=query_gradient[rows])
            key_gradient.addmm_(softmax.T, queries[rows])
        return query_gradient, key_gradient, None, None


def _row_blocks(rows: int, columns: int, block: int) -> list[slice]:
    step = max(block // columns, 1)
    return [slice(start, start + step) for start in range(0, rows, step)]
