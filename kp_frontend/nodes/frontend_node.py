"""The camera node: parameters → pipeline → messages, with the same pipeline objects as `replay`."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from kp_frontend.engines.live import backend_of, engine_of
from kp_frontend.errors import InputError
from kp_frontend.nodes.diagnostics import Diagnostics
from kp_frontend.nodes.engine_build import first_backend, watch_engine
from kp_frontend.nodes.inputs import Arrival, Calibration, ImageInputs, decode, decode_depth
from kp_frontend.nodes.outputs import FeatureOutputs, OdometryOutputs, Processed
from kp_frontend.nodes.parameters import EXTRACTOR, ODOMETRY, declare
from kp_frontend.nodes.run import ClosingNode
from kp_frontend.nodes.slot import NewestSlot
from kp_frontend.nodes.threads import set_threads
from kp_frontend.odometry import OdometryConfig
from kp_frontend.pipeline import Extracted, Frame, Frontend, FrontendOutput, Stopwatch
from kp_frontend.trackers import load_tracker


@dataclass(frozen=True, eq=False)
class _Halfway:
    """A frame after extraction.  sequence: number of the run of images, each of which starts tracks and map anew."""

    arrival: Arrival
    extracted: Extracted
    frontend: Frontend
    sequence: int
    timings: dict[str, float]


class FrontendNode(ClosingNode):
    """Images in, features (and poses, with `odometry`) out.

    Callbacks only put messages aside; a worker thread decodes and extracts the newest image, follows it and publishes.
    With overlap there are two: a frame is extracted while the one before is followed, or itself still extracted where
    the tracker can. Frames may be dropped before extraction, none after, and their order stays.
    Raises InputError at construction where a parameter is not valid.
    """

    def __init__(self, name: str, *, odometry: bool, **options) -> None:
        super().__init__(name, **options)
        self.values = values = declare(self, ODOMETRY if odometry else EXTRACTOR)
        mode = values.mode if odometry else "mono"
        overlap = set_threads(values.overlap, values.opencv_threads)
        backend = first_backend(values.features, values.backend)
        self._tracker = load_tracker(values.features, top_k=values.top_k, backend=backend, threads=values.threads)
        self.diagnostics = Diagnostics(self, values.diagnostics_window, {
            "model": values.features, "backend": backend_of(self._tracker), "mode": mode if odometry else "features",
            "overlap": "on" if overlap else "off",
        }, values.frame_log)
        self._say_what_runs()
        self._build = watch_engine(engine_of(self._tracker), values.backend, self.diagnostics)
        self._calibration = Calibration(self, values, mode, self.diagnostics)
        self._features = FeatureOutputs(self, values, self.diagnostics)
        self._poses = OdometryOutputs(self, values) if odometry else None
        self._frontend = Frontend(self._tracker)
        self._used: tuple = (None, None)
        self._lock = threading.Lock()
        self._last_stamp: int | None = None
        self._idle, self._sequence = False, 0
        self._followed = self._frontend, self._sequence
        # What may become TensorRT between two frames runs one at a time from the start.
        at_once = 2 if self._tracker.concurrent and self._build is None else 1
        self._slot: NewestSlot[tuple[Arrival, int], _Halfway] = NewestSlot(
            self._extract, lambda item: self.diagnostics.drop(item[0].stamp), self._follow,
            threads=2 if overlap else 1, at_once=at_once)
        inputs = ImageInputs(self, values, mode, self._arrived, self.diagnostics)
        self.get_logger().info(f"{values.features}: waiting for images on {inputs.topic}")

    def _say_what_runs(self) -> None:
        """What runs the network, and why, in the log and in diagnostics: now, and whenever it changes."""
        engine = engine_of(self._tracker)
        if engine is not None:
            self.get_logger().info(f"{engine.name}: {engine.choice}")
            self.diagnostics.fact(**engine.facts())
            engine.changed = lambda changed: self.diagnostics.fact(**changed.facts())

    def close(self) -> None:
        """End the worker threads."""
        if self._build is not None:
            self._build.close()
        self._slot.close()
        self.diagnostics.close()

    def _arrived(self, arrival: Arrival) -> None:
        # Poses need every frame; features are of use only to a subscriber.
        if self._poses is None and not self._features.wanted():
            self.diagnostics.count("idle")
            self._idle = True
        elif self._in_time(arrival.stamp):
            self._slot.put((arrival, self._sequence))

    def _in_time(self, stamp: int) -> bool:
        """Whether to process a frame of `stamp`; after a jump back everything starts anew."""
        last, self._last_stamp = self._last_stamp, stamp
        if last is not None and stamp == last:
            self.diagnostics.count("repeated")
            return False
        if last is not None and stamp < last:
            self.get_logger().warning(
                f"image stamps jump back by {(last - stamp) * 1e-9:.3f} s (a looped bag?): tracks and map start anew"
            )
        if self._idle or (last is not None and stamp < last):
            self._idle, self._sequence = False, self._sequence + 1
        return True

    def _calibrated(self) -> Frontend:
        """The pipeline, a new one where a calibration arrived or changed."""
        camera, baseline = self._calibration.camera, self._calibration.baseline
        missing = self._calibration.missing
        if missing:
            waits = "no poses" if self._poses is not None else "bearings are 0 0 0"
            self.diagnostics.warning(f"no calibration on {missing}: {waits}; publish it or set calibration_file")
        if (camera, baseline) == self._used:
            return self._frontend
        self._used, config = (camera, baseline), None
        if self._poses is not None and camera is not None and not missing:
            config = OdometryConfig()
            if baseline is not None:
                config = OdometryConfig.for_stereo(float(camera.matrix[0, 0]), baseline)
        self._frontend = Frontend(self._tracker, camera=camera, baseline=baseline, odometry=config)
        return self._frontend

    def _extract(self, item: tuple[Arrival, int]) -> _Halfway | None:
        arrival, sequence = item
        with self.diagnostics.survived(arrival.stamp):
            with self._lock:
                frontend = self._calibrated()
            watch = Stopwatch()
            with watch.stage("decode"):
                image = decode(arrival.image)
                depth, right = self._optional(decode_depth, arrival.depth), self._optional(decode, arrival.right)
            if self._build is not None:
                self._build.consider(*image.shape[:2])
            extracted = frontend.extract(Frame(arrival.stamp, image, depth=depth, right=right))
            return _Halfway(arrival, extracted, frontend, sequence, watch.timings)
        return None

    def _follow(self, halfway: _Halfway) -> None:
        arrival, frontend, watch = halfway.arrival, halfway.frontend, Stopwatch()
        with self.diagnostics.survived(arrival.stamp):
            if (frontend, halfway.sequence) != self._followed:
                self._followed = frontend, halfway.sequence
                frontend.reset()
                if self._poses is not None:
                    self._poses.reset()
            output = frontend.follow(halfway.extracted)
            processed = Processed(arrival.image.header, halfway.extracted.frame.image, output, frontend.camera)
            with watch.stage("publish"):
                self._features.publish(processed)
                if self._poses is not None:
                    self._poses.publish(processed)
            timings = {**halfway.timings, **output.timings, **watch.timings}
            timings["total"] = (time.time_ns() - arrival.arrived) * 1e-6
            self.diagnostics.frame(arrival.stamp, timings, **_found(output))

    def _optional(self, read: Callable[[Any], np.ndarray], message: Any) -> np.ndarray | None:
        """What `message` holds; None, and an error said, where it cannot be read: the image is good without it."""
        try:
            return read(message) if message is not None else None
        except InputError as error:
            self.diagnostics.error(str(error))
            return None


def _found(output: FrontendOutput) -> dict[str, object]:
    """What diagnostics say of one frame."""
    found: dict[str, object] = {"keypoints": len(output.features), "matches": len(output.matches)}
    if output.state is not None:
        state = output.state
        found.update(
            status=state.status, inliers=state.inliers, tracked=state.tracked, metric=state.metric,
            odometry_message=state.message,
        )
    return found
