"""gpu_check: the page of a machine without a GPU, and of one with, whose tests and benchmark are made up."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from kp_frontend.engines.base import Unavailable
from kp_frontend.engines.cuda_driver import Gpu
from kp_training.__main__ import main
from kp_training.cli import gpu_check

XML = """<testsuites><testsuite name="pytest">
<testcase classname="test.test_gpu" name="test_maps[cuda]"/>
<testcase classname="test.test_gpu" name="test_maps[tensorrt]"><skipped message="TensorRT is not installed"/></testcase>
{more}</testsuite></testsuites>"""
BROKEN = '<testcase classname="test.test_gpu" name="test_swap"><failure message="no">trace</failure></testcase>'


def row(backend, whole, features="superpoint", label="fp16 sparse", engine="", kind="network"):
    times = {name: {"p50": value, "p90": value + 1} for name, value in
             (("whole", whole), ("before", 0.1), ("network", whole - 0.3), ("after", 0.2))}
    return {"kind": kind, "features": features, "label": label, "backend": backend, "engine": engine or backend,
            "width": 640, "height": 480, "within": 0.987, "cosine": 0.999, **times}


@pytest.fixture
def gpu(monkeypatch):
    """A GPU, and what its two children write: `xml`, and `results` with what was `left_out`."""
    written = SimpleNamespace(xml=XML.format(more=""), results=[], left_out=[], commands=[])

    def call(command, options, log, folder):
        written.commands.append(command)
        if command[0] == "pytest":
            path = next(word for word in command if word.startswith("--junitxml=")).partition("=")[2]
            content = written.xml
        else:
            path = command[command.index("--json") + 1]
            content = written.results and json.dumps({"results": written.results, "left_out": written.left_out})
        if content:
            with open(path, "w") as file:
                file.write(content)
        return options.output / log

    driver = SimpleNamespace(gpu=Gpu("NVIDIA H100", "9.0", "12.8", "NVRM version: 570"))
    monkeypatch.setattr(gpu_check, "open_driver", lambda: driver)
    monkeypatch.setattr(gpu_check, "_call", call)
    return written


def test_without_a_gpu_it_says_what_it_skips_and_ends_well(monkeypatch, tmp_path, capsys):
    def missing():
        raise Unavailable("no NVIDIA GPU here: no driver")

    monkeypatch.setattr(gpu_check, "open_driver", missing)
    monkeypatch.setattr(gpu_check, "_call", None)  # nothing is run
    assert main(["gpu_check", "--output", str(tmp_path / "out")]) == 0
    page = capsys.readouterr().out
    assert page == (tmp_path / "out" / "gpu_check.md").read_text()
    assert "- GPU: no NVIDIA GPU here: no driver\n" in page
    assert "- Tests on the GPU (pytest -m gpu): no NVIDIA GPU here: no driver\n" in page
    assert "by tensorrt, cuda, pytorch, and the goal of 1 ms): no NVIDIA GPU here: no driver\n" in page
    assert page.endswith("\nNothing failed, but something was skipped.\n")
    assert json.loads((tmp_path / "out" / "gpu_check.json").read_text())["gpu"] is None


def test_the_page_of_a_gpu(gpu, tmp_path, capsys):
    gpu.results = [
        row("tensorrt", 0.84, engine="tensorrt (NVIDIA H100)"), row("pytorch", 1.21, engine="pytorch (CUDA)"),
        row("onnxruntime", 260), row("tensorrt", 0.2, "kp2d_compact"), row("opencv", 9, "orb", kind="classical"),
    ]
    gpu.left_out = ["cuda: pip install 'kp_frontend[gpu]'"]
    assert main(["gpu_check", "--output", str(tmp_path), "--repeats", "7"]) == 0
    page = capsys.readouterr().out
    assert "- GPU: NVIDIA H100, SM 9.0, CUDA 12.8, NVRM version: 570\n" in page
    assert "- 1 passed, 0 failed, 1 skipped (" in page
    cells = "0.84 | 1.84 | 0.10 | 0.54 | 0.20 | 0.987 | 0.999"
    assert f"| superpoint | fp16 sparse | tensorrt (NVIDIA H100) | {cells} |\n" in page
    goals = [line for line in page.splitlines() if line.endswith(" ms")]
    assert goals == [
        "- yes: superpoint fp16 sparse 640×480 by tensorrt (NVIDIA H100), upload to features, at most 1 ms: 0.84 ms",
        "- NO: superpoint fp16 sparse 640×480 by pytorch (CUDA), upload to features, at most 1 ms: 1.21 ms",
    ]
    assert "orb" not in page
    assert "\n## Skipped\n- test_gpu::test_maps[tensorrt]: TensorRT is not installed\n- cuda: pip install" in page
    assert "## Failed" not in page
    tests, benchmark = gpu.commands
    assert tests[:3] == ["pytest", "-m", "gpu"]
    assert benchmark[:3] == ["kp_training", "benchmark", "model"]
    assert benchmark[benchmark.index("--repeats") + 1] == "7"
    figures = json.loads((tmp_path / "gpu_check.json").read_text())
    assert figures["gpu"]["name"] == "NVIDIA H100"
    assert figures["parts"][2]["figures"]["results"] == gpu.results


@pytest.mark.parametrize(("change", "words"), [
    ({"xml": XML.format(more=BROKEN)}, "- test_gpu::test_swap\n"),
    ({"xml": ""}, "- Tests on the GPU: pytest gave no result; see"),
    ({"xml": "<testsuites/>"}, "- Tests on the GPU: none was found; see"),
    ({"results": []}, "- Engines on the GPU: gave no figures; see"),
    ({"left_out": ["superpoint fp16 sparse 640×480 k=1000 cuda: cuda disagrees"]}, "k=1000 cuda: cuda disagrees\n"),
])
def test_what_fails_is_said_and_is_the_exit_code(gpu, tmp_path, capsys, change, words):
    gpu.results = [row("tensorrt", 0.84)]
    vars(gpu).update(change)
    assert main(["gpu_check", "--output", str(tmp_path)]) == 1
    failed = capsys.readouterr().out.partition("## Failed\n")[2]
    assert words in failed
    assert failed.endswith("\nSomething failed.\n")


def test_figures_of_an_earlier_run_are_not_taken_for_this_one(gpu, tmp_path):
    gpu.results = [row("tensorrt", 0.84)]
    assert main(["gpu_check", "--output", str(tmp_path)]) == 0
    gpu.results, gpu.xml = [], ""
    assert main(["gpu_check", "--output", str(tmp_path)]) == 1
    parts = json.loads((tmp_path / "gpu_check.json").read_text())["parts"]
    assert [bool(part["failed"]) for part in parts] == [False, True, True]
