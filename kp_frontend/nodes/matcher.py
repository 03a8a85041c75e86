"""Node `matcher`: two `features` topics → matches, for stereo pairs, several cameras, another robot."""

from __future__ import annotations

import time
from typing import Any

from sensor_msgs.msg import PointCloud2

from kp_frontend.matching import match
from kp_frontend.messages import features_from_message, matches_to_message, stamp_from_message
from kp_frontend.nodes.diagnostics import Diagnostics
from kp_frontend.nodes.inputs import subscribe
from kp_frontend.nodes.outputs import advertise
from kp_frontend.nodes.parameters import MATCHER, declare, describe
from kp_frontend.nodes.run import ClosingNode, run_node
from kp_frontend.nodes.slot import NewestSlot
from kp_frontend.nodes.synchronizer import StampSynchronizer
from kp_frontend.pipeline import Stopwatch

HELP = f"""usage: kp_frontend matcher [--ros-args -r features_a:=/left/features -r features_b:=/right/features …]

Matches the features of two cameras by descriptor, at stamps that are near each other.

in   features_a        sensor_msgs/PointCloud2 of `extractor` or `odometry`: the query
     features_b        the same of another camera: the train side
out  matches           sensor_msgs/PointCloud2: query_index u0 v0 in features_a, train_index u1 v1 in features_b
     /diagnostics      rate, latency by stage, drops, counts, last error

parameters (name := default)
{describe(MATCHER)}
"""


class MatcherNode(ClosingNode):
    """Matches pairs of feature clouds in a worker thread, the newest pair first."""

    def __init__(self, **options) -> None:
        super().__init__("matcher", **options)
        self.values = declare(self, MATCHER)
        self.diagnostics = Diagnostics(self, self.values.diagnostics_window, {"model": self.values.method})
        self._matches = advertise(self, PointCloud2, "matches")
        self._slot: NewestSlot[tuple, None] = NewestSlot(
            self._work, lambda pair: self.diagnostics.drop(_stamp(pair[0])))
        self._sync = StampSynchronizer(["b"], self._together, round(self.values.sync_tolerance * 1e9))
        self._other_topic = self.resolve_topic_name("features_b")
        subscribe(self, PointCloud2, "features_a", self._first)
        subscribe(self, PointCloud2, "features_b", lambda cloud: self._sync.add("b", _stamp(cloud), cloud))

    def close(self) -> None:
        """End the worker thread."""
        self._slot.close()

    def _first(self, cloud: PointCloud2) -> None:
        self.diagnostics.count("received")
        self._sync.add_main(_stamp(cloud), (cloud, time.time_ns()))

    def _together(self, main: tuple[PointCloud2, int], others: dict[str, Any]) -> None:
        if others["b"] is None:
            self.diagnostics.error(f"no features on {self._other_topic} within sync_tolerance: not matched")
        elif not self._matches.get_subscription_count():
            self.diagnostics.count("idle")
        else:
            self._slot.put((main[0], others["b"], main[1]))

    def _work(self, pair: tuple[PointCloud2, PointCloud2, int]) -> None:
        first, second, arrived = pair
        watch = Stopwatch()
        with self.diagnostics.survived(_stamp(first)):
            with watch.stage("decode"):
                query, train = features_from_message(first)[0], features_from_message(second)[0]
            with watch.stage("match"):
                matches = match(query, train, **self._options())
            message = matches_to_message(matches, query.keypoints, train.keypoints, first.header, _stamp(second))
            self._matches.publish(message)
            watch.timings["total"] = (time.time_ns() - arrived) * 1e-6
            self.diagnostics.frame(_stamp(first), watch.timings, keypoints=len(query), matches=len(matches))

    def _options(self) -> dict[str, Any]:
        values = self.values
        return {
            "method": values.method,
            "ratio": values.ratio if values.ratio < 1 else None,
            "max_distance": values.max_distance or None,
            "stereo_rows": (values.stereo_rows, values.max_disparity) if values.stereo_rows else None,
        }


def _stamp(cloud: PointCloud2) -> int:
    return stamp_from_message(cloud.header.stamp)


def main(argv: list[str]) -> int:
    """Run the node until it is told to stop; returns the exit code."""
    return run_node(MatcherNode, argv, HELP)
