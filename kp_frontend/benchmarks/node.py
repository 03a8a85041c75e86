"""``benchmark node``: up to which rate and size the node loses no frame over DDS, beside what extraction allows."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from kp_frontend.extractors import TRACKERS, load_extractor, parse_spec
from kp_frontend.isolated import call_isolated
from kp_frontend.progress import Progress
from kp_frontend.replay.summary import Percentiles
from kp_frontend.trackers import load_tracker

if TYPE_CHECKING:
    from rich.table import Table

    from kp_frontend.benchmarks.camera import Camera
    from kp_frontend.replay.node_process import NodeProcess

RATES = (10.0, 20.0, 30.0, 45.0, 60.0, 75.0, 90.0, 105.0, 120.0)
SIZES = ((320, 240), (640, 480), (1280, 720), (1920, 1080))
USUAL = (640, 480)
GOAL = 0.8
_IMAGES = 60
_HALVINGS = 4
_WARM_UP = 10
_TRIES = 3
_EXTRACTED = 100
_COMPILES = 30.0  # seconds that a new size may take at first


@dataclass(frozen=True)
class Point:
    """What came of one rate (Hz) at one size (pixels).

    sent, dropped, lost: frames; dropped ones the node did not process, lost ones it did, but their features never came
    back to us.  latency: ms from sent to features received.  cpu: of the node, percent of one core.
    """

    width: int
    height: int
    rate: float
    sent: int
    dropped: int
    latency: Percentiles
    cpu: float
    lost: int = 0


@dataclass(frozen=True)
class NodeFigures:
    """The node with these features.

    extraction: ms of a frame of the usual size, in a process that does nothing else (the fastest of three: before,
    between and after), and `allowed` the rate in Hz that this allows.  rates, sizes: what was tried.
    """

    features: str
    extraction: Percentiles
    rates: tuple[Point, ...]
    sizes: tuple[Point, ...]

    @property
    def allowed(self) -> float:
        return 1e3 / self.extraction.p50

    @property
    def drop_free(self) -> float:
        """The highest rate in Hz at which nothing was dropped, 0 where there is none."""
        return max((point.rate for point in self.rates if not point.dropped), default=0.0)

    def target(self) -> tuple[str, bool]:
        """Whether it comes near what extraction allows, or to the end of the sweep."""
        expected = min(GOAL * self.allowed, RATES[-1])
        size = "×".join(map(str, USUAL))
        return (f"{self.features}: no frame lost at {size} up to {self.drop_free:.0f} Hz, at least {expected:.0f} "
                f"({GOAL:.0%} of the {self.allowed:.0f} Hz that extraction alone allows, {RATES[-1]:.0f} at most): "
                f"{self.drop_free / self.allowed:.0%}", self.drop_free >= expected)

    def medians(self) -> dict[str, float]:
        """Milliseconds by name, for comparison with another run; the rate as the time between two frames."""
        found = {f"{self.features}: extraction": self.extraction.p50}
        if self.drop_free:
            found[f"{self.features}: between frames, none lost"] = 1e3 / self.drop_free
        return found | {f"{self.features}: latency at {point.width}×{point.height}, {point.rate:g} Hz":
                        point.latency.p50 for point in (*self.rates, *self.sizes) if not point.dropped}

    def written(self) -> dict[str, Any]:
        """As plain values."""
        return {**asdict(self), "allowed": self.allowed, "drop_free": self.drop_free}


def measure_node(features: str, top_k: int, seconds: float, rate: float, progress: Progress) -> NodeFigures:
    """Sweep the rate at the usual size, then the size at `rate` Hz, each until drops begin; `seconds` a try."""
    from kp_frontend.benchmarks.camera import Camera, photograph_video
    from kp_frontend.replay.node_process import NodeProcess, private_domain

    def extract() -> list[float]:
        return call_isolated(extraction_times, features, top_k, progress=lambda *_: None)

    alone = [extract()]
    total = len(RATES) + _HALVINGS + len(SIZES)
    with (
        private_domain() as domain, Camera(domain) as camera,
        NodeProcess("extractor", {"features": features, "top_k": top_k}, {}) as node,
    ):
        camera.wait_for_node(node.check)

        def show(size: tuple[int, int]) -> None:
            camera.show(photograph_video(_IMAGES, *size))
            _warm_up(camera)

        def trial(size: tuple[int, int], rate: float) -> Point:
            return _tried(camera, node, size, rate, seconds)

        rates, sizes = [], []
        show(USUAL)
        for point in sweep_rates(lambda rate: trial(USUAL, rate)):
            rates.append(point)
            progress(len(rates), total)
        alone.append(extract())
        for size in SIZES:
            show(size)
            sizes.append(trial(size, rate))
            progress(len(RATES) + _HALVINGS + len(sizes), total)
            if sizes[-1].dropped:
                break
    alone.append(extract())
    progress(total, total)
    extraction = Percentiles.of(min(alone, key=np.median))  # a busy moment must not flatter the node
    return NodeFigures(features, extraction, tuple(sorted(rates, key=lambda point: point.rate)), tuple(sizes))


def sweep_rates(trial: Callable[[float], Point]) -> Iterator[Point]:
    """RATES until one loses frames, then rates between that one and the last good one, by halving."""
    good = bad = 0.0
    for rate in RATES:
        point = trial(rate)
        yield point
        if point.dropped:
            bad = rate
            break
        good = rate
    for _ in range(_HALVINGS if bad else 0):
        middle = trial((good + bad) / 2)
        yield middle
        good, bad = (good, middle.rate) if middle.dropped else (middle.rate, bad)


def _warm_up(camera: Camera) -> None:
    """Let the node compile and allocate for a new size; it is done when it has processed the newest image."""
    camera.settle(camera.send(_WARM_UP, RATES[0])[-1:], _COMPILES)


def _tried(camera: Camera, node: NodeProcess, size: tuple[int, int], rate: float, seconds: float) -> Point:
    """The first of some tries that loses nothing, or the last: another process's moment is not the node's fault."""
    for _ in range(_TRIES):
        camera.received.clear()
        node.start_measuring()
        sent = camera.send(max(2, round(seconds * rate)), rate)
        camera.settle(sent)
        cpu, wall, _ = node.usage()
        received = [stamp for stamp in sent if stamp in camera.received]
        latency = Percentiles.of([(camera.received[stamp] - stamp) * 1e-6 for stamp in received])
        processed = {frame["stamp"] for frame in node.frames() if "timings" in frame}.union(received)
        dropped = len(set(sent) - processed)
        lost = len(sent) - len(received) - dropped
        point = Point(*size, rate, len(sent), dropped, latency, 100 * cpu / wall, lost)
        if not (dropped or lost):
            break
    return point


def extraction_times(features: str, top_k: int, progress: Progress) -> list[float]:
    """Milliseconds of each of some frames of the usual size, the extractor alone, in a process of its own.

    With the threads of the node, and of images as it decodes them.
    """
    from std_msgs.msg import Header

    from kp_frontend.benchmarks.camera import photograph_video
    from kp_frontend.images import image_from_message
    from kp_frontend.messages import image_to_message
    from kp_frontend.nodes.threads import set_threads

    set_threads("auto", 0)
    images = [image_from_message(image_to_message(image, Header())) for image in photograph_video(_IMAGES, *USUAL)]
    tracker = parse_spec(features)[0] in TRACKERS
    step: Callable[[np.ndarray], Any] = (
        load_tracker(features, top_k=top_k).track if tracker else load_extractor(features, top_k=top_k).extract)
    times = []
    for number in range(_WARM_UP + _EXTRACTED):
        begin = time.perf_counter()
        step(images[number % len(images)])
        times.append(1e3 * (time.perf_counter() - begin))
    return times[_WARM_UP:]


def table(measured: Sequence[NodeFigures]) -> Table:
    """The figures as they are shown."""
    from rich import box
    from rich.table import Table

    shown = Table(title="The node over DDS, image sent → features received", box=box.SIMPLE, title_justify="left")
    shown.add_column("features", no_wrap=True)
    for name in ("size", "Hz", "sent", "dropped", "lost", "ms p50", "p99", "CPU %"):
        shown.add_column(name, justify="right")
    for figures in measured:
        for points in (figures.rates, figures.sizes):
            for point in points:
                shown.add_row(
                    figures.features, f"{point.width}×{point.height}", f"{point.rate:g}", str(point.sent),
                    str(point.dropped), str(point.lost), f"{point.latency.p50:.1f}", f"{point.latency.p99:.1f}",
                    f"{point.cpu:.0f}", style="red" if point.dropped else "", end_section=point is points[-1])
    return shown


def draw(axes: Any, measured: Sequence[NodeFigures]) -> None:
    """Frames received a second over frames sent, and what extraction alone allows."""
    for figures in measured:
        sent = [point.rate for point in figures.rates]
        received = [point.rate * (1 - (point.dropped + point.lost) / point.sent) for point in figures.rates]
        line, = axes.plot(sent, received, marker="o", markersize=3, label=figures.features)
        axes.axhline(figures.allowed, color=line.get_color(), linestyle="--", linewidth=0.8,
                     label=f"{figures.features}: extraction alone")
    axes.plot((0, RATES[-1]), (0, RATES[-1]), color="black", linewidth=0.5)
    axes.set(xlabel="sent, Hz", ylabel="received, Hz", xlim=(0, RATES[-1]), ylim=(0, 1.1 * RATES[-1]))
    axes.set_title("The node over DDS, 640×480", loc="left")
    axes.legend(fontsize=8)
