"""``benchmark frontend``: what each stage costs on this machine, beside the extractor in the same run."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kp_frontend.camera import CameraModel
from kp_frontend.engines.live import backend_of
from kp_frontend.odometry import OdometryConfig
from kp_frontend.pipeline import Frame, Frontend, Stopwatch
from kp_frontend.progress import Progress
from kp_frontend.replay.bag import BagSequence
from kp_frontend.replay.summary import Percentiles

if TYPE_CHECKING:
    from rich.table import Table

RATE = 30.0
_WARM_UP = 10
LEAST_FRAMES = 2 * _WARM_UP
# Stages that find keypoints, whatever the tracker calls them; all others are overhead.
EXTRACTION = ("extract", "flow", "detect")


@dataclass(frozen=True)
class Figures:
    """One of the tables: milliseconds by stage, single numbers by name, and targets by sentence with whether met.

    name: of what was measured, the same in every run.
    """

    name: str
    title: str
    stages: dict[str, Percentiles]
    numbers: dict[str, float] = field(default_factory=dict)
    targets: dict[str, bool] = field(default_factory=dict)


def flight_frames(count: int) -> tuple[list[Frame], CameraModel]:
    """RGB-D frames of the demo's rendered flight, and their camera."""
    from kp_frontend.replay import flight

    whole = flight.Flight(frames=max(count, 600), rate=RATE)
    views = [whole.view(index) for index in range(count)]
    return [Frame(view.stamp, view.image, depth=view.depth) for view in views], flight.camera()


def bag_frames(path: Path, count: int) -> tuple[list[Frame], CameraModel | None]:
    """The first frames of a bag, decoded, and their camera."""
    with BagSequence(path) as bag:
        return [recorded.decode() for recorded in itertools.islice(bag.frames(), count)], bag.camera


def measure_stages(features: str, top_k: int, images: Sequence[np.ndarray], progress: Progress) -> Figures:
    """Every stage from image message to messages, in one process, one frame after the other."""
    from std_msgs.msg import Header

    from kp_frontend import messages
    from kp_frontend.images import image_from_message

    height, width = images[0].shape[:2]
    camera = CameraModel(width, height, np.array([[500, 0, width / 2], [0, 500, height / 2], [0, 0, 1.0]]))
    frontend = Frontend(features, top_k=top_k, camera=camera)
    timings, counts = [], []
    for index, image in enumerate(images):
        header = Header(stamp=messages.stamp_to_message(round(index * 1e9 / RATE)), frame_id="camera")
        incoming = messages.image_to_message(image, header)
        watch = Stopwatch()
        with watch.stage("image conversion"):
            decoded = image_from_message(incoming)
        output = frontend.process(Frame(messages.stamp_from_message(header.stamp), decoded))
        with watch.stage("message filling"):
            bearings = camera.bearings(output.features.keypoints)
            messages.features_to_message(output.features, output.tracks, header, bearings)
            if output.previous is not None:
                messages.matches_to_message(
                    output.matches, output.features.keypoints, output.previous.keypoints, header, output.previous_stamp
                )
        timings.append({**watch.timings, **output.timings})
        counts.append(len(output.features))
        progress(index + 1, len(images))
    timings, counts = timings[_WARM_UP:], counts[_WARM_UP:]
    found = [sum(row.get(stage, 0.0) for stage in EXTRACTION) for row in timings]
    other = [sum(row.values()) - extraction for row, extraction in zip(timings, found)]
    stages = {**_by_stage(timings), "extractor": Percentiles.of(found), "everything else": Percentiles.of(other),
              "whole": Percentiles.of([sum(row.values()) for row in timings])}
    return Figures(
        "stages", f"1. Stages in one process: {features} ({backend_of(frontend.tracker)}), {width}×{height}, "
        f"{np.median(counts):.0f} keypoints, {len(timings)} frames",
        stages, {"keypoints": float(np.median(counts))},
        {f"{features}: everything else costs less than the extractor (median)":
            stages["everything else"].p50 < stages["extractor"].p50},
    )


