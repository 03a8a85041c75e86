"""A few steps of training on one batch, for tests that ask whether a loss teaches what it should."""

from __future__ import annotations

from typing import Any

import torch

from kp_training.methods.base import Method, Run


def losses_while_learning(method: Method, batch: Any, run: Run, steps: int = 40) -> list[dict[str, float]]:
    """Losses by name of each of `steps` steps of a method's one stage, from seed 0, always on `batch`."""
    stage, = method.stages()
    torch.manual_seed(0)
    network = stage.network()
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    history = []
    for _ in range(steps):
        found = stage.losses(run, network, batch)
        optimizer.zero_grad()
        found["loss"].backward()
        optimizer.step()
        history.append({name: value.item() for name, value in found.items()})
    return history
