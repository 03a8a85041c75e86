"""Lengths of vectors in a graph, by operators that every TensorRT reads as they are meant."""

from __future__ import annotations

from typing import Any


def spell_out_lengths(graph: Any) -> None:
    """Make Mul, ReduceSum and Sqrt of each ReduceL2 of an ``onnx.GraphProto``, in place.

    Opset 18 made the axes an input, which TensorRT before 10 knows of ReduceSum only (``builtin_op_importers.cpp`` of
    onnx-tensorrt 8.6): of ReduceL2 it drops them, and takes the length of the whole tensor, without a word.
    """
    from onnx import helper

    nodes = []
    for node in graph.node:
        if node.op_type != "ReduceL2":
            nodes.append(node)
            continue
        (length,), (values, *axes) = node.output, node.input
        squares, total = f"{length}_squares", f"{length}_sum"
        sums = helper.make_node("ReduceSum", [squares, *axes], [total])
        sums.attribute.extend(node.attribute)  # keepdims, noop_with_empty_axes
        nodes += [helper.make_node("Mul", [values, values], [squares]), sums,
                  helper.make_node("Sqrt", [total], [length])]
    del graph.node[:]
    graph.node.extend(nodes)