def measure_camera(
    features: str, top_k: int, images: Sequence[np.ndarray], seconds: float, progress: Progress
) -> Figures:
    """A 30 Hz camera in this process, the extractor node in another, over DDS with the shipped profile."""
    from kp_frontend.benchmarks.camera import Camera
    from kp_frontend.replay.node_process import NodeProcess, private_domain, shared_memory_shortage

    with (
        private_domain() as domain, Camera(domain) as camera,
        NodeProcess("extractor", {"features": features, "top_k": top_k}, {}) as node,
    ):
        def watch(done: int, total: int) -> None:
            node.check()
            progress(done, total)

        camera.wait_for_node(node.check)
        camera.show(images)
        camera.settle(camera.send(_WARM_UP, RATE))  # caches and threads are warm, and that is not measured
        node.start_measuring()
        sent = camera.send(round(seconds * RATE), RATE, watch)
        camera.settle(sent)
        cpu, wall, memory = node.usage()
        log = {entry["stamp"]: entry for entry in node.frames()}
    received = [stamp for stamp in sent if stamp in camera.received]
    rows = [log[stamp]["timings"] for stamp in received if "timings" in log.get(stamp, {})]
    besides = [row["total"] - sum(row.get(stage, 0.0) for stage in EXTRACTION) for row in rows]
    whole = [(camera.received[stamp] - stamp) * 1e-6 for stamp in received]
    stages = {
        **_by_stage([{name: row[name] for name in row if name != "total"} for row in rows]),
        "arrival → published": Percentiles.of([row["total"] for row in rows]),
        "arrival → published, beyond extraction": Percentiles.of(besides),
        "sent → features received": Percentiles.of(whole),
    }
    dropped = len(sent) - len(received)
    shortage = shared_memory_shortage()
    return Figures(
        "camera", f"2. {RATE:g} Hz camera, two processes over DDS: {features}, {len(sent) / RATE:.0f} s"
        + (f" (no shared memory: {shortage})" if shortage else ""), stages,
        {"sent": len(sent), "received": len(received), "dropped": dropped,
         "node CPU %": 100 * cpu / wall, "node memory MB": memory},
        {f"{features}: nothing dropped at {RATE:g} Hz": dropped == 0,
         f"{features}: beyond extraction ≤ 5 ms (median)":
             stages["arrival → published, beyond extraction"].p50 <= 5},
    )


def measure_odometry(
    features: str, top_k: int, frames: Sequence[Frame], camera: CameraModel, progress: Progress
) -> Figures:
    """RGB-D odometry, one frame after the other as fast as it goes."""
    frontend = Frontend(features, top_k=top_k, camera=camera, odometry=OdometryConfig())
    timings, status = [], []
    begin = time.perf_counter()
    for index, frame in enumerate(frames):
        start = time.perf_counter()
        output = frontend.process(frame)
        timings.append({**output.timings, "total": (time.perf_counter() - start) * 1e3})
        status.append(output.state.status if output.state is not None else "none")
        progress(index + 1, len(frames))
    rate = len(frames) / (time.perf_counter() - begin)
    tracked = 100 * status.count("tracking") / len(status)
    size = f"{camera.width}×{camera.height}"
    return Figures(
        "odometry", f"3. RGB-D odometry: {features}, {size}, {len(frames)} frames", _by_stage(timings),
        {"frames/s": rate, "tracked %": tracked}, {f"{features}: at least 30 frames/s": rate >= 30},
    )


def _by_stage(rows: Sequence[dict[str, float]]) -> dict[str, Percentiles]:
    stages = dict.fromkeys(stage for row in rows for stage in row)
    return {stage: Percentiles.of([row[stage] for row in rows if stage in row]) for stage in stages}


def table(figures: Figures) -> Table:
    """The figures as they are shown."""
    from rich.table import Table

    shown = Table(title=figures.title, title_justify="left")
    shown.add_column("stage, ms")
    for name in ("median", "p90", "p99"):
        shown.add_column(name, justify="right")
    for stage, values in figures.stages.items():
        shown.add_row(stage, f"{values.p50:.2f}", f"{values.p90:.2f}", f"{values.p99:.2f}")
    return shown


