"""Whether the goals of a frame's time are met by what ``benchmark model`` measured; each sentence has its figures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from kp_training.benchmarks.model import ModelFigures
from kp_training.benchmarks.model_rows import METRICS

SIZE, POINTS = (480, 640), 1000
COMPACT, SUPERPOINT = "kp2d_compact", "superpoint"
ON_GPU, GPU_LIMIT = "fp16 sparse", 1.0
"""SuperPoint's files whose time on the GPU is judged, and the most milliseconds from image to features."""
Judgement = tuple[str, bool] | None
"""A sentence and whether it holds; None where what it speaks of was not measured."""


def judge(measured: Sequence[ModelFigures]) -> dict[str, bool]:
    """Whether each goal is met, by sentence; a goal of rows that were not measured is not there."""
    usual = [each for each in measured if (each.row.height, each.row.width) in (SIZE, (0, 0))
             and each.row.top_k == POINTS]
    found = [goal(usual) for goal in GOALS]
    return dict(sentence for sentence in found if sentence is not None)


def _compact_beside_orb(measured: Sequence[ModelFigures]) -> Judgement:
    compact = _fastest(each for each in measured if each.row.features == COMPACT and each.on_cpu)
    orb = _fastest(each for each in measured if each.row.features == "orb")
    if compact is None or orb is None:
        return None
    ratio = compact.whole.p50 / orb.whole.p50
    return (f"{COMPACT} on the CPU at most 2× the time of orb: {ratio:.2f}× "
            f"({_named(compact)} {compact.whole.p50:.1f} ms, orb {orb.whole.p50:.1f} ms)", ratio <= 2)


def _superpoint_int8(measured: Sequence[ModelFigures]) -> Judgement:
    of_network = [each for each in measured if each.row.features == SUPERPOINT]
    plain = _fastest(each for each in of_network
                     if (each.row.backend, each.row.label) == ("onnxruntime", "fp32 dense"))
    int8 = _fastest(each for each in of_network if each.row.backend == "openvino" and "int8" in each.row.label)
    if plain is None or int8 is None:
        return None
    ratio = plain.whole.p50 / int8.whole.p50
    return (f"{SUPERPOINT} int8 by OpenVINO at least 2× faster than fp32 dense by onnxruntime: {ratio:.2f}× "
            f"({int8.whole.p50:.0f} ms, {plain.whole.p50:.0f} ms)", ratio >= 2)


def _after_network(size: int, limit: float) -> Callable[[Sequence[ModelFigures]], Judgement]:
    def goal(measured: Sequence[ModelFigures]) -> Judgement:
        row = _fastest(each for each in measured if each.row.kind == "network" and "dense" in each.row.label
                       and each.facts.descriptor_size == size)
        if row is None:
            return None
        spent = row.parts["after"].p50
        return (f"after the network, {POINTS} points of {size}-D, at most {limit:g} ms: {spent:.2f} ms "
                f"({row.row.features} {_named(row)})", spent <= limit)
    return goal


def _matching(measured: Sequence[ModelFigures]) -> Judgement:
    row = _fastest(each for each in measured if each.row.kind == "matching" and each.facts.descriptor_size == 64)
    return row and (f"{row.row.features} at most 4 ms: {row.whole.p50:.2f} ms", row.whole.p50 <= 4)


def _int8_accuracy(measured: Sequence[ModelFigures]) -> Judgement:
    scored = [each for each in measured if each.row.features == COMPACT and each.facts.accuracy]
    exact = next((each for each in scored if each.row.label == "fp32 dense"), None)
    int8 = _fastest(each for each in scored if "int8" in each.row.label)
    if exact is None or int8 is None:
        return None
    loss = {name: 1 - int8.facts.accuracy[name] / max(exact.facts.accuracy[name], 1e-9) for name in METRICS}
    figures = ", ".join(f"{name} {-100 * share:+.1f} %" for name, share in loss.items())
    return (f"{COMPACT} int8 within 2 % of fp32 on the few pairs of this run (its card has 1500): {figures} "
            f"({_named(int8)})", max(loss.values()) <= 0.02)


def _superpoint_on_gpu(measured: Sequence[ModelFigures]) -> Judgement:
    row = _fastest(each for each in measured if each.row.features == SUPERPOINT and not each.on_cpu
                   and each.row.label.startswith(ON_GPU))
    return row and (f"{SUPERPOINT} {ON_GPU} on the GPU, image to features, at most {GPU_LIMIT:g} ms: "
                    f"{row.whole.p50:.2f} ms ({_named(row)})", row.whole.p50 <= GPU_LIMIT)


GOALS: tuple[Callable[[Sequence[ModelFigures]], Judgement], ...] = (
    _compact_beside_orb, _superpoint_int8, _after_network(64, 3), _after_network(256, 6), _matching, _int8_accuracy,
    _superpoint_on_gpu,
)


def _fastest(measured: Iterable[ModelFigures]) -> ModelFigures | None:
    return min(measured, key=lambda each: each.whole.p50, default=None)


def _named(figures: ModelFigures) -> str:
    return f"{figures.row.label}, {figures.facts.engine}"
