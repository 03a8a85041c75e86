"""Methods by name; see ``base.Method``."""

from __future__ import annotations

from kp_training.methods.kp2d import Kp2d

METHODS = {"kp2d": Kp2d}
