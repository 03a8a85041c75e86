"""ONNX operators (of OPSETS) as PyTorch functions: one table, of those that our exports use."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kp_frontend.engines.base import Unavailable

OPSETS = range(13, 20)
TYPES = {
    1: torch.float32, 2: torch.uint8, 3: torch.int8, 5: torch.int16, 6: torch.int32, 7: torch.int64, 9: torch.bool,
    10: torch.float16, 11: torch.float64,
}
"""TensorProto's numbers of types."""


@dataclass(frozen=True)
class Operator:
    """function: inputs as ONNX orders them (None where one is left out), attributes by name → tensor or tensors.

    plain: positions of inputs that `function` takes as Python numbers or lists, because they are sizes.
    """

    function: Callable[..., Any]
    plain: tuple[int, ...] = ()


def _conv(data: Tensor, weight: Tensor, bias: Tensor | None = None, strides=1, pads=(), dilations=1, group=1,
          auto_pad="NOTSET", kernel_shape=None) -> Tensor:
    _only(auto_pad == "NOTSET", f"Conv with auto_pad {auto_pad}")
    data, padding = _padded(data, pads, 0.0)
    convolve = (F.conv1d, F.conv2d)[data.ndim - 3]
    return convolve(data, weight, bias, strides, padding, dilations, group)


def _max_pool(data: Tensor, kernel_shape, strides=1, pads=(), dilations=1, ceil_mode=0, auto_pad="NOTSET",
              storage_order=0) -> Tensor:
    _only(auto_pad == "NOTSET", f"MaxPool with auto_pad {auto_pad}")
    data, padding = _padded(data, pads, -torch.inf)
    return F.max_pool2d(data, kernel_shape, strides, padding, dilations, bool(ceil_mode))


def _average_pool(data: Tensor, kernel_shape, strides=1, pads=(), ceil_mode=0, count_include_pad=0, dilations=1,
                  auto_pad="NOTSET") -> Tensor:
    before, after = _halves(pads)
    _only(auto_pad == "NOTSET" and before == after, f"AveragePool with auto_pad {auto_pad}, pads {list(pads)}")
    return F.avg_pool2d(data, kernel_shape, strides, before or 0, bool(ceil_mode), bool(count_include_pad))


