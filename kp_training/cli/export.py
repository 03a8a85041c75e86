"""``export``: a trained run as an ONNX file with metadata, checked against PyTorch before it is written.

Or as a checkpoint of the weights alone, for others to start from.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kp_frontend.benchmarks.report import write_figures
from kp_frontend.errors import InputError, unknown_name
from kp_frontend.model_file import CHOICES, ModelMetadata
from kp_training.cli.image_size import read_size

if TYPE_CHECKING:
    from kp_training.runs import Run

TOP_K = 1000


def main(argv: Sequence[str]) -> int:
    """Run the command; raises InputError for what cannot be used."""
    options = _parser().parse_intermixed_args(argv)
    _check(options)
    if options.output.suffix == ".ckpt":
        return _write_weights(options, argv)
    from kp_training.export.images import calibration_images, check_images
    from kp_training.export.onnx import export_onnx

    source = _published(options) if options.method else _trained(options)
    metadata = _metadata(options, source)
    images, calibration = check_images(options.check_image), []
    if metadata.precision == "int8":
        calibration = calibration_images(options.calibration)
        print(f"calibrated on {len(calibration)} " + (f"images of {options.calibration}" if options.calibration else
              "of scikit-image's photographs; images of the robot's own are better: --calibration DIR"))
    decoding, module = source.method.decoding(), source.method.stages()[-1].deployed(source.network).eval()
    figures = export_onnx(module, decoding.outputs, metadata, options.output, images, decoding.points, calibration)
    size = options.output.stat().st_size
    print(f"{options.output}: {source.name} {source.method.variant}, {_kind(metadata)}, {size / 1e6:.2f} MB")
    print(f"beside PyTorch in float32, the worst of {len(images)} images: {_figures(figures)}")
    if options.json:
        write_figures(options.json, ["export", *argv], {"file": str(options.output), "bytes": size, "checks": figures})
    return 0


def _check(options: argparse.Namespace) -> None:
    """InputError for options that do not go together."""
    if options.output.suffix not in (".onnx", ".ckpt"):
        raise InputError(f"--output {options.output}: expected a file name that ends in .onnx, or in .ckpt for weights "
                         "to start another run from")
    if options.settings and not options.method:
        raise InputError(f"{options.settings[0]}: settings go with --method; a run has its own")
    if options.profile == "dense" and options.top_k is not None:
        raise InputError("--top-k asks for the sparse profile; leave --profile dense out, or --top-k: the dense "
                         "profile takes top_k at run time")
    if options.average_with and options.method:
        raise InputError("--average-with goes with a run, not with --method")
    if not 0 < options.share < 1:
        raise InputError(f"--share {options.share:g}: expected the run's share of the average, above 0 and below 1")
    for name in ("profile", "precision", "quantized_for", "input_dtype"):
        if getattr(options, name) not in (None, *CHOICES[name]):
            raise unknown_name(f"--{name.replace('_', '-')}", getattr(options, name), filter(None, CHOICES[name]))
    for name in ("calibration", "quantized_for"):
        if options.precision != "int8" and getattr(options, name):
            raise InputError(f"--{name.replace('_', '-')} goes with --precision int8 alone, not with "
                             f"{options.precision}")
    if options.output.suffix == ".ckpt" and (options.profile or options.top_k or options.size
                                             or options.precision != "fp32" or options.input_dtype != "float32"):
        raise InputError("--output FILE.ckpt writes the weights as they are; leave --profile, --top-k, --size, "
                         "--precision and --input-dtype out, or write FILE.onnx")


def _metadata(options: argparse.Namespace, source: Source) -> ModelMetadata:
    """What the file shall be."""
    from kp_training.deployment import metadata_of
    from kp_training.export.onnx import check_size
    from kp_training.export.sparse import sparse_metadata
    from kp_training.runs import git_revision

    height, width = read_size("--size", options.size) if options.size else (0, 0)
    metadata = metadata_of(
        source.name, source.method, source.network, licence=options.licence, revision=git_revision(),
        metrics=source.metrics, data=options.data or source.data, precision=options.precision,
        quantized_for=(options.quantized_for or "cpu") if options.precision == "int8" else "",
        input_dtype=options.input_dtype, height=height, width=width,
    )
    check_size(metadata)
    if options.profile == "sparse" or options.top_k is not None:
        metadata = sparse_metadata(metadata, TOP_K if options.top_k is None else options.top_k)
    return metadata


def _kind(metadata: ModelMetadata) -> str:
    """Such as ``int8 for cpu, sparse (1000 points), uint8 input of 640×480``."""
    precision = f"{metadata.precision} for {metadata.quantized_for}" if metadata.quantized_for else metadata.precision
    profile = f"sparse ({metadata.top_k} points)" if metadata.top_k else "dense"
    size = f"{metadata.width}×{metadata.height}" if metadata.height else "any size"
    return f"{precision}, {profile}, {metadata.input_dtype} input of {size}"


def _figures(figures: Mapping[str, float]) -> str:
    words = {"difference": "differs by {:.1e} of the largest value", "difference_rms": "{:.1e} RMS",
             "scores": "scores by {:.1e}", "within_pixel": "{:.1%} of the keypoints within 1 px",
             "extra": "{:.1%} extra", "points": "numbers of keypoints as 1 to {:.3f}",
             "cosine": "median cosine of descriptors {:.5f}"}
    said = ", ".join(words[name].format(value) for name, value in figures.items())
    compared = "scores" not in figures or "within_pixel" in figures
    return said if compared else f"{said}; places of keypoints not compared, too few have scores that tell them apart"


@dataclass(frozen=True)
class Source:
    """What is exported: a method by its name, its trained network, and what to say of the training."""

    name: str
    method: Any
    network: Any
    metrics: dict[str, float]
    data: str


def _trained(options: argparse.Namespace) -> Source:
    """The last stage of a run."""
    from kp_training.runs import load_network

    run, checkpoint = _read_run(options)
    stage, network = load_network(run.method, checkpoint)
    if stage.name != run.stages[-1].name:
        raise InputError(f"{options.run} is of stage {stage.name!r}, before the last ({run.stages[-1].name!r}); "
                         f"finish the run first: train --resume {run.folder}")
    metrics = _metrics(run, checkpoint) | {"steps": float(checkpoint["global_step"])}
    data = ", ".join(_without_folders(spec) for spec in run.data)
    if other := checkpoint["kp_training"].get("average_with"):
        data = f"{data}; averaged with {other}"
    return Source(run.name, run.method, network, metrics, data)


def _read_run(options: argparse.Namespace) -> tuple[Run, dict[str, Any]]:
    """The run and its checkpoint, whose weights are averaged and metrics forgotten where --average-with says so."""
    from kp_training.runs import load_checkpoint, load_network, open_run
    from kp_training.weights import average_with

    run, checkpoint = open_run(options.run), load_checkpoint(options.run)
    if options.average_with:
        _, network = load_network(run.method, checkpoint)
        average_with(network, options.average_with, options.share)
        checkpoint["state_dict"] = {f"network.{name}": values for name, values in network.state_dict().items()}
        checkpoint["metrics"] = {"share": options.share}
        checkpoint["kp_training"]["average_with"] = options.average_with.name
    return run, checkpoint


def _metrics(run: Run, checkpoint: Mapping[str, Any]) -> dict[str, float]:
    """Of `checkpoint`: those that it holds with the weights alone or of its last validation, or those of the folder.

    The folder's are of the last checkpoint, others than those of ``best.ckpt``.
    """
    if "metrics" in checkpoint:
        return checkpoint["metrics"]
    states = checkpoint.get("callbacks", {})  # by the names of their classes
    if "Validation" not in states:
        return run.metrics().get(checkpoint["kp_training"]["stage"], {})
    return {"steps": float(checkpoint["global_step"]), "minutes": states["Keeper"]["minutes"],
            **states["Validation"]["latest"]}


def _write_weights(options: argparse.Namespace, argv: Sequence[str]) -> int:
    """The averaged weights and the metrics of a run, without what only resuming needs or folders of this machine."""
    from kp_training.runs import write_checkpoint
    from kp_training.weights import trained_weights

    if options.method:
        raise InputError("--output FILE.ckpt writes the weights of a run; leave --method out")
    run, checkpoint = _read_run(options)
    about, metrics = checkpoint["kp_training"], _metrics(run, checkpoint)
    about["data"] = [_without_folders(spec) for spec in about["data"]]
    about["init"] = about["init"] and Path(about["init"]).name
    # Of files that settings name; a word that is no path is its own name.
    about["settings"] = {name: Path(value).name if isinstance(value, str) else value
                         for name, value in about["settings"].items()}
    weights = {f"network.{name}": values for name, values in trained_weights(checkpoint).items()}
    write_checkpoint({"kp_training": about, "global_step": checkpoint["global_step"], "metrics": metrics,
                      "state_dict": weights}, options.output)
    size = options.output.stat().st_size
    print(f"{options.output}: {about['method']}, stage {about['stage']}, {size / 1e6:.2f} MB; "
          f"start from it with: python -m kp_training train --init {options.output} …")
    if options.json:
        write_figures(options.json, ["export", *argv], {
            "file": str(options.output), "bytes": size, "method": about["method"], "stage": about["stage"],
            "steps": checkpoint["global_step"], "metrics": metrics})
    return 0


def _published(options: argparse.Namespace) -> Source:
    """A weight file as its authors published it, in the network of --method."""
    from kp_training.cli.train import parse_settings
    from kp_training.runs import build_run
    from kp_training.weights import load_initial

    run = build_run(Path(), options.method, [], parse_settings(options.settings))
    network = run.stages[-1].network()
    load_initial(network, options.run)
    return Source(options.method, run.method, network, {}, f"published weights {options.run.name}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "export", formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Write a trained run as an ONNX file with metadata, once it agreed with PyTorch on images.",
        epilog="a desktop GPU or a Jetson:  --top-k 1000 --precision fp16 --input-dtype uint8 --size 480x640\n"
               "a CPU:                      --precision int8 --input-dtype uint8 --calibration DIR\n"
               "everything else:            no options: float32, any size, decoded by the runtime",
    )
    add = parser.add_argument
    add("run", type=Path, metavar="RUN_OR_CKPT",
        help="run folder or checkpoint file; with --method: a weight file that its authors published")
    add("settings", nargs="*", metavar="key=value", help="settings of --method, as for train")
    add("--method", help="method whose published weight file is given")
    add("--output", type=Path, required=True, metavar="FILE",
        help="FILE.onnx for the runtime, or FILE.ckpt: the weights alone, for train --init")
    add("--average-with", type=Path, metavar="FILE",
        help="average the weights with those of FILE, best what the run started from (--init): what a refined network "
             "has learned and what it could do before, in one")
    add("--share", type=float, metavar="S", default=0.5, help="of the run in that average (default 0.5)")
    add("--profile", metavar="PROFILE",
        help="dense (default): the network's maps, which the runtime decodes; sparse: keypoints come out of the graph, "
             "with the model's own nms_radius, border and threshold settled")
    add("--top-k", type=int, metavar="K", help=f"points of the sparse profile, which this asks for (default {TOP_K})")
    add("--precision", metavar="P", default="fp32",
        help="fp32 (default); fp16: for GPUs; int8: for CPUs, calibrated on images")
    add("--quantized-for", metavar="ENGINE",
        help="what runs an int8 file: cpu (default) or tensorrt")
    add("--calibration", type=Path, metavar="DIR",
        help="images that int8 ranges are taken from, best the robot's own; default: scikit-image's photographs")
    add("--size", metavar="HEIGHTxWIDTH", help="the one size that it takes, height first: 480x640 for images that are "
        "640 wide; images are padded to multiples of what the network wants, as 1080x1920 to 1088x1920; "
        "default: any size")
    add("--input-dtype", metavar="TYPE", default="float32",
        help="float32 (default) or uint8: normalised in the graph, a quarter of the bytes to copy")
    add("--check-image", type=Path, metavar="DIR", help="photographs to check against PyTorch on")
    add("--licence", default="", help="licence of the weights, for the metadata")
    add("--data", default="", help="what it was trained on, for the metadata; default: the data specs")
    add("--json", type=Path, metavar="FILE",
        help="write the figures of the check there; beside FILE.ckpt those of the training")
    return parser


def _without_folders(spec: str) -> str:
    """A data spec without the folders of the machine that it was used on."""
    kind, _, argument = spec.partition(":")
    return f"{kind}:{Path(argument).name}" if argument else kind
