"""Validation: how well the network's features, decoded as the runtime decodes them, agree on fixed pairs of views.

The pairs and the metrics are the same for every method, so that runs can be compared; a loss ranks nothing
(METHODS.md section 10).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import cv2
import lightning.pytorch as lightning
import numpy as np

from kp_frontend.extractors import Extractor
from kp_frontend.features import Features
from kp_training.callbacks import AfterStep
from kp_training.data.images import Images
from kp_training.data.pairs import HomographyPairs, PairConfig
from kp_training.deployment import torch_extractor
from kp_training.evaluation.metrics import Side, matched
from kp_training.evaluation.protocols import score_shared
from kp_training.methods.base import Stage
from kp_training.runs import BEST, Run

PAIRS = PairConfig(geometry="wide", style="camera", color="rgb", height=240, width=320, turn_share=0.1)
SEED = 2026
TOP_K = 300
PICTURES = 4
METRICS = ("Rep", "LE", "MMA@3", "M.Score", "Cor-3", "points")
DETECTOR_METRICS = ("Rep", "LE", "points")


class ValidationPair(NamedTuple):
    """Two views, H×W×3 BGR uint8, where they show the photograph, and 3×3 view1_from_view0."""

    images: tuple[np.ndarray, np.ndarray]
    masks: tuple[np.ndarray, np.ndarray]
    homography: np.ndarray


def validation_pairs(images: Images, count: int) -> list[ValidationPair]:
    """The first `count` pairs of `images`: always the same."""
    pairs = HomographyPairs(images, PAIRS, SEED)
    made = []
    for number in range(count):
        batch = pairs[number]
        views = tuple(np.ascontiguousarray(view.numpy().transpose(1, 2, 0)[..., ::-1])
                      for view in (batch.image0, batch.image1))
        masks = tuple(mask.numpy().astype(np.uint8) for mask in (batch.mask0, batch.mask1))
        made.append(ValidationPair(views, masks, batch.homography.double().numpy()))
    return made


class Validation(AfterStep):
    """Scores the exported network every so many steps and at the end, keeps the best, draws what it finds.

    latest: metrics of the last validation.  exhausted: there was no new best for `patience` validations.
    """

    def __init__(self, run: Run, stage: Stage, held_out: Images) -> None:
        self.run, self.stage, self.config = run, stage, run.configs[stage.name]
        self.monitor = "M.Score" if stage.describes else "Rep"
        self.latest: dict[str, float] = {}
        self.best, self.best_step, self.since_best = -1.0, 0, 0
        self._held_out, self._pairs = held_out, None

    @property
    def exhausted(self) -> bool:
        return 0 < self.config.patience <= self.since_best

    def best_metrics(self) -> dict[str, float]:
        """Of the checkpoint that ``best.ckpt`` holds."""
        return {f"best/{self.monitor}": self.best, "best/step": float(self.best_step)}

    def state_dict(self) -> dict[str, Any]:
        return {"latest": self.latest, "best": self.best, "best_step": self.best_step, "since_best": self.since_best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.latest, self.best, self.best_step = state_dict["latest"], state_dict["best"], state_dict["best_step"]
        self.since_best = state_dict["since_best"]

    def after_step(self, trainer: lightning.Trainer, module: Any) -> None:
        if trainer.global_step % self.config.validate_every == 0 or trainer.global_step == self.config.steps:
            self._validate(trainer, module)
            if self.exhausted:
                trainer.should_stop = True

    def _validate(self, trainer: lightning.Trainer, module: Any) -> None:
        metrics = self._score(trainer, module) if trainer.is_global_zero else {}
        self.latest = trainer.strategy.broadcast(metrics)
        trainer.logger.log_metrics({f"{self.stage.name}/validation/{name}": value
                                    for name, value in self.latest.items()}, trainer.global_step)
        self.since_best += 1
        if self.latest[self.monitor] > self.best:
            self.best, self.best_step, self.since_best = self.latest[self.monitor], trainer.global_step, 0
            trainer.save_checkpoint(self.run.folder / BEST)

    def _score(self, trainer: lightning.Trainer, module: Any) -> dict[str, float]:
        if self._pairs is None:
            self._pairs = validation_pairs(self._held_out, self.config.validation_pairs)
        network = module.exported
        training = network.training
        network.eval()
        extractor = torch_extractor(self.run.name, self.run.method, self.stage, network, module.device, TOP_K)
        metrics = score_pairs(self._pairs, extractor, DETECTOR_METRICS if not self.stage.describes else METRICS,
                              lambda number, pair, found: self._draw(trainer, number, pair, found))
        network.train(training)
        return metrics

    def _draw(
        self, trainer: lightning.Trainer, number: int, pair: ValidationPair, found: tuple[Features, Features]
    ) -> None:
        if number >= PICTURES:
            return
        keypoints = np.hstack([draw_keypoints(image, features) for image, features in zip(pair.images, found)])
        pictures = {"keypoints": keypoints}
        if self.stage.describes:
            pictures["matches"] = draw_matches(pair, *found)
        for name, picture in pictures.items():
            trainer.logger.experiment.add_image(f"{self.stage.name}/{name}/{number}", picture[..., ::-1].copy(),
                                                trainer.global_step, dataformats="HWC")


def score_pairs(
    pairs: Sequence[ValidationPair], extractor: Extractor, names: Sequence[str],
    seen: Callable[[int, ValidationPair, tuple[Features, Features]], None] = lambda *_: None,
) -> dict[str, float]:
    """Mean of the metrics `names` over `pairs`; `seen` is told each pair's features."""
    rows = []
    for number, pair in enumerate(pairs):
        first, second = (extractor.extract(image, mask) for image, mask in zip(pair.images, pair.masks))
        sides = [Side(features, image.shape[:2]) for features, image in zip((first, second), pair.images)]
        rows.append(score_shared(*sides, pair.homography, TOP_K))
        seen(number, pair, (first, second))
    columns = {name: np.array([row[name] for row in rows]) for name in names}
    return {name: float(column[np.isfinite(column)].mean()) if np.isfinite(column).any() else 0.0
            for name, column in columns.items()}


def draw_keypoints(image: np.ndarray, features: Features) -> np.ndarray:
    """A copy of `image` (H×W×3 BGR uint8) with a circle at each keypoint, the best ones red, the weakest blue."""
    drawn = image.copy()
    for rank, (x, y) in enumerate(features.keypoints):
        share = rank / max(len(features), 1)
        cv2.circle(drawn, (round(float(x)), round(float(y))), 3, (255 * share, 80, 255 * (1 - share)), 1, cv2.LINE_AA)
    return drawn


def draw_matches(pair: ValidationPair, first: Features, second: Features, limit: float = 3.0) -> np.ndarray:
    """Both views side by side with their mutual matches, green where right within `limit` pixels, red where wrong."""
    drawn, width = np.hstack(pair.images), pair.images[0].shape[1]
    pairs = matched(first, second, pair.homography)
    for (x0, y0), (x1, y1), error in zip(pairs.points0.tolist(), pairs.points1.tolist(), pairs.errors):
        color = (60, 200, 60) if error <= limit else (60, 60, 220)
        cv2.line(drawn, (round(x0), round(y0)), (round(x1) + width, round(y1)), color, 1, cv2.LINE_AA)
    return drawn
