"""Networks of any method as model files, untrained or from a checkpoint, written without the checks of an export."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch

from kp_frontend.model_file import ModelMetadata
from kp_training.deployment import metadata_of
from kp_training.export.half import Half
from kp_training.export.images import check_images
from kp_training.export.onnx import describe, trace
from kp_training.export.sparse import sparse_metadata
from kp_training.runs import build_run, load_checkpoint, load_network, open_run

METHODS = {
    "kp2d": ("kp2d", {}),
    "kp2d-v0": ("kp2d", {"version": "v0"}),
    "kp2d-compact": ("kp2d", {"network": "compact"}),
    "superpoint": ("superpoint", {}),
    "superpoint_prp": ("superpoint_prp", {"norm": "none"}),
    "silk": ("silk", {"padding": True, "channels": 16}),
    "silk_prp": ("silk_prp", {"channels": 16}),
    "pos_feat": ("pos_feat", {}),
    "sedm": ("sedm", {}),
    "residual": ("residual", {}),
    "residual-alone": ("residual", {"detector": "rootsift", "upright": True, "fusion": False}),
}
"""Name of a network → its method and settings: every operator that an export may write is in one of them."""


@dataclass(frozen=True)
class Deployed:
    """A network ready to be written.  metadata: of its dense file of 32 bits.  example: inputs to trace it with."""

    module: torch.nn.Module
    metadata: ModelMetadata
    example: tuple[torch.Tensor, ...]

    def write(self, path: Path, top_k: int = 0, **changes) -> Path:
        """The file; top_k > 0: of the sparse profile.  changes: of the metadata, as precision or input_dtype."""
        metadata, module, example = replace(self.metadata, **changes), self.module, self.example
        if top_k:
            metadata = sparse_metadata(metadata, top_k)
            example = (example[0], *(values[:, :1].repeat(1, top_k, 1) for values in example[1:]))
        if metadata.precision == "fp16":
            module = Half(module, self.example).eval()
        trace(module, metadata, path, example)
        describe(path, metadata)
        return path


def untrained(method: str, settings: dict) -> Deployed:
    """The network of a method's last stage, with random weights that are always the same."""
    run = build_run(Path(), method, [], settings)
    torch.manual_seed(0)
    return _deployed(run, method, run.stages[-1].network())


@cache
def network_of(name: str) -> Deployed:
    """An untrained network of METHODS, traced at a size at which a CPU's slow float16 is quick enough."""
    made = untrained(*METHODS[name])
    image, *points = made.example
    return replace(made, example=(image[..., :32, :32], *points))


def trained(checkpoint: Path) -> Deployed:
    """The network of a checkpoint."""
    run, loaded = open_run(checkpoint), load_checkpoint(checkpoint)
    return _deployed(run, run.name, load_network(run.method, loaded)[1])


def _deployed(run, name, network) -> Deployed:
    metadata, decoding = metadata_of(name, run.method, network.eval()), run.method.decoding()
    points = decoding.points(check_images(None)[0][:64, :64]) if decoding.points else {}
    example = torch.rand(1, metadata.channels, 64, 64), *(torch.from_numpy(values) for values in points.values())
    return Deployed(run.stages[-1].deployed(network).eval(), metadata, example)
