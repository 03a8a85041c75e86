"""Start a node, spin it, end it cleanly: the same for every node."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Sequence
from importlib import metadata

import rclpy
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.utilities import remove_ros_args

from kp_frontend.errors import InputError
from kp_frontend.resources import find_resource

PROFILE = "fastdds_shm.xml"
PROFILE_VARIABLES = ("FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE")
# Releases whose Fast DDS reads the second name; the later ones warn of it.
_BEFORE_KILTED = ("humble", "iron", "jazzy")


def middleware_environment() -> dict[str, str]:
    """Environment with which Fast DDS carries camera images: our profile, unless the user set one of their own."""
    if any(name in os.environ for name in PROFILE_VARIABLES):
        return {}
    return {PROFILE_VARIABLES[_distribution() in _BEFORE_KILTED]: str(find_resource("config", PROFILE))}


def _distribution() -> str:
    """Name of the ROS 2 release, "" where nothing says it."""
    names = ("humble", "iron", "jazzy", "kilted")
    installed = (name for name in names if list(metadata.distributions(name=f"ros-{name}-rclpy")))
    return os.environ.get("ROS_DISTRO") or next(installed, "")


class ToRosLog(logging.Handler):
    """Sends Python's log records of this package to the node's log."""

    def __init__(self, node: Node) -> None:
        super().__init__()
        self._logger = node.get_logger()

    def emit(self, record: logging.LogRecord) -> None:
        """One record at its own level."""
        # rclpy wants one call site per level, so no getattr here.
        text = record.getMessage()
        if record.levelno >= logging.ERROR:
            self._logger.error(text)
        elif record.levelno >= logging.WARNING:
            self._logger.warning(text)
        else:
            self._logger.info(text)


class ClosingNode(Node):
    """A node with threads of its own."""

    def close(self) -> None:
        """End the threads; called before the node is destroyed."""


def run_node(build: Callable[[], ClosingNode], argv: Sequence[str], help_text: str) -> int:
    """Build a node and spin it until Ctrl-C, SIGTERM or a shutdown from elsewhere; returns the exit code.

    argv: what follows the command, ``--ros-args …``.
    Raises InputError for arguments or parameters that cannot be used.
    """
    if {"-h", "--help"} & set(argv):
        print(help_text)
        return 0
    arguments = ["kp_frontend", *argv]
    os.environ.update(middleware_environment())
    # Python's own handlers would raise KeyboardInterrupt in the middle of rclpy.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    try:
        extra = remove_ros_args(arguments)[1:]
        if extra:
            raise InputError(f"unexpected argument {extra[0]!r}; parameters and remappings go after --ros-args")
        rclpy.init(args=arguments)
    except (RuntimeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"ROS arguments are not valid: {' '.join(str(error).split())}") from error
    try:
        _spin(build)
    except RuntimeError:
        if rclpy.ok():  # else a signal came while the node was being built
            raise
    finally:
        rclpy.try_shutdown()
    return 0


def _spin(build: Callable[[], ClosingNode]) -> None:
    executor = SingleThreadedExecutor()
    node = build()
    logger = logging.getLogger("kp_frontend")
    handler = ToRosLog(node)
    logger.addHandler(handler)
    executor.add_node(node)
    try:
        executor.spin()
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    finally:
        logger.removeHandler(handler)
        node.close()
        executor.shutdown(timeout_sec=5)
        node.destroy_node()
