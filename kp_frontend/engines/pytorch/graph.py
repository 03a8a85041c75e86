"""An ONNX graph as PyTorch calls.

What depends on nothing but sizes is computed once a size, on the CPU; what is left is a plain list of calls that never
waits for the host, as a CUDA graph wants it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from kp_frontend.engines.base import Unavailable
from kp_frontend.engines.pytorch.operators import OPERATORS, OPSETS, TYPES, Operator


@dataclass(frozen=True)
class Node:
    """One node of the graph: its operator, the names of its inputs (empty = left out) and outputs, its attributes."""

    operator: Operator
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]

    def results(self, arguments: Sequence[Any]) -> Sequence[Tensor]:
        """One tensor for each output."""
        results = self.operator.function(*arguments, **self.attributes)
        return (results,) if isinstance(results, Tensor) else results


@dataclass(frozen=True)
class Graph:
    """A whole network.

    nodes: in an order that can be run; all depend on the inputs, or on their sizes.  known: tensors by name, on the
    CPU: the weights, and what can be computed from them.  inputs, outputs: names.
    """

    nodes: tuple[Node, ...]
    known: Mapping[str, Tensor]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Call:
    """A node for inputs of one size: arguments that are texts name values; all others are constants of that size.

    spent: names of the values that nobody needs after it.
    """

    node: Node
    arguments: tuple[Any, ...]
    spent: tuple[str, ...] = field(default=())

    def results(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the node makes of `values`, by name."""
        arguments = [values[argument] if isinstance(argument, str) else argument for argument in self.arguments]
        return dict(zip(self.node.outputs, self.node.results(arguments)))


def read_graph(model: Any, half: bool) -> Graph:
    """The graph of an ``onnx.ModelProto``; not `half`: float16 becomes float32, which a CPU computes much faster.

    Raises Unavailable for another version of the operators, and naming those that are not in OPERATORS.
    """
    from onnx import TensorProto

    for entry in model.opset_import:
        if not entry.domain and entry.version not in OPSETS:
            raise Unavailable(f"opset {entry.version} is not known, expected {OPSETS[0]} to {OPSETS[-1]}: export the "
                              "model again, or take another backend")
    unknown = sorted({node.op_type for node in model.graph.node if node.domain or node.op_type not in OPERATORS})
    if unknown:
        raise Unavailable(f"operators not known: {', '.join(unknown)}; take another backend")
    types = TYPES if half else TYPES | {TensorProto.FLOAT16: torch.float32}
    known = {entry.name: _tensor(entry, types) for entry in model.graph.initializer}
    nodes = tuple(_fold([_node(entry, types) for entry in model.graph.node], known))
    inputs = tuple(entry.name for entry in model.graph.input if entry.name not in known)
    return Graph(nodes, known, inputs, tuple(entry.name for entry in model.graph.output))


def _node(entry: Any, types: Mapping[int, torch.dtype]) -> Node:
    from onnx import AttributeProto, helper

    attributes = {}
    for attribute in entry.attribute:
        value = helper.get_attribute_value(attribute)
        if attribute.type == AttributeProto.TENSOR:
            value = _tensor(value, types)
        elif attribute.type == AttributeProto.STRING:
            value = value.decode()
        elif attribute.name == "to":
            value = types[value]
        attributes[attribute.name] = value
    return Node(OPERATORS[entry.op_type], tuple(entry.input), tuple(entry.output), attributes)


def _tensor(entry: Any, types: Mapping[int, torch.dtype]) -> Tensor:
    from onnx import numpy_helper

    return torch.from_numpy(numpy_helper.to_array(entry).copy()).to(types[entry.data_type])  # onnx's is read-only


def _fold(nodes: Sequence[Node], known: dict[str, Tensor]) -> list[Node]:
    """Compute into `known` what is known already; the other nodes."""
    left = []
    for node in nodes:
        if all(name in known for name in node.inputs if name):
            known |= zip(node.outputs, node.results(_arguments(node, known)))
        else:
            left.append(node)
    return left


def _arguments(
    node: Node, values: Mapping[str, Tensor], place: Callable[[str, Tensor], Any] = lambda name, value: value
) -> tuple[Any, ...]:
    """What `node` is called with: numbers where it takes such, None for what is left out, else `place(name, value)`."""
    return tuple(
        None if not name else values[name].tolist() if index in node.operator.plain else place(name, values[name])
        for index, name in enumerate(node.inputs)
    )


def plan(graph: Graph, inputs: Mapping[str, Tensor], place: Callable[[str, Tensor], Tensor]) -> list[Call]:
    """The calls for inputs of these sizes and types, made once to know the sizes between.

    On tensors without values (PyTorch's "meta") that would be for nothing, but they import a compiler, for seconds.
    place: (name, tensor on the CPU) → where the calls shall find it.
    """
    known = dict(graph.known)
    values, calls = known | dict(inputs), []
    uses = Counter(name for node in graph.nodes for name in node.inputs) + Counter(graph.outputs)

    def found(name: str, value: Tensor) -> Any:
        return place(name, value) if name in known else name

    for node in graph.nodes:
        if node.operator is OPERATORS["Shape"] or all(name in known for name in node.inputs if name):
            results = dict(zip(node.outputs, node.results(_arguments(node, values))))
            known |= results
        else:
            _check_sizes(node, known)
            calls.append(Call(node, _arguments(node, values, found)))
            results = calls[-1].results(values)
        values |= results
        uses.subtract(node.inputs)
        for name in node.inputs:
            if not uses[name] and name not in known:
                values.pop(name, None)
    return _spending(calls, graph.outputs)


def _check_sizes(node: Node, known: Mapping[str, Tensor]) -> None:
    for index in node.operator.plain:
        if index < len(node.inputs) and node.inputs[index] and node.inputs[index] not in known:
            raise Unavailable(f"size {node.inputs[index]} depends on the image; take another backend")


def _spending(calls: Sequence[Call], outputs: Sequence[str]) -> list[Call]:
    """The same calls, each of which knows what it is the last to use."""
    needed, told = set(outputs), []
    for call in reversed(calls):
        last = {name for name in (*call.arguments, *call.node.outputs) if isinstance(name, str) and name} - needed
        needed |= last
        told.append(Call(call.node, call.arguments, tuple(last)))
    return told[::-1]


def run(calls: Sequence[Call], values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Make the calls; values: the inputs, on the device; gets the outputs and loses all else."""
    for call in calls:
        values |= call.results(values)
        for name in call.spent:
            values.pop(name, None)
    return values
