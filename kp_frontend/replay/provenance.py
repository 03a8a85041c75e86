"""Where figures come from: versions, machine, git revision."""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata
from pathlib import Path

import kp_frontend
from kp_frontend.cores import usable_cores

_PACKAGES = (
    "numpy", "opencv-python-headless", "opencv-python", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt-cu13",
    "tensorrt-cu12", "tensorrt", "tensorrt-rtx", "torch", "onnx", "poselib", "evo", "rosbags",
)


def revision() -> str:
    """Short git revision of the checkout that runs, ``-dirty`` where files differ; empty outside a checkout."""
    folder = str(Path(kp_frontend.__file__).parents[1])
    command = ["git", "-C", folder, "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def versions() -> dict[str, str]:
    """Versions of Python, of this package, and of what figures depend on, where installed."""
    found = {"python": platform.python_version(), "kp_frontend": kp_frontend.__version__}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, object]:
    """Processor, cores that may be used, and system."""
    name, system = platform.processor() or platform.machine(), f"{platform.system()} {platform.machine()}"
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return {"processor": name, "cores": usable_cores(), "system": system}
