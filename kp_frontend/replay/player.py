"""Plays a bag's own bytes over DDS, with /clock, at the bag's pace: ``python -m kp_frontend.replay.player BAG``."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import struct
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import rclpy
from rclpy.context import Context
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import QoSProfile
from rosgraph_msgs.msg import Clock

from kp_frontend.errors import InputError
from kp_frontend.messages import stamp_to_message
from kp_frontend.nodes.run import middleware_environment
from kp_frontend.replay.topics import IMAGE_TYPES, INFO_TYPE

_AFTER_CALIBRATION = 0.2
_LAST_MESSAGES = 0.3
_STAMP = struct.Struct("<4xiI")  # encapsulation, then the header's stamp, with which every image starts


class Player:
    """Publishes messages of one bag from one node, and notes when each image went out.

    sent: image topic → {stamp in ns: wall time in ns}.
    """

    def __init__(self, node: Node, reader: Any, topics: Sequence[str] | None = None) -> None:
        self._node = node
        self._reader = reader
        unknown = sorted(set(topics or ()) - set(reader.topics))
        if unknown:
            raise InputError(f"no topic {', '.join(unknown)} in the bag; it has {', '.join(sorted(reader.topics))}")
        wanted = [connection for connection in reader.connections if not topics or connection.topic in topics]
        self._publishers: dict[str, Publisher] = {}
        for connection in wanted:
            kind = message_class(connection.msgtype)
            if kind is None:
                node.get_logger().warning(f"{connection.topic}: {connection.msgtype} is not installed, not played")
            elif connection.topic not in self._publishers:
                self._publishers[connection.topic] = node.create_publisher(kind, connection.topic, QoSProfile(depth=10))
        self._connections = [connection for connection in wanted if connection.topic in self._publishers]
        self._clock = node.create_publisher(Clock, "/clock", QoSProfile(depth=10))
        self._to_cdr = cdr_converter(reader)
        self.sent: dict[str, dict[int, int]] = {}

    def wait_for_subscribers(self, topics: Sequence[str], timeout: float) -> None:
        """Return when each of `topics`, or its compressed twin, has a subscriber; InputError after `timeout` seconds.

        A node that reads compressed images is told the name of the raw ones, as image_transport has it.
        """
        end = time.monotonic() + timeout
        while missing := [name for name in topics if not self._subscribers(name)]:
            if time.monotonic() > end:
                raise InputError(f"nobody subscribed to {', '.join(missing)} within {timeout:g} s")
            time.sleep(0.02)

    def _subscribers(self, topic: str) -> int:
        twins = [name for name in (topic, f"{topic}/compressed") if name in self._publishers]
        if not twins:
            raise InputError(f"{topic} is not played; the bag has {', '.join(sorted(self._publishers))}")
        return sum(self._publishers[name].get_subscription_count() for name in twins)

    def send_calibration(self) -> None:
        """The first camera_info of each camera, ahead of all images, which need it from the first on."""
        connections = [connection for connection in self._connections if connection.msgtype == INFO_TYPE]
        for connection in connections:
            for _, _, raw in self._reader.messages(connections=[connection]):
                self._publishers[connection.topic].publish(self._to_cdr(raw, connection.msgtype))
                break
        if connections:
            time.sleep(_AFTER_CALIBRATION)

    def play(self, rate: float, stop: Callable[[], bool], images: int | None = None) -> None:
        """All messages in the bag's order, `rate` times as fast as they were recorded, until `stop` says so.

        images: at most so many on each image topic, and an end where all have been sent.
        """
        topics = {connection.topic for connection in self._connections if connection.msgtype in IMAGE_TYPES}
        first = began = None
        for connection, recorded, raw in self._reader.messages(connections=self._connections):
            if first is None:
                first, began = recorded, time.monotonic()
            delay = began + (recorded - first) * 1e-9 / rate - time.monotonic()
            if delay > 0:
                time.sleep(delay)
            if stop():
                return
            sent = self.sent.setdefault(connection.topic, {}) if connection.topic in topics else {}
            if images is not None and len(sent) >= images:
                if all(len(self.sent.get(topic, ())) >= images for topic in topics):
                    return
                continue
            data = self._to_cdr(raw, connection.msgtype)
            self._clock.publish(Clock(clock=stamp_to_message(recorded)))
            if connection.topic in topics:
                sec, nanosec = _STAMP.unpack_from(data)
                sent[sec * 1_000_000_000 + nanosec] = time.time_ns()
            self._publishers[connection.topic].publish(data)


def message_class(msgtype: str) -> type | None:
    """Class of ``package/msg/Name``, None where its package is not installed."""
    package, _, name = msgtype.split("/")
    try:
        return getattr(importlib.import_module(f"{package}.msg"), name, None)
    except ImportError:
        return None


def cdr_converter(reader: Any) -> Callable[[bytes, str], bytes]:
    """Function (raw, type) → the bytes that ROS 2 sends, whatever the bag's format."""
    if reader.is2:
        return lambda raw, _: bytes(raw)
    from rosbags.convert.converter import migrate_bytes
    from rosbags.typesys import Stores, get_typestore

    store = get_typestore(Stores.LATEST)
    cache: dict[str, object] = {}
    return lambda raw, kind: bytes(
        migrate_bytes(reader.typestore, store, kind, kind, cache, raw, src_is2=False, dst_is2=True)
    )


