"""Networks by name."""

from __future__ import annotations

from kp_training.networks.compact import CompactNet
from kp_training.networks.keypointnet import KeyPointNet

NETWORKS = {"compact": CompactNet, "keypointnet": KeyPointNet}
