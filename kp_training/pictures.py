"""Pictures of keypoints in TensorBoard: what the network finds as it learns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import lightning.pytorch as lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback

from kp_frontend.decoding import View, decode
from kp_frontend.extractors.learned import network_input
from kp_frontend.features import Features
from kp_frontend.model_file import ModelMetadata
from kp_training.export.onnx import metadata_of

EVERY = 500
POINTS = 300


class Pictures(Callback):
    """Draws the best keypoints of a few images, decoded as the runtime decodes them, every so many steps.

    images: H×W×3 BGR uint8.
    """

    def __init__(self, method_name: str, images: Sequence[np.ndarray]) -> None:
        self.method_name, self.images = method_name, images

    def on_train_batch_end(self, trainer: lightning.Trainer, module: Any, *_: Any) -> None:
        if trainer.global_step % EVERY:
            return
        metadata = metadata_of(self.method_name, module.method)
        deployed = module.method.deployed(module.exported)
        training = deployed.training
        deployed.eval()
        for number, image in enumerate(self.images):
            features = extract(deployed, module.method.decoding().outputs, metadata, image, module.device)
            picture = np.ascontiguousarray(draw_keypoints(image, features)[..., ::-1])
            trainer.logger.experiment.add_image(f"keypoints/{number}", picture, trainer.global_step, dataformats="HWC")
        deployed.train(training)


@torch.no_grad()
def extract(
    deployed: torch.nn.Module, outputs: Sequence[str], metadata: ModelMetadata, image: np.ndarray, device: torch.device
) -> Features:
    """Features of an H×W×3 BGR uint8 image by a network that is still in PyTorch."""
    maps = deployed(torch.from_numpy(network_input(image, metadata)).to(device))
    named = {name: values.float().cpu().numpy() for name, values in zip(outputs, maps)}
    return decode(named, metadata, View(*image.shape[:2]), POINTS)


def draw_keypoints(image: np.ndarray, features: Features) -> np.ndarray:
    """A copy of `image` (H×W×3 BGR uint8) with a circle at each keypoint, the best ones red, the weakest blue."""
    drawn = image.copy()
    for rank, (x, y) in enumerate(features.keypoints):
        share = rank / max(len(features), 1)
        cv2.circle(drawn, (round(float(x)), round(float(y))), 3, (255 * share, 80, 255 * (1 - share)), 1, cv2.LINE_AA)
    return drawn
