"""``benchmark frontend``: what each stage costs on this machine, beside the extractor in the same run."""

from __future__ import annotations

import argparse
import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from kp_frontend.benchmark_report import show_targets, write_figures
from kp_frontend.camera import CameraModel
from kp_frontend.errors import InputError
from kp_frontend.odometry import OdometryConfig
from kp_frontend.pipeline import Frame, Frontend, Stopwatch
from kp_frontend.progress import Progress, progress_bar
from kp_frontend.replay.bag import BagSequence
from kp_frontend.replay.summary import Percentiles

if TYPE_CHECKING:
    from rich.table import Table

WIDTH, HEIGHT, RATE = 640, 480, 30.0
_WARM_UP = 10
_WAIT = 2.0
# Stages that find keypoints, whatever the tracker calls them; all others are overhead.
EXTRACTION = ("extract", "flow", "detect")


@dataclass(frozen=True)
class Figures:
    """One of the tables: milliseconds by stage, single numbers by name, and targets by sentence with whether met."""

    title: str
    stages: dict[str, Percentiles]
    numbers: dict[str, float] = field(default_factory=dict)
    targets: dict[str, bool] = field(default_factory=dict)


def photograph_video(count: int) -> list[np.ndarray]:
    """640×480 grey views of a photograph under a camera that circles, turns and zooms gently, at 30 Hz."""
    from skimage import data

    photo = cv2.resize(cv2.cvtColor(data.astronaut(), cv2.COLOR_RGB2GRAY), (1024, 1024), interpolation=cv2.INTER_CUBIC)
    views = []
    for index in range(count):
        phase = 2 * np.pi * index / (10 * RATE)
        warp = cv2.getRotationMatrix2D((512, 512), 8 * np.sin(phase), 1.1 + 0.1 * np.sin(2 * phase))
        warp[:, 2] += (WIDTH / 2 - 512 + 90 * np.cos(phase), HEIGHT / 2 - 512 + 60 * np.sin(phase))
        views.append(cv2.warpAffine(photo, warp, (WIDTH, HEIGHT), borderMode=cv2.BORDER_REFLECT))
    return views


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
    stages = {**_by_stage(timings), "extractor": _percentiles(found), "everything else": _percentiles(other)}
    return Figures(
        f"1. Stages in one process: {features}, {width}×{height}, {np.median(counts):.0f} keypoints, "
        f"{len(timings)} frames",
        stages, {"keypoints": float(np.median(counts))},
        {"everything else costs less than the extractor (median)":
            stages["everything else"].p50 < stages["extractor"].p50},
    )


def measure_camera(
    features: str, top_k: int, images: Sequence[np.ndarray], seconds: float, progress: Progress
) -> Figures:
    """A 30 Hz camera in this process, the extractor node in another, over DDS with the shipped profile."""
    from kp_frontend.replay.collector import Collector
    from kp_frontend.replay.node_process import NodeProcess, private_domain, shared_memory_shortage

    with (
        private_domain() as domain, Collector(domain) as collector,
        NodeProcess("extractor", {"features": features, "top_k": top_k}, {}) as node,
    ):
        def watch(done: int, total: int) -> None:
            node.check()
            progress(done, total)

        collector.wait_for_node(["features", "matches"], node.check)
        camera = Camera(collector.node, images)
        camera.wait_for_subscriber(node.check)
        camera.send(_WARM_UP, lambda done, total: node.check())
        time.sleep(_WAIT)  # caches and threads are warm, and that is not measured
        node.start_measuring()
        camera.sent.clear()
        camera.send(round(seconds * RATE), watch)
        collector.wait_for_frames(_WARM_UP + len(camera.sent), _WAIT)
        cpu, wall, memory = node.usage()
        log = {entry["stamp"]: entry for entry in node.frames()}
    sent = camera.sent
    received = [stamp for stamp in sent if stamp in collector.features]
    rows = [log[stamp]["timings"] for stamp in received if "timings" in log.get(stamp, {})]
    besides = [row["total"] - sum(row.get(stage, 0.0) for stage in EXTRACTION) for row in rows]
    whole = [(collector.features[stamp].time - sent[stamp]) * 1e-6 for stamp in received]
    stages = {
        **_by_stage([{name: row[name] for name in row if name != "total"} for row in rows]),
        "arrival → published": _percentiles([row["total"] for row in rows]),
        "arrival → published, beyond extraction": _percentiles(besides),
        "sent → features received": _percentiles(whole),
    }
    dropped = len(sent) - len(received)
    shortage = shared_memory_shortage()
    return Figures(
        f"2. {RATE:g} Hz camera, two processes over DDS: {features}, {len(sent) / RATE:.0f} s"
        + (f" (no shared memory: {shortage})" if shortage else ""), stages,
        {"sent": len(sent), "received": len(received), "dropped": dropped,
         "node CPU %": 100 * cpu / wall, "node memory MB": memory},
        {"nothing dropped": dropped == 0,
         "beyond extraction ≤ 5 ms (median)": stages["arrival → published, beyond extraction"].p50 <= 5},
    )


