"""Plays a bag through the real node, in a process of its own, over DDS; measures latency and drops."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from kp_frontend.errors import InputError
from kp_frontend.features import Features, Matches
from kp_frontend.odometry import OdometryState
from kp_frontend.overlay import draw_tracks
from kp_frontend.pipeline import FrontendOutput
from kp_frontend.replay.bag import BagSequence
from kp_frontend.replay.collector import Collector, Received
from kp_frontend.replay.feature_archive import FeatureArchive
from kp_frontend.replay.node_process import NodeProcess, private_domain, shared_memory_shortage
from kp_frontend.replay.offline import Progress, RunOptions
from kp_frontend.replay.result import Recorder, RunResult

_LAST_FRAME = 2.0
_SAMPLE = 0.25


@dataclass(frozen=True, eq=False)
class LiveResult:
    """A live run: its figures, and the features as they were received, by stamp in ns."""

    run: RunResult
    received: dict[int, Received]

    @property
    def features(self) -> dict[int, Features]:
        """Features by stamp in ns."""
        return {stamp: found.features for stamp, found in self.received.items()}


def run_live(
    sequence: BagSequence, features: str, options: RunOptions | None = None, *, rate: float = 1.0,
    progress: Progress | None = None,
) -> LiveResult:
    """Play a bag once, `rate` times as fast as recorded, through `odometry` (`extractor` where it is not calibrated).

    Node and player run in processes of their own, on a DDS domain of their own on this machine, with the shipped
    Fast DDS profile. The result's stamps are those of all images sent; a frame that the node left out has status
    ``dropped`` and is in `dropped`. Latency is from the player's publishing to the arrival of the features here.
    Raises InputError where the node or the player cannot start, with its last words.
    """
    options = options or RunOptions()
    command, parameters, remappings = _node_arguments(sequence, features, options)
    shortage = shared_memory_shortage()
    if shortage:
        parameters |= _reliable(sequence)
    total = min(len(sequence), options.max_frames or len(sequence))
    topics = ["features", "matches", *(["odometry"] if command == "odometry" else [])]
    with (
        private_domain() as domain, Collector(domain, descriptors=options.save_features is not None) as collector,
        NodeProcess(command, parameters, remappings) as node,
    ):
        def watch() -> None:
            node.check()
            if progress is not None:
                progress(min(len(collector.features), total), total)

        collector.wait_for_node(topics, node.check)
        node.start_measuring()
        sent = _play(sequence, rate, options.max_frames, watch)
        collector.wait_for_frames(len(sent), _LAST_FRAME)
        watch()
        usage, log = node.usage(), {entry["stamp"]: entry for entry in node.frames()}
    received = {stamp: found for stamp, found in sorted(collector.features.items()) if stamp in sent}
    run = make_result(sequence, features, sent, log, collector, usage, _overlays(sequence, collector, options.overlays))
    if shortage:
        run = replace(run, notes=(*run.notes, f"{shortage}: images went over UDP, reliably, which is slower"))
    if options.save_features is not None:
        with FeatureArchive(options.save_features) as archive:
            for stamp, found in received.items():
                archive.add(stamp, found.features, found.tracks)
    return LiveResult(run, received)


def _node_arguments(
    sequence: BagSequence, features: str, options: RunOptions
) -> tuple[str, dict[str, Any], dict[str, str]]:
    """Command, parameters and remappings of the node that fits the sequence."""
    values: dict[str, Any] = {
        "features": features, "top_k": options.top_k, "backend": options.backend, "use_sim_time": True,
        "image_transport": _transport(sequence, "image"), "rectified": "rect" in sequence.topics.image,
    }
    if sequence.options.calibration is not None:
        values["calibration_file"] = str(sequence.options.calibration.resolve())
    names = {"image": _base(sequence, "image"), "camera_info": sequence.topics.info}
    command = "extractor"
    if sequence.mode != "features":
        command = "odometry"
        values.update(mode=sequence.mode, depth_transport=_transport(sequence, "depth"), publish_tf=False)
        if sequence.baseline:
            values["baseline"] = sequence.baseline
        names |= {"depth": _base(sequence, "depth"), "right/image": _base(sequence, "right"),
                  "right/camera_info": sequence.topics.right_info}
    return command, values, {name: topic for name, topic in names.items() if topic}


def _reliable(sequence: BagSequence) -> dict[str, str]:
    """Parameters with which the node asks for every image, and not only for those that come through."""
    topics = [topic for role in ("image", "depth", "right") if (topic := getattr(sequence.topics, role)) is not None]
    return {f"qos_overrides.{topic}.subscription.reliability": "reliable" for topic in topics}


def _transport(sequence: BagSequence, role: str) -> str:
    return "raw" if getattr(sequence.topics, role) == _base(sequence, role) else "compressed"


def _base(sequence: BagSequence, role: str) -> str | None:
    """Name of a topic as image_transport knows it, without the transport's suffix."""
    topic = getattr(sequence.topics, role)
    return None if topic is None else topic.removesuffix("/compressed").removesuffix("/compressedDepth")


