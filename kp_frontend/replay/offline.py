"""Every frame of a recording through the front-end, none dropped."""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kp_frontend.engines.live import backend_of
from kp_frontend.errors import InputError
from kp_frontend.odometry import OdometryConfig
from kp_frontend.overlay import draw_tracks
from kp_frontend.pipeline import Frontend
from kp_frontend.progress import Progress
from kp_frontend.replay.bag import BagSequence
from kp_frontend.replay.feature_archive import FeatureArchive
from kp_frontend.replay.result import Recorder, RunResult


@dataclass(frozen=True)
class RunOptions:
    """How to run.

    top_k: most keypoints an image.  backend: of learned features.  max_frames: stop there (None: all).
    overlays: pictures to keep, evenly spread.  save_features: npz file for every frame's features, or None.
    """

    top_k: int = 1000
    backend: str = "auto"
    max_frames: int | None = None
    overlays: int = 6
    save_features: Path | None = None


def odometry_config(sequence: BagSequence) -> OdometryConfig | None:
    """Odometry for the sequence's sensor; None where nothing calibrates it."""
    if sequence.camera is None:
        return None
    if sequence.mode == "stereo" and sequence.baseline:
        return OdometryConfig.for_stereo(float(sequence.camera.matrix[0, 0]), sequence.baseline)
    return OdometryConfig()


def run_offline(
    sequence: BagSequence, features: str, options: RunOptions | None = None, progress: Progress | None = None
) -> RunResult:
    """Run `features` (a spec) over `sequence` in this process.

    Frames that cannot be used are counted with their message and the run goes on.
    Raises InputError where the features themselves cannot be had.
    """
    import psutil

    options = options or RunOptions()
    frontend = Frontend(
        features, top_k=options.top_k, backend=options.backend, camera=sequence.camera,
        baseline=sequence.baseline, odometry=odometry_config(sequence),
    )
    count = min(len(sequence), options.max_frames or len(sequence))
    pictured = set(np.linspace(0, count - 1, options.overlays + 1).round().astype(int)[1:].tolist())
    recorder, overlays = Recorder(features, sequence.mode), {}
    process, memory = psutil.Process(), 0
    begin, cpu = time.perf_counter(), time.process_time()
    with FeatureArchive(options.save_features) if options.save_features else nullcontext() as archive:
        for k, recorded in zip(range(count), sequence.frames()):
            start = time.perf_counter()
            try:
                frame = recorded.decode()
                decoded = time.perf_counter()
                output = frontend.process(frame)
            except InputError as error:
                recorder.fail(recorded.stamp, str(error))
                continue
            finally:
                if progress is not None:
                    progress(k + 1, count)
            timings = {"decode": (decoded - start) * 1e3, "total": (time.perf_counter() - start) * 1e3}
            recorder.add(output, timings)
            memory = max(memory, process.memory_info().rss)
            if archive is not None:
                archive.add(output.stamp, output.features, output.tracks)
            if k in pictured:
                drawn = draw_tracks(frame.image, output.features, output.tracks, output.matches, output.previous)
                overlays[output.stamp] = drawn
    return recorder.result(
        seconds=time.perf_counter() - begin, cpu_seconds=time.process_time() - cpu, memory_mb=memory / 2**20,
        overlays=overlays, backend=backend_of(frontend.tracker),
    )