@contextmanager
def open_reader(path: Path) -> Iterator[Any]:
    """rosbags reader of a ROS 2 bag folder, a lone .mcap or .db3, or a ROS 1 .bag; InputError where it is none."""
    from rosbags.highlevel import AnyReader
    from rosbags.typesys import Stores, get_typestore

    if not path.exists():
        raise InputError(f"no bag {path}")
    # Humble's sqlite3 bags hold no definitions; those of the standard messages have not changed since.
    reader = AnyReader([path], default_typestore=get_typestore(Stores.ROS2_HUMBLE))
    try:
        reader.open()
    except Exception as error:  # the readers raise whatever damaged bytes lead to
        raise InputError(f"{path} is no bag that can be read: {error}") from error
    try:
        yield reader
    finally:
        reader.close()


def parser() -> argparse.ArgumentParser:
    """Options of the program."""
    arguments = argparse.ArgumentParser(prog="python -m kp_frontend.replay.player", description=__doc__)
    arguments.add_argument("bag", type=Path, help="ROS 2 bag folder, .mcap, .db3, or ROS 1 .bag")
    arguments.add_argument("--rate", type=float, default=1.0, help="times the recorded speed (default 1)")
    arguments.add_argument("--topics", nargs="+", metavar="TOPIC", help="play only these")
    arguments.add_argument("--wait-for", nargs="+", default=[], metavar="TOPIC",
                           help="wait for subscribers of each, or of its TOPIC/compressed")
    arguments.add_argument("--timeout", type=float, default=30.0, help="seconds to wait for them (default 30)")
    arguments.add_argument("--images", type=int, metavar="N", help="play the first N images only")
    arguments.add_argument("--log", type=Path, metavar="FILE", help="write {topic: {stamp: wall time sent}}, all in ns")
    return arguments


def main(argv: list[str] | None = None) -> int:
    """Play one bag; returns 0, or 2 with one line on stderr where it cannot be played."""
    options = parser().parse_args(argv)
    if options.rate <= 0:
        parser().error(f"--rate is {options.rate:g}, expected more than 0")
    os.environ.update(middleware_environment())
    context = Context()
    rclpy.init(context=context)
    node = rclpy.create_node("player", context=context, start_parameter_services=False)
    try:
        with open_reader(options.bag) as reader:
            player = Player(node, reader, options.topics)
            player.wait_for_subscribers(options.wait_for, options.timeout)
            player.send_calibration()
            player.play(options.rate, lambda: not context.ok(), options.images)
            time.sleep(_LAST_MESSAGES)
        if options.log:
            options.log.write_text(json.dumps(player.sent), encoding="utf-8")
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, ExternalShutdownException):
        return 130
    finally:
        node.destroy_node()
        context.try_shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
