"""The deployed form of the compact network against its definition."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from kp_training.networks.compact import CompactNet, DeployedCompact


@pytest.mark.parametrize("size", [(32, 64), (96, 160)])
def test_deployed_scores_are_detection_times_reliability_squared(size):
    """At full resolution, bilinear: what the deployed form computes in cells of 4×4 pixels."""
    torch.manual_seed(0)
    network, image = CompactNet().eval(), torch.rand(2, 1, *size)
    network.reliability.weight.data *= 1000  # so that it differs from place to place
    network.score[1].bias.data.uniform_(-1, 1)
    with torch.no_grad():
        logits, expected_descriptors, reliability = network(image)
        upsampled = F.interpolate(reliability, scale_factor=8, mode="bilinear", align_corners=False)
        expected = torch.sigmoid(logits) * torch.sigmoid(upsampled) ** 2
        scores, descriptors = DeployedCompact(network)(image)
    assert upsampled.std() > 0.1
    torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(descriptors, expected_descriptors, rtol=0, atol=0)