class Camera:
    """Publishes `images` over and over at 30 Hz from `node`; sent: stamp → wall time, both in ns."""

    def __init__(self, node: Any, images: Sequence[np.ndarray]) -> None:
        from rclpy.qos import qos_profile_sensor_data
        from sensor_msgs.msg import Image
        from std_msgs.msg import Header

        from kp_frontend.messages import image_to_message

        self._publisher = node.create_publisher(Image, "image", qos_profile_sensor_data)
        # There and back, so that the picture never jumps.
        order = [*images, *images[-2:0:-1]]
        self._messages = itertools.cycle([image_to_message(image, Header(frame_id="camera")) for image in order])
        self.sent: dict[int, int] = {}

    def wait_for_subscriber(self, check: Callable[[], None]) -> None:
        """Return when the node listens; `check` raises where it never will."""
        while not self._publisher.get_subscription_count():
            check()
            time.sleep(0.02)
        time.sleep(0.2)

    def send(self, count: int, progress: Progress) -> None:
        """Send `count` images on a clock that does not drift."""
        from kp_frontend.messages import stamp_to_message

        begin, pause = time.monotonic(), threading.Event()
        for index in range(count):
            pause.wait(max(0.0, begin + index / RATE - time.monotonic()))
            message, now = next(self._messages), time.time_ns()
            message.header.stamp = stamp_to_message(now)
            self.sent[now] = now
            self._publisher.publish(message)
            if index % round(RATE) == 0 or index == count - 1:
                progress(index + 1, count)


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
        f"3. RGB-D odometry: {features}, {size}, {len(frames)} frames", _by_stage(timings),
        {"frames/s": rate, "tracked %": tracked}, {"at least 30 frames/s": rate >= 30},
    )


def _percentiles(values: Sequence[float]) -> Percentiles:
    return Percentiles.of(np.array(values, float))


def _by_stage(rows: Sequence[dict[str, float]]) -> dict[str, Percentiles]:
    stages = dict.fromkeys(stage for row in rows for stage in row)
    return {stage: _percentiles([row[stage] for row in rows if stage in row]) for stage in stages}


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


def parser() -> argparse.ArgumentParser:
    """Options of the command."""
    arguments = argparse.ArgumentParser(
        prog="kp_frontend benchmark",
        description="Measure the front-end on this machine: stages in one process, a 30 Hz camera over DDS, odometry.",
    )
    add = arguments.add_argument
    add("what", choices=["frontend"], help="what to measure")
    add("--features", default="orb", metavar="SPEC", help="default %(default)s")
    add("--top-k", type=int, default=1000, help="most keypoints an image (default %(default)s)")
    add("--seconds", type=float, default=60.0, help="of the camera over DDS (default %(default)s)")
    add("--frames", type=int, default=150, help="of the other two (default %(default)s)")
    add("--bag", type=Path, help="take images from this recording (with depth, for odometry), not a photograph")
    add("--json", type=Path, metavar="FILE", help="write the figures there")
    return arguments


def main(argv: list[str]) -> int:
    """Run the command; returns 0, raises InputError."""
    options = parser().parse_args(argv)
    if options.frames < 2 * _WARM_UP or options.seconds < 1:
        raise InputError(f"expected --frames of {2 * _WARM_UP} or more and --seconds of 1 or more")
    from rich.console import Console

    console = Console()
    results = []
    for figures in _measure(options, console):
        console.print(table(figures))
        console.print("   ".join(f"{name}: {value:.4g}" for name, value in figures.numbers.items()), highlight=False)
        show_targets(console, figures.targets)
        console.print()
        results.append(figures)
    if options.json is not None:
        write_figures(options.json, ["kp_frontend", "benchmark", *argv],
                      {"results": [asdict(figures) for figures in results]})
    return 0


def _measure(options: argparse.Namespace, console: Any) -> Iterator[Figures]:
    """The three tables, one after the other, each with a progress bar."""
    features, top_k = options.features, options.top_k
    if options.bag is not None:
        frames, camera = bag_frames(options.bag, options.frames)
        images = [frame.image for frame in frames]
    else:
        images = photograph_video(options.frames)
    with progress_bar("stages", console=console) as bar:
        first = measure_stages(features, top_k, images, bar.reach)
    yield first
    with progress_bar("camera over DDS", console=console) as bar:
        second = measure_camera(features, top_k, images, options.seconds, bar.reach)
    yield second
    if options.bag is None:
        with console.status("rendering RGB-D frames"):
            frames, camera = flight_frames(options.frames)
    if camera is None or frames[0].depth is None:
        raise InputError(f"{options.bag} has no calibrated depth: odometry is not measured")
    with progress_bar("odometry", console=console) as bar:
        third = measure_odometry(features, top_k, frames, camera, bar.reach)
    yield third
