"""Networks that are still in PyTorch, run by the very extractors that the runtime uses."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from kp_frontend.decoding import View, find_decoder
from kp_frontend.extractors import Extractor
from kp_frontend.extractors.base import check_image
from kp_frontend.extractors.learned import from_engine, network_input
from kp_frontend.features import Features
from kp_frontend.model_file import ModelMetadata
from kp_training.methods.base import Method, Stage


class TorchEngine:
    """A deployed module as an engine; see ``kp_frontend.engines.Engine``."""

    def __init__(
        self, module: nn.Module, metadata: ModelMetadata, outputs: Sequence[str], device: torch.device
    ) -> None:
        self.module, self.metadata, self.outputs, self.device = module, metadata, tuple(outputs), device
        self.backend = f"pytorch ({device})"

    @torch.no_grad()
    def run(self, image: np.ndarray, **points: np.ndarray) -> dict[str, np.ndarray]:
        """See `Engine.run`."""
        inputs = [torch.from_numpy(values).to(self.device) for values in (image, *points.values())]
        results = self.module(*inputs)
        maps = (results,) if isinstance(results, torch.Tensor) else results
        return {name: values.float().cpu().numpy() for name, values in zip(self.outputs, maps)}


class Detector:
    """An extractor for a network that only detects: its features all have the same descriptor."""

    descriptor_size, metric = 1, "l2"

    def __init__(self, name: str, engine: TorchEngine, top_k: int) -> None:
        self.name, self._engine, self._top_k = name, engine, top_k
        self._decoder, self._parameters = find_decoder(engine.metadata, {})

    def extract(self, image: np.ndarray, mask: np.ndarray | None = None) -> Features:
        """See `Extractor.extract`."""
        check_image(image, mask)
        outputs = self._engine.run(network_input(image, self._engine.metadata))
        keypoints, scores = self._decoder.detect(outputs, self._parameters, View(*image.shape[:2], mask), self._top_k)
        return Features(keypoints, scores, np.ones((len(keypoints), 1), np.float32), self.metric)


def metadata_of(method_name: str, method: Method, network: nn.Module, **about: object) -> ModelMetadata:
    """Metadata of the dense profile of a stage's `network`; `about`: data, licence, metrics, revision."""
    decoding = method.decoding()
    return ModelMetadata(
        method=method_name, variant=method.variant, decoder=decoding.decoder, decoder_parameters=decoding.parameters,
        descriptor_size=network.descriptor_size, stride=network.stride, color=network.color,
        size_multiple=network.size_multiple, **about,  # type: ignore[arg-type]
    )


def torch_extractor(
    name: str, method: Method, stage: Stage, network: nn.Module, device: torch.device, top_k: int
) -> Extractor:
    """What the runtime would extract with `network` (of `stage`, in evaluation mode, on `device`)."""
    metadata = metadata_of(name, method, network)
    engine = TorchEngine(stage.deployed(network), metadata, method.decoding().outputs, device)
    return from_engine(name, engine, {"top_k": top_k}) if stage.describes else Detector(name, engine, top_k)