def _halves(pads: Sequence[int]) -> tuple[list[int], list[int]]:
    """ONNX's pads: all the befores, then all the afters."""
    return list(pads[: len(pads) // 2]), list(pads[len(pads) // 2 :])


def _padded(data: Tensor, pads: Sequence[int], value: float) -> tuple[Tensor, Any]:
    """The data and the padding that is left to the operator: it takes the same on both sides only."""
    before, after = _halves(pads)
    if before == after:
        return data, before or 0
    return F.pad(data, _innermost_first(before, after), value=value), 0


def _innermost_first(before: Sequence[int], after: Sequence[int]) -> list[int]:
    """PyTorch's order of pads: last dimension first, before and after in turn."""
    return [amount for both in zip(before[::-1], after[::-1]) for amount in both]


def _pad(data: Tensor, pads: list[int], value: float | None = None, axes: list[int] | None = None,
         mode="constant") -> Tensor:
    before, after = _halves(pads)
    if axes is not None:
        places = {axis % data.ndim: index for index, axis in enumerate(axes)}
        before, after = ([half[places[axis]] if axis in places else 0 for axis in range(data.ndim)]
                         for half in (before, after))
    if mode == "constant":
        return F.pad(data, _innermost_first(before, after), value=value or 0)
    # PyTorch's other modes take the inner dimensions only.
    inner = data.ndim - 2
    _only(not any(before[:-inner] + after[:-inner]), f"Pad, mode {mode}, of the outer dimensions")
    return F.pad(data, _innermost_first(before[-inner:], after[-inner:]), {"edge": "replicate"}.get(mode, mode))


_LINEAR = ("half_pixel", "pytorch_half_pixel", "align_corners")


def _resize(data: Tensor, roi=None, scales: list[float] | None = None, sizes: list[int] | None = None, mode="nearest",
            coordinate_transformation_mode="half_pixel", nearest_mode="round_prefer_floor", **others) -> Tensor:
    """By one of the pairs of modes that PyTorch has too; other attributes do nothing in these."""
    align = coordinate_transformation_mode == "align_corners"
    how = (mode, "floor") if mode == "nearest" and nearest_mode == "floor" else (mode, "")
    names = {("nearest", "floor"): ("nearest", ("asymmetric",)), ("linear", ""): ("bilinear", _LINEAR)}
    kind, valid = names.get(how, ("", ()))
    _only(data.ndim == 4 and coordinate_transformation_mode in valid and not others.get("antialias"),
          f"Resize, mode {mode}, {coordinate_transformation_mode}, {nearest_mode}, {data.ndim} dimensions")
    if sizes:
        target: dict[str, Any] = {"size": sizes[2:]}
    else:
        target = {"scale_factor": scales[2:], "recompute_scale_factor": False}  # type: ignore[index]
    return F.interpolate(data, mode=kind, align_corners=None if kind == "nearest" else align, **target)


def _grid_sample(data: Tensor, grid: Tensor, mode="bilinear", padding_mode="zeros", align_corners=0) -> Tensor:
    mode = {"linear": "bilinear", "cubic": "bicubic"}.get(mode, mode)
    return F.grid_sample(data, grid, mode, padding_mode, bool(align_corners))


def _depth_to_space(data: Tensor, blocksize: int, mode="DCR") -> Tensor:
    if mode == "CRD":
        return F.pixel_shuffle(data, blocksize)
    count, _, height, width = data.shape
    blocks = data.reshape(count, blocksize, blocksize, -1, height, width).permute(0, 3, 4, 1, 5, 2)
    return blocks.reshape(count, -1, height * blocksize, width * blocksize)


def _space_to_depth(data: Tensor, blocksize: int) -> Tensor:
    count, depth, height, width = data.shape
    cells = data.reshape(count, depth, height // blocksize, blocksize, width // blocksize, blocksize)
    return cells.permute(0, 3, 5, 1, 2, 4).reshape(count, -1, height // blocksize, width // blocksize)


def _quantize(data: Tensor, scale: Tensor, zero: Tensor | None = None, axis=1) -> Tensor:
    kind = torch.uint8 if zero is None else zero.dtype
    limits, values = torch.iinfo(kind), torch.round(data / _along(scale, data, axis))
    if zero is not None:
        values = values + _along(zero, data, axis)
    return values.clamp(limits.min, limits.max).to(kind)


def _dequantize(data: Tensor, scale: Tensor, zero: Tensor | None = None, axis=1) -> Tensor:
    values = data.to(scale.dtype)
    if zero is not None:
        values = values - _along(zero, data, axis).to(scale.dtype)
    return values * _along(scale, data, axis)


def _along(values: Tensor, data: Tensor, axis: int) -> Tensor:
    """One value, or one for each index of `axis`, so that it broadcasts over `data`."""
    return values if values.ndim == 0 else values.reshape([-1] + [1] * (data.ndim - axis % data.ndim - 1))


def _slice(data: Tensor, starts: list[int], ends: list[int], axes: list[int] | None = None,
           steps: list[int] | None = None) -> Tensor:
    for start, end, axis, step in zip(starts, ends, axes or range(len(starts)), steps or [1] * len(starts)):
        chosen = range(*slice(start, end, step).indices(data.shape[axis]))
        if step > 0:
            data = data[(slice(None),) * (axis % data.ndim) + (slice(chosen.start, chosen.stop, step),)]
        else:  # PyTorch takes no step below 0
            last = chosen[-1] if chosen else 0
            kept = data.narrow(axis, last, (chosen[0] - last + 1) if chosen else 0)
            data = kept.flip(axis)[(slice(None),) * (axis % data.ndim) + (slice(None, None, -step),)]
    return data


def _gather(data: Tensor, indices: Tensor, axis=0) -> Tensor:
    axis %= data.ndim
    flat = data.index_select(axis, _counted(indices, data.shape[axis]).reshape(-1))
    return flat.reshape((*data.shape[:axis], *indices.shape, *data.shape[axis + 1 :]))


def _gather_elements(data: Tensor, indices: Tensor, axis=0) -> Tensor:
    return data.gather(axis, _counted(indices, data.shape[axis]))


def _counted(indices: Tensor, size: int) -> Tensor:
    """Indices below 0 count from the end."""
    return torch.where(indices < 0, indices + size, indices)


def _reduce(function: Callable[..., Tensor]) -> Operator:
    def reduce(data: Tensor, listed: list[int] | None = None, axes=None, keepdims=1, noop_with_empty_axes=0) -> Tensor:
        chosen = list(listed or axes or ())
        if not chosen and noop_with_empty_axes:
            return data
        return function(data, chosen or list(range(data.ndim)), bool(keepdims))

    return Operator(reduce, plain=(1,))


def _top_k(data: Tensor, count: list[int], axis=-1, largest=1, sorted=1) -> tuple[Tensor, Tensor]:
    values, indices = torch.topk(data, count[0], axis, bool(largest), bool(sorted))  # of equal values, any
    return values, indices


def _arg_max(data: Tensor, axis=0, keepdims=1, select_last_index=0) -> Tensor:
    _only(not select_last_index, "ArgMax of the last index")
    return data.argmax(axis, bool(keepdims))


def _split(data: Tensor, lengths: list[int] | None = None, axis=0, num_outputs=None) -> tuple[Tensor, ...]:
    return data.split(lengths or -(-data.shape[axis] // num_outputs), axis)


def _squeeze(data: Tensor, axes: list[int] | None = None) -> Tensor:
    return data.squeeze() if axes is None else data.squeeze(tuple(axes))


def _unsqueeze(data: Tensor, axes: list[int]) -> Tensor:
    for axis in sorted(axis % (data.ndim + len(axes)) for axis in axes):
        data = data.unsqueeze(axis)
    return data


def _reshape(data: Tensor, shape: list[int], allowzero=0) -> Tensor:
    kept = [data.shape[axis] if size == 0 and not allowzero else size for axis, size in enumerate(shape)]
    return data.reshape(kept)


def _expand(data: Tensor, shape: list[int]) -> Tensor:
    return data.expand(torch.broadcast_shapes(data.shape, tuple(shape)))


def _flatten(data: Tensor, axis=1) -> Tensor:
    return data.reshape(data.shape[:axis].numel(), -1)


def _clip(data: Tensor, low: float | None = None, high: float | None = None) -> Tensor:
    return data if low is None and high is None else data.clamp(low, high)


def _divide(first: Tensor, second: Tensor) -> Tensor:
    return first / second if first.is_floating_point() else torch.div(first, second, rounding_mode="trunc")


def _modulo(first: Tensor, second: Tensor, fmod=0) -> Tensor:
    return torch.fmod(first, second) if fmod else torch.remainder(first, second)


def _batch_norm(data: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, epsilon=1e-5, momentum=0.9,
                training_mode=0) -> Tensor:
    return F.batch_norm(data, mean, variance, scale, bias, eps=epsilon)


def _constant(value=None, value_float=None, value_int=None, value_floats=None, value_ints=None) -> Tensor:
    given = (value, value_float, value_int, value_floats, value_ints)
    return torch.as_tensor(next(entry for entry in given if entry is not None))


def _only(holds: bool, what: str) -> None:
    if not holds:
        raise Unavailable(f"not known: {what}; take another backend")


def _each(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    return Operator(lambda *values: functools.reduce(function, values))


OPERATORS: dict[str, Operator] = {
    # arithmetic
    "Add": Operator(torch.add), "Sub": Operator(torch.sub), "Mul": Operator(torch.mul), "Div": Operator(_divide),
    "Mod": Operator(_modulo), "Pow": Operator(torch.pow), "Neg": Operator(torch.neg), "Abs": Operator(torch.abs),
    "Sqrt": Operator(torch.sqrt), "Exp": Operator(torch.exp), "Log": Operator(torch.log),
    "Reciprocal": Operator(torch.reciprocal), "Floor": Operator(torch.floor), "Ceil": Operator(torch.ceil),
    "Round": Operator(torch.round), "Max": _each(torch.maximum),
    "Min": _each(torch.minimum), "Clip": Operator(_clip, plain=(1, 2)),
    "MatMul": Operator(torch.matmul),
    # comparison
    "Equal": Operator(torch.eq), "Greater": Operator(torch.gt), "Less": Operator(torch.lt),
    "GreaterOrEqual": Operator(torch.ge), "LessOrEqual": Operator(torch.le), "And": Operator(torch.logical_and),
    "Or": Operator(torch.logical_or), "Not": Operator(torch.logical_not), "Where": Operator(torch.where),
    # layers
    "Conv": Operator(_conv), "MaxPool": Operator(_max_pool), "AveragePool": Operator(_average_pool),
    "BatchNormalization": Operator(_batch_norm),
    "InstanceNormalization": Operator(lambda data, scale, bias, epsilon=1e-5: F.instance_norm(
        data, weight=scale, bias=bias, eps=epsilon)),
    "Resize": Operator(_resize, plain=(1, 2, 3)), "GridSample": Operator(_grid_sample),
    "DepthToSpace": Operator(_depth_to_space), "SpaceToDepth": Operator(_space_to_depth),
    # activations
    "Relu": Operator(F.relu), "LeakyRelu": Operator(lambda data, alpha=0.01: F.leaky_relu(data, alpha)),
    "PRelu": Operator(lambda data, slope: torch.where(data < 0, slope * data, data)),
    "Elu": Operator(lambda data, alpha=1.0: F.elu(data, alpha)), "Softplus": Operator(F.softplus),
    "Sigmoid": Operator(torch.sigmoid), "Tanh": Operator(torch.tanh),
    "Softmax": Operator(lambda data, axis=-1: data.softmax(axis)),
    # reductions
    "ReduceSum": _reduce(torch.sum), "ReduceMean": _reduce(torch.mean), "ReduceMax": _reduce(torch.amax),
    "ReduceMin": _reduce(torch.amin),
    "ReduceL2": _reduce(lambda data, axes, kept: torch.linalg.vector_norm(data, 2, axes, kept)),
    "TopK": Operator(_top_k, plain=(1,)), "ArgMax": Operator(_arg_max),
    # shapes and places
    "Shape": Operator(lambda data, start=0, end=None: torch.tensor(data.shape[start:end])),
    "Reshape": Operator(_reshape, plain=(1,)), "Flatten": Operator(_flatten), "Expand": Operator(_expand, plain=(1,)),
    "Tile": Operator(lambda data, repeats: data.repeat(repeats), plain=(1,)),
    "Squeeze": Operator(_squeeze, plain=(1,)), "Unsqueeze": Operator(_unsqueeze, plain=(1,)),
    "Transpose": Operator(lambda data, perm=None: data.permute(perm or list(range(data.ndim))[::-1])),
    "Concat": Operator(lambda *parts, axis: torch.cat(parts, axis)), "Split": Operator(_split, plain=(1,)),
    "Slice": Operator(_slice, plain=(1, 2, 3, 4)), "Pad": Operator(_pad, plain=(1, 2, 3)),
    "Gather": Operator(_gather), "GatherElements": Operator(_gather_elements),
    # values
    "Constant": Operator(_constant), "Identity": Operator(lambda data: data),
    "ConstantOfShape": Operator(lambda shape, value=None: torch.full(
        shape, 0.0 if value is None else value.item(), dtype=None if value is None else value.dtype), plain=(0,)),
    "Range": Operator(torch.arange, plain=(0, 1, 2)),
    "Cast": Operator(lambda data, to: data.to(to)),
    "QuantizeLinear": Operator(_quantize), "DequantizeLinear": Operator(_dequantize),
}
"""Operator's name in ONNX → its function."""
