"""Networks by name."""

from __future__ import annotations

from kp_training.networks.compact import CompactNet
from kp_training.networks.keypointnet import KeyPointNet
from kp_training.networks.silk import SilkNet
from kp_training.networks.superpoint import SuperPointNet

NETWORKS = {"compact": CompactNet, "keypointnet": KeyPointNet, "silk": SilkNet, "superpoint": SuperPointNet}
