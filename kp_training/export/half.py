"""A network in half precision, for export: its layers in float16, what must be exact in float32.

Cast in PyTorch, since converting a finished ONNX graph breaks networks (PLATFORM.md).  A convolution or linear layer
takes and gives float16, and what lies between two of them follows.  What a head makes of the last one's output
(sigmoid, softmax, norms of an image, unit length, samples at points) is float32, and so is all that comes of it, up to
the next layer.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.overrides import TorchFunctionMode

# Functions whose input takes the type of their weight, the second argument.
WEIGHTED = {"conv2d", "linear", "prelu"}
# Functions that lose too much in float16, or leave its range.
EXACT = {"sigmoid", "softmax", "log_softmax", "softplus", "tanh", "exp", "log", "normalize", "instance_norm",
         "grid_sample", "sqrt"}


class Half(nn.Module):
    """`network`, in evaluation mode, with layers in float16; takes and gives float32, and leaves `network` alone.

    example: inputs that the network can be run on, of any size.
    """

    def __init__(self, network: nn.Module, example: Sequence[Tensor]) -> None:
        super().__init__()
        self.network = fold_norms(network, example)
        for layer in self.network.modules():
            if isinstance(layer, (nn.Conv2d, nn.Linear, Affine)):
                layer.half()

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        with _Types():
            outputs = self.network(*inputs)
        return outputs.float() if isinstance(outputs, Tensor) else tuple(output.float() for output in outputs)


class Affine(nn.Module):
    """A batch norm whose statistics are fixed: B×C×H×W times a factor a channel, plus a shift a channel."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        factor = norm.weight / (norm.running_var + norm.eps).sqrt()  # type: ignore[operator]
        self.factor = nn.Parameter(factor[:, None, None], requires_grad=False)
        self.shift = nn.Parameter((norm.bias - norm.running_mean * factor)[:, None, None], requires_grad=False)

    def forward(self, features: Tensor) -> Tensor:
        return features * self.factor + self.shift


@torch.no_grad()
def fold_norms(network: nn.Module, example: Sequence[Tensor]) -> nn.Module:
    """A copy of `network` whose batch norms are part of the convolution before them, or Affine where there is none."""
    network = copy.deepcopy(network).eval()
    # With the tensor, lest another takes its place in memory, and its version, which an activation in place raises.
    made_by: dict[int, tuple[nn.Conv2d, Tensor, int]] = {}
    before: dict[nn.Module, nn.Conv2d | None] = {}

    def remember(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(layer, nn.Conv2d):
            made_by[id(output)] = layer, output, output._version
        else:
            convolution, made, version = made_by.get(id(inputs[0]), (None, inputs[0], -1))
            before[layer] = convolution if made._version == version else None

    hooks = [layer.register_forward_hook(remember) for layer in network.modules()
             if isinstance(layer, (nn.Conv2d, nn.BatchNorm2d))]
    network(*example)
    for hook in hooks:
        hook.remove()
    names = {layer: name for name, layer in network.named_modules()}
    for norm, convolution in before.items():
        if convolution is not None:
            network.set_submodule(names[convolution], fuse_conv_bn_eval(convolution, norm))
        network.set_submodule(names[norm], nn.Identity() if convolution is not None else Affine(norm))
    return network


class _Types(TorchFunctionMode):
    """Gives the functions of WEIGHTED and EXACT inputs of the type that they want."""

    def __torch_function__(
        self, function: Callable, types: Any, arguments: Sequence = (), options: Mapping | None = None
    ) -> Any:
        name = getattr(function, "__name__", "")
        if name in WEIGHTED:
            arguments = (_as(arguments[0], arguments[1].dtype), *arguments[1:])
            if arguments[1].dtype == torch.float16 and not torch.jit.is_tracing():
                return _in_float(function, arguments, options or {})
        elif name in EXACT:
            arguments = (_as(arguments[0], torch.float32), *arguments[1:])
        return function(*arguments, **(options or {}))


def _in_float(function: Callable, arguments: Sequence, options: Mapping) -> Tensor:
    """What a GPU gives for float16, which adds up in float32 and rounds once; a CPU's own float16 is far slower."""
    values = (value.float() if isinstance(value, Tensor) else value for value in arguments)
    return function(*values, **options).half()


def _as(values: Tensor, dtype: torch.dtype) -> Tensor:
    """`values` as `dtype`; no cast is traced where they are that already."""
    return values if values.dtype == dtype else values.to(dtype)
