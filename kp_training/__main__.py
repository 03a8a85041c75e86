"""``python -m kp_training COMMAND …``, the same as ``ros2 run kp_training COMMAND …``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from kp_frontend import command_line

COMMANDS = {
    "train": ("kp_training.cli.train", "train a method on photographs or posed scenes"),
    "export": ("kp_training.cli.export", "write a trained run as ONNX with metadata"),
    "build_engine": ("kp_training.cli.build_engine", "build a TensorRT engine of an ONNX file, list them, clean them"),
    "prepare": ("kp_training.cli.prepare", "turn posed recordings, bags and rooms into scene folders"),
    "check_scene": ("kp_training.cli.check_scene", "look whether poses, depth and intrinsics of scenes fit together"),
    "evaluate": ("kp_training.cli.evaluate", "score extractors by the papers' protocols"),
    "benchmark": ("kp_training.cli.benchmark", "speed and memory of training, and of the data for it, on this machine"),
    "gpu_check": ("kp_training.cli.gpu_check", "every test and benchmark that needs an NVIDIA GPU, as one page"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; see ``--help``."""
    return command_line.run(
        "kp_training", "Train, evaluate and export learned keypoints.", COMMANDS, sys.argv[1:] if argv is None else argv
    )


if __name__ == "__main__":
    sys.exit(main())
