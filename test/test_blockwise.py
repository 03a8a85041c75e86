"""The block-wise log-sum-exp against the naive one, values and gradients."""

from __future__ import annotations

import pytest
import torch

from kp_training.losses.blockwise import logsumexp_and_best


def _vectors(rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    queries, keys = (torch.randn(count, 5, dtype=torch.float64).mul(3).requires_grad_() for count in (rows, columns))
    return queries, keys


@pytest.mark.parametrize("block", [1, 13, 3 * 13, 4 * 13 + 5, 10_000])  # rows at a time: 1, 1, 3 of 11, 4, all
def test_values_and_gradients_are_the_naive_ones(block):
    queries, keys = _vectors(11, 13)
    totals, best = logsumexp_and_best(queries, keys, 0.7, block)
    similarities = 0.7 * queries @ keys.T
    torch.testing.assert_close(totals, similarities.logsumexp(1))
    assert best.tolist() == similarities.argmax(1).tolist()
    weights = torch.linspace(-1, 2, 11, dtype=torch.float64)
    ours = torch.autograd.grad((weights * totals).sum(), (queries, keys))
    naive = torch.autograd.grad((weights * similarities.logsumexp(1)).sum(), (queries, keys))
    torch.testing.assert_close(ours, naive)


def test_gradient_by_differences():
    queries, keys = _vectors(4, 6)
    assert torch.autograd.gradcheck(lambda *vectors: logsumexp_and_best(*vectors, 0.3, 12)[0], (queries, keys))


def test_large_similarities_do_not_overflow():
    queries = torch.tensor([[1000.0], [-1000.0]], requires_grad=True)
    keys = torch.tensor([[1.0], [2.0]])
    totals, best = logsumexp_and_best(queries, keys)
    assert totals.tolist() == [2000.0, -1000.0]
    assert best.tolist() == [1, 0]
    totals.sum().backward()
    assert queries.grad.flatten().tolist() == [2.0, 1.0]


def test_no_queries():
    queries, keys = torch.zeros(0, 5, requires_grad=True), torch.randn(3, 5, requires_grad=True)
    totals, best = logsumexp_and_best(queries, keys)
    assert totals.shape == best.shape == (0,)
    totals.sum().backward()
    assert queries.grad.shape == (0, 5)
    assert not keys.grad.any()


def test_the_best_match_has_no_gradient():
    _, best = logsumexp_and_best(*_vectors(2, 3))
    assert not best.requires_grad
