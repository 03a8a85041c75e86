"""The camera node: parameters → pipeline → messages, with the same pipeline objects as `replay`."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np

from kp_frontend.errors import InputError
from kp_frontend.nodes.diagnostics import Diagnostics
from kp_frontend.nodes.inputs import Arrival, Calibration, ImageInputs, decode, decode_depth
from kp_frontend.nodes.outputs import FeatureOutputs, OdometryOutputs, Processed
from kp_frontend.nodes.parameters import EXTRACTOR, ODOMETRY, declare
from kp_frontend.nodes.run import ClosingNode
from kp_frontend.nodes.slot import NewestSlot
from kp_frontend.odometry import OdometryConfig
from kp_frontend.pipeline import Frame, Frontend, FrontendOutput, Stopwatch
from kp_frontend.tracking import load_tracker


class FrontendNode(ClosingNode):
    """Images in, features (and poses, with `odometry`) out.

    Callbacks only put messages aside; one worker thread decodes, processes and publishes the newest.
    Raises InputError at construction where a parameter is not valid.
    """

    def __init__(self, name: str, *, odometry: bool, **options) -> None:
        super().__init__(name, **options)
        self.values = values = declare(self, ODOMETRY if odometry else EXTRACTOR)
        mode = values.mode if odometry else "mono"
        self._tracker = load_tracker(values.features, top_k=values.top_k, backend=values.backend)
        self.diagnostics = Diagnostics(self, values.diagnostics_window, {
            "model": values.features, "backend": values.backend, "mode": mode if odometry else "features",
        }, values.frame_log)
        self._calibration = Calibration(self, values, mode, self.diagnostics)
        self._features = FeatureOutputs(self, values, self.diagnostics)
        self._poses = OdometryOutputs(self, values) if odometry else None
        self._frontend = Frontend(self._tracker)
        self._used: tuple = (None, None)
        self._last_stamp: int | None = None
        self._idle = False
        self._slot: NewestSlot[Arrival] = NewestSlot(self._work, lambda arrival: self.diagnostics.drop(arrival.stamp))
        inputs = ImageInputs(self, values, mode, self._arrived, self.diagnostics)
        self.get_logger().info(f"{values.features}: waiting for images on {inputs.topic}")

    def close(self) -> None:
        """End the worker thread."""
        self._slot.close()
        self.diagnostics.close()

    def _arrived(self, arrival: Arrival) -> None:
        # Poses need every frame; features are of use only to a subscriber.
        if self._poses is None and not self._features.wanted():
            self.diagnostics.count("idle")
            self._idle = True
            return
        self._slot.put(arrival)

    def _work(self, arrival: Arrival) -> None:
        try:
            if self._in_time(arrival.stamp):
                self._process(arrival)
        except InputError as error:
            self.diagnostics.error(str(error), stamp=arrival.stamp)
        except Exception as error:
            if not self.context.ok():
                return
            # One frame must not end the node, whatever a library makes of it.
            place = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{type(error).__name__} in {place.filename}:{place.lineno}"
            text = f"frame not processed: {where}: {str(error).partition(chr(10))[0][:200]}"
            self.diagnostics.error(text, where, arrival.stamp)

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
            self._idle = False
            self._reset()
        return True

    def _reset(self) -> None:
        self._frontend.reset()
        if self._poses is not None:
            self._poses.reset()

    def _calibrated(self) -> None:
        """Take a calibration that arrived or changed."""
        camera, baseline = self._calibration.camera, self._calibration.baseline
        missing = self._calibration.missing
        if missing:
            waits = "no poses" if self._poses is not None else "bearings are 0 0 0"
            self.diagnostics.warning(f"no calibration on {missing}: {waits}; publish it or set calibration_file")
        if (camera, baseline) == self._used:
            return
        self._used = (camera, baseline)
        self._reset()
        config = None
        if self._poses is not None and camera is not None and not missing:
            config = OdometryConfig()
            if baseline is not None:
                config = OdometryConfig.for_stereo(float(camera.matrix[0, 0]), baseline)
        self._frontend = Frontend(self._tracker, camera=camera, baseline=baseline, odometry=config)

    def _process(self, arrival: Arrival) -> None:
        self._calibrated()
        watch = Stopwatch()
        with watch.stage("decode"):
            image = decode(arrival.image)
            depth, right = self._optional(decode_depth, arrival.depth), self._optional(decode, arrival.right)
        output = self._frontend.process(Frame(arrival.stamp, image, depth=depth, right=right))
        watch.timings.update(output.timings)
        processed = Processed(arrival.image.header, image, output, self._used[0])
        with watch.stage("publish"):
            self._features.publish(processed)
            if self._poses is not None:
                self._poses.publish(processed)
        watch.timings["total"] = (time.time_ns() - arrival.arrived) * 1e-6
        self.diagnostics.frame(arrival.stamp, watch.timings, **_found(output))

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