def _play(sequence: BagSequence, rate: float, images: int | None, watch: Callable[[], None]) -> dict[int, int]:
    """Play the topics that the node reads; returns {stamp: wall time sent} of its images, in ns."""
    second = {"rgbd": ("depth",), "stereo": ("right",)}.get(sequence.mode, ())
    pictures = [getattr(sequence.topics, role) for role in ("image", *second)]
    infos = [topic for topic in (sequence.topics.info, sequence.topics.right_info) if topic is not None]
    with tempfile.TemporaryDirectory(prefix="kp_frontend_player_") as folder:
        log, words = Path(folder) / "sent.json", Path(folder) / "output.log"
        with words.open("wb") as output:
            player = subprocess.Popen(
                [sys.executable, "-m", "kp_frontend.replay.player", str(sequence.path), "--rate", str(rate),
                 "--topics", *pictures, *infos, "--wait-for", *pictures, "--log", str(log),
                 *(["--images", str(images)] if images else [])],
                stdout=output, stderr=subprocess.STDOUT,
            )
        try:
            while player.poll() is None:
                watch()
                time.sleep(_SAMPLE)
        finally:
            player.kill()
            player.wait()
        if player.returncode:
            said = words.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            raise InputError(f"the player ended: {said[-1] if said else f'exit code {player.returncode}'}")
        sent = json.loads(log.read_text(encoding="utf-8")).get(sequence.topics.image, {})
    return {int(stamp): wall for stamp, wall in sent.items()}


def make_result(
    sequence: BagSequence, features: str, sent: Mapping[int, int], log: Mapping[int, dict[str, Any]],
    collector: Collector, usage: tuple[float, float, float], overlays: dict[int, np.ndarray],
) -> RunResult:
    """A live run's figures.

    sent: stamp → wall time, ns.  log: the node's frame log by stamp.  usage: CPU and wall seconds, and MiB.
    """
    recorder = Recorder(features, sequence.mode)
    latency, dropped = [], []
    for stamp in sorted(sent):
        entry, found = log.get(stamp, {}), collector.features.get(stamp)
        latency.append(np.nan if found is None else (found.time - sent[stamp]) * 1e-6)
        if "error" in entry:
            recorder.fail(stamp, entry["error"])
        elif found is None:
            recorder.drop(stamp)
            dropped.append(stamp)
        else:
            recorder.add(_output(stamp, found, entry, collector), {})
    cpu, seconds, memory = usage
    return recorder.result(
        seconds=seconds, cpu_seconds=cpu, memory_mb=memory, overlays=overlays,
        latency=np.array(latency, np.float32), dropped=tuple(dropped),
    )


def _output(stamp: int, found: Received, entry: Mapping[str, Any], collector: Collector) -> FrontendOutput:
    """What the node's pipeline gave for one frame, from its messages and its frame log."""
    state = None
    if "status" in entry:
        pose = collector.poses.get(stamp)
        # A frame that waited for the map to start gets its pose later.
        state = OdometryState(
            stamp, entry["status"] if pose is None else "tracking", pose, inliers=entry["inliers"],
            tracked=entry["tracked"], metric=entry["metric"], message=entry["odometry_message"],
        )
    matches = collector.matches.get(stamp, Matches.empty())
    return FrontendOutput(stamp, found.features, found.tracks, matches, None, 0, state, entry.get("timings", {}))


def _overlays(sequence: BagSequence, collector: Collector, count: int) -> dict[int, np.ndarray]:
    """Pictures of `count` received frames, evenly spread, by stamp."""
    stamps = sorted(collector.features)
    spread = np.linspace(0, len(stamps) - 1, count + 1).round().astype(int)[1:]
    chosen = {stamps[k] for k in spread} if stamps else set()
    before = dict(zip(stamps[1:], stamps))
    drawn = {}
    for recorded in sequence.frames() if chosen else ():
        if recorded.stamp not in chosen:
            continue
        found, previous = collector.features[recorded.stamp], collector.features.get(before.get(recorded.stamp, -1))
        drawn[recorded.stamp] = draw_tracks(
            recorded.decode().image, found.features, found.tracks, collector.matches.get(recorded.stamp),
            previous.features if previous is not None else None,
        )
    return drawn


@dataclass(frozen=True)
class Comparison:
    """Keypoints of the same frames, live and offline.

    frames: compared.  same: frames in which all keypoints are the same within `tolerance` pixels, one by one.
    share: of all live keypoints, those with an offline keypoint within `tolerance`.  worst: their largest distance, px.
    """

    frames: int
    same: int
    share: float
    worst: float
    tolerance: float


def compare(live: Mapping[int, Features], offline: Mapping[int, Features], tolerance: float = 0.01) -> Comparison:
    """Compare the features of the stamps that both have; tolerance in pixels."""
    stamps = sorted(set(live) & set(offline))
    same = near = total = 0
    worst = 0.0
    for stamp in stamps:
        ours, theirs = live[stamp].keypoints, offline[stamp].keypoints
        distances = np.linalg.norm(ours - theirs, axis=1) if ours.shape == theirs.shape else np.array([np.inf])
        if (distances <= tolerance).all():
            same += 1
        else:
            distances = _nearest_distances(ours, theirs)
        found = distances[distances <= tolerance]
        near, total = near + len(found), total + len(ours)
        worst = max(worst, float(found.max(initial=0.0)))
    return Comparison(len(stamps), same, near / total if total else 1.0, worst, tolerance)


def _nearest_distances(points: np.ndarray, others: np.ndarray) -> np.ndarray:
    """N float: from each of N×2 points to the nearest of the others, inf where there are none."""
    squares = ((points[:, None] - others[None]) ** 2).sum(axis=2)
    return np.sqrt(squares.min(axis=1, initial=np.inf))
