"""Who may import whom: one direction, no loops, no torch in the runtime, no backend before it is asked for."""

from __future__ import annotations

import ast
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
         for package in ("kp_frontend", "kp_training") for path in sorted((ROOT / package).rglob("*.py"))}
TORCH = "kp_frontend.engines.pytorch"
"""The only room of the runtime that may import PyTorch."""
BACKENDS = {"torch", "onnx", "onnxruntime", "openvino", "tensorrt", "tensorrt_rtx"}
TOPS = ("kp_frontend.nodes", "kp_frontend.replay", "kp_frontend.benchmarks", "kp_frontend.demo",
        "kp_frontend.__main__", "kp_frontend.command_line")
"""Nodes and command lines: what the rest of the runtime does not know."""


@cache
def imports(module: str, lazy: bool) -> set[str]:
    """Modules that `module` imports, by their full names; lazy: in its functions, too, but never for types alone."""
    found, waiting = set(), list(ast.parse(FILES[module].read_text(encoding="utf-8")).body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            found |= {entry.name for entry in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module}: imports are absolute here"
            inner = {f"{node.module}.{entry.name}" for entry in node.names}
            found |= (inner & FILES.keys()) | ({node.module} if inner - FILES.keys() else set())
        elif lazy or not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            waiting += ast.iter_child_nodes(node)
    return found


def within(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


@pytest.mark.parametrize("lazy", [False, True])
def test_there_is_no_loop(lazy):
    TopologicalSorter({module: imports(module, lazy) & FILES.keys() - {module} for module in FILES}).prepare()


def test_the_runtime_knows_neither_training_nor_torch():
    for module in filter(lambda name: within(name, "kp_frontend"), FILES):
        roots = {name.partition(".")[0] for name in imports(module, lazy=True)}
        assert "kp_training" not in roots, module
        assert "torch" not in roots or within(module, TORCH), module


def test_backends_are_imported_when_they_are_asked_for():
    for module in filter(lambda name: within(name, "kp_frontend"), FILES):
        if module == TORCH or not within(module, TORCH):  # what is in the room is reached by its door alone
            known = imports(module, lazy=False)
            assert not {name.partition(".")[0] for name in known} & BACKENDS, module
            assert not any(name.startswith(f"{TORCH}.") for name in known), module


def test_lower_floors_know_nothing_of_nodes_and_command_lines():
    for module in filter(lambda name: within(name, "kp_frontend") and not within(name, *TOPS), FILES):
        assert not [name for name in imports(module, lazy=True) if within(name, *TOPS)], module
    for module in filter(lambda name: not within(name, "kp_frontend", "kp_training.__main__", "kp_training.cli"),
                         FILES):
        assert not any(within(name, "kp_training.cli") for name in imports(module, lazy=False)), module
