"""An ONNX file as a TensorRT plan, with the same code for TensorRT 8.6, 10 and 11, and for RTX without a GPU."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from kp_frontend.atomic import written_whole
from kp_frontend.engines.base import Unavailable, check_graph
from kp_frontend.engines.tensorrt.library import forget_errors, last_error, logger_of, out_of_memory
from kp_frontend.engines.tensorrt.progress import monitor
from kp_frontend.engines.tensorrt.sizes import Sizes
from kp_frontend.model_file import ModelMetadata
from kp_frontend.progress import Progress
from kp_frontend.sparse import check_top_k

POINTS = (1, 1000, 4096)
"""Fewest, usual and most points that a network takes where their number is open."""


def build_plan(
    trt: Any, path: Path, metadata: ModelMetadata, sizes: Sizes, *, workspace: int, timings: Path | None,
    progress: Progress,
) -> bytes:
    """TensorRT's plan of the ONNX file `path`, in the precision that the file is written in.

    trt: TensorRT's module.  workspace: see Recipe.  timings: file that kernels' times are kept in, so that the next
    build is quicker.  progress: see ``tensorrt.progress``.
    Raises Unavailable where TensorRT cannot read the file or build it here.
    """
    if metadata.quantized_for == "cpu":
        raise Unavailable(f"{path.name} is quantized for a CPU; for TensorRT: export --precision int8 --quantized-for "
                          "tensorrt")
    if metadata.top_k:
        check_top_k(metadata.top_k)
    builder = trt.Builder(logger_of(trt))
    network = _read(trt, builder, path)
    inputs = {entry.name: entry for entry in map(network.get_input, range(network.num_inputs))}
    dynamic = {name: [size if size >= 0 else "?" for size in entry.shape] for name, entry in inputs.items()}
    check_graph(path, dynamic, metadata)
    config = _configure(trt, builder, metadata, workspace)
    profile = builder.create_optimization_profile()
    for name, entry in inputs.items():
        if -1 in tuple(entry.shape):
            profile.set_shape(name, *_shapes(tuple(entry.shape), sizes))
    config.add_optimization_profile(profile)
    watcher = monitor(trt, progress)
    if watcher is not None:
        config.progress_monitor = watcher
    keep_timings = _with_timings(config, timings) if timings is not None else None
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise _not_built(trt, path)
    forget_errors(trt)  # kernels that were tried and failed are none of the engine's
    if keep_timings is not None:
        keep_timings()
    return bytes(plan)


def _read(trt: Any, builder: Any, path: Path) -> Any:
    """The network of an ONNX file, whose types are the file's where TensorRT knows that (from 10 on)."""
    flags = trt.NetworkDefinitionCreationFlag
    flag = getattr(flags, "STRONGLY_TYPED", None)
    if flag is None:
        flag = flags.EXPLICIT_BATCH
    network = builder.create_network(1 << int(flag))
    parser = trt.OnnxParser(network, logger_of(trt))
    if not parser.parse(path.read_bytes()):
        reason = _said(parser.get_error(0)) if parser.num_errors else last_error(trt)
        raise Unavailable(f"{trt.__name__} {trt.__version__} cannot read {path.name}: {reason}")
    return network


def _said(error: Any) -> str:
    """What the parser says of a node, with its operator where it tells that (from 10 on)."""
    operator = f"operator {error.node_operator()}: " if hasattr(error, "node_operator") else ""
    return operator + " ".join(error.desc().split())


def _configure(trt: Any, builder: Any, metadata: ModelMetadata, workspace: int) -> Any:
    config = builder.create_builder_config()
    if workspace:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace << 20)
    # TF32 rounds to 10 bits, so that a file of 32 bits would not give what it was exported to give.
    if hasattr(trt.BuilderFlag, "TF32"):
        config.clear_flag(trt.BuilderFlag.TF32)
    if not hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED"):
        # Before 10, types are leave to use kernels, not orders; QDQ nodes say where int8 is.
        for name in {"fp32": (), "fp16": ("FP16",), "int8": ("INT8",)}[metadata.precision]:
            config.set_flag(getattr(trt.BuilderFlag, name))
    return config


def _shapes(shape: tuple[int, ...], sizes: Sizes) -> list[tuple[int, ...]]:
    """Smallest, usual and largest shape of an input; what is open (-1) is height and width, or a number of points."""
    if len(shape) == 4:
        return [(*shape[:2], *size) for size in (sizes.smallest, sizes.usual, sizes.largest)]
    return [tuple(count if length < 0 else length for length in shape) for count in POINTS]


def _with_timings(config: Any, path: Path) -> Callable[[], None]:
    """Give `config` the kernels' times that are known; what is returned keeps those that were measured."""
    known = config.create_timing_cache(path.read_bytes() if path.is_file() else b"")
    if known is None or not config.set_timing_cache(known, False):  # damaged, or of another device
        config.set_timing_cache(config.create_timing_cache(b""), False)

    def keep() -> None:
        with suppress(OSError), written_whole(path) as beside:  # they only save time
            beside.write_bytes(bytes(config.get_timing_cache().serialize()))

    return keep


def _not_built(trt: Any, path: Path) -> Unavailable:
    reason = last_error(trt, "emory")
    if out_of_memory(reason):
        return Unavailable(f"the GPU has not memory enough to build {path.name} ({reason}); close what else uses it, "
                           "give a smaller largest size, or a larger --workspace where one is set")
    return Unavailable(f"{trt.__name__} {trt.__version__} cannot build {path.name}: {reason}")
