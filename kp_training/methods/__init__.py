"""Methods by name; see ``base.Method``."""

from __future__ import annotations

import importlib

from kp_frontend.errors import unknown_name

# Imported when asked for, so that `--help` needs no PyTorch.
METHODS = {
    "kp2d": "kp_training.methods.kp2d:Kp2d",
    "superpoint": "kp_training.methods.superpoint:SuperPoint",
    "superpoint_prp": "kp_training.methods.superpoint_prp:SuperPointPrp",
    "silk": "kp_training.methods.silk:Silk",
    "silk_prp": "kp_training.methods.silk_prp:SilkPrp",
    "pos_feat": "kp_training.methods.pos_feat:PosFeat",
    "residual": "kp_training.methods.residual:Residual",
    "sedm": "kp_training.methods.sedm:Sedm",
}


def find_method(name: str) -> type:
    """The method's class; InputError, listing the names, for one that is not there."""
    if name not in METHODS:
        raise unknown_name("method", name, METHODS)
    module, _, kind = METHODS[name].partition(":")
    return getattr(importlib.import_module(module), kind)
