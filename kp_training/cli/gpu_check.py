"""``gpu_check``: every GPU test and benchmark in one go, as one page; without a GPU, what is skipped and why."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import kp_frontend
from kp_frontend.atomic import written_whole
from kp_frontend.benchmarks.report import write_figures
from kp_frontend.engines.base import Unavailable
from kp_frontend.engines.cuda_driver import Gpu, open_driver
from kp_frontend.progress import progress_of_parts
from kp_frontend.replay import provenance
from kp_frontend.resources import make_folders
from kp_training.benchmarks.model_goals import COMPACT, GPU_LIMIT, ON_GPU, SUPERPOINT

TESTS = Path(kp_frontend.__file__).parents[1] / "test"
FEATURES = (COMPACT, SUPERPOINT)
GPU_BACKENDS, REFERENCE = ("tensorrt", "cuda", "pytorch"), "onnxruntime"
_HOUR = 3600


@dataclass(frozen=True)
class Part:
    """One part of the page.  failed: what went wrong.  skipped: what was not done, and why.  figures: for the JSON."""

    title: str
    lines: tuple[str, ...]
    failed: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    figures: dict[str, Any] = field(default_factory=dict)


def main(argv: Sequence[str]) -> int:
    """Run the command: 0 where nothing failed, whatever was skipped, else 1; InputError for what cannot be used."""
    options = _parser().parse_args(argv)
    make_folders(options.output)
    gpu, reason = _gpu()
    parts = [_machine(gpu, reason)]
    if gpu is None:
        parts += [Part(title, (), skipped=(f"{title} ({what}): {reason}",)) for title, (what, _) in CHECKS.items()]
    else:
        with progress_of_parts("checks", len(CHECKS)) as begin:
            for title, (_, check) in CHECKS.items():
                begin(title)
                parts.append(check(title, options))
    page = _page(parts)
    print(page, end="")
    with written_whole(options.output / "gpu_check.md") as beside:
        beside.write_text(page, encoding="utf-8")
    write_figures(options.output / "gpu_check.json", ["kp_training", "gpu_check", *argv],
                  {"gpu": gpu and asdict(gpu), "parts": [asdict(part) for part in parts]})
    return int(any(part.failed for part in parts))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "gpu_check",
        description="Run every test and benchmark that needs an NVIDIA GPU and print one page: the machine, the tests, "
                    "the parity of every engine with onnxruntime on the CPU, and the time of SuperPoint 640×480 from "
                    f"image to features beside its goal of {GPU_LIMIT:g} ms. Takes some minutes, most of them "
                    "TensorRT's builds. Without a GPU it says what it skips, and ends well.",
        epilog="Exit code 0 where nothing failed, 1 where a test or an engine did.",
    )
    add = parser.add_argument
    add("--output", type=Path, default=Path("output"), metavar="DIR",
        help="folder for gpu_check.md, gpu_check.json and the logs (default %(default)s)")
    add("--repeats", type=int, default=100, help="timed runs of each row (default %(default)s)")
    return parser


def _gpu() -> tuple[Gpu | None, str]:
    """The GPU, or why there is none."""
    try:
        return open_driver().gpu, ""
    except Unavailable as error:
        return None, str(error)


def _machine(gpu: Gpu | None, reason: str) -> Part:
    versions, host = provenance.versions(), provenance.machine()
    about = f"{gpu.name}, SM {gpu.sm}, CUDA {gpu.cuda}, {gpu.driver or 'driver unknown'}" if gpu else reason
    lines = (
        f"- GPU: {about}",
        f"- CPU: {host['processor']}, {host['cores']} cores, {host['system']}",
        f"- {', '.join(f'{name} {version}' for name, version in versions.items())}",
        f"- revision {provenance.revision() or 'unknown'}",
    )
    return Part("Machine", lines, figures={"packages": versions})


def _tests(title: str, options: argparse.Namespace) -> Part:
    """``pytest -m gpu`` of the checkout."""
    if not TESTS.is_dir():
        return Part(title, (), skipped=(f"{title}: the tests are not installed; run this from a checkout",))
    results = (options.output / "gpu_tests.xml").absolute()
    results.unlink(missing_ok=True)
    log = _call(["pytest", "-m", "gpu", "-p", "no:cacheprovider", f"--junitxml={results}", str(TESTS)], options,
                "gpu_tests.log", TESTS.parent)
    if not results.is_file():
        return Part(title, (), failed=(f"{title}: pytest gave no result; see {log}",))
    cases = list(ElementTree.parse(results).iter("testcase"))
    failed = [_case(case) for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = [f"{_case(case)}: {case.find('skipped').get('message')}"  # type: ignore[union-attr]
               for case in cases if case.find("skipped") is not None]
    passed = len(cases) - len(failed) - len(skipped)
    none = (f"{title}: none was found; see {log}",) if not cases else ()
    return Part(title, (f"- {passed} passed, {len(failed)} failed, {len(skipped)} skipped ({log})",),
                (*failed, *none), tuple(skipped), {"passed": passed, "failed": failed})


def _case(case: ElementTree.Element) -> str:
    return f"{case.get('classname', '').rpartition('.')[2]}::{case.get('name')}"


def _benchmark(title: str, options: argparse.Namespace) -> Part:
    """``benchmark model`` with every engine of the GPU, and onnxruntime on the CPU to compare with."""
    figures = (options.output / "gpu_benchmark.json").absolute()
    figures.unlink(missing_ok=True)
    log = _call(["kp_training", "benchmark", "model", "--features", *FEATURES, "--backends", *GPU_BACKENDS, REFERENCE,
                 "--precisions", "fp32", "fp16", "--pairs", "0", "--repeats", str(options.repeats),
                 "--json", str(figures)], options, "gpu_benchmark.log", Path.cwd())
    if not figures.is_file():
        return Part(title, (), failed=(f"{title}: gave no figures; see {log}",))
    written = json.loads(figures.read_text(encoding="utf-8"))
    rows = [row for row in written["results"] if row["kind"] == "network"]
    timed = [row for row in rows if row["features"] == SUPERPOINT and row["label"].startswith(ON_GPU)
             and row["backend"] in GPU_BACKENDS and "(CPU)" not in row["engine"]]
    lines = ("A frame, image in → keypoints and descriptors in hand (before, in and after the network), and parity "
             "with the fp32 dense file by onnxruntime on the CPU:", "", *_table(rows), "",
             *(map(_goal, timed) if timed else [f"- NO time of {SUPERPOINT} {ON_GPU} on the GPU"]))
    absent = tuple(line for line in written["left_out"] if line.partition(":")[0] in GPU_BACKENDS)
    failed = tuple(line for line in written["left_out"] if line not in absent)
    return Part(title, lines, failed, absent, written)


def _table(rows: Sequence[dict[str, Any]]) -> list[str]:
    lines = ["| features | file | engine | p50 ms | p90 ms | before | network | after | 1 px | cosine |",
             "|---|---|---|---:|---:|---:|---:|---:|---:|---:|"]
    for row in rows:
        parts = [row[name]["p50"] if name in row else float("nan") for name in ("before", "network", "after")]
        cells = [f"{value:.2f}" for value in (row["whole"]["p50"], row["whole"]["p90"], *parts)]
        cells += [f"{row[name]:.3f}" for name in ("within", "cosine")]
        lines.append(f"| {' | '.join([row['features'], row['label'], row['engine'], *cells])} |")
    return lines


def _goal(row: dict[str, Any]) -> str:
    spent = row["whole"]["p50"]
    met = "yes" if spent <= GPU_LIMIT else "NO"
    return (f"- {met}: {row['features']} {row['label']} {row['width']}×{row['height']} by {row['engine']}, "
            f"upload to features, at most {GPU_LIMIT:g} ms: {spent:.2f} ms")


CHECKS: dict[str, tuple[str, Callable[[str, argparse.Namespace], Part]]] = {
    "Tests on the GPU": ("pytest -m gpu", _tests),
    "Engines on the GPU": (
        f"parity and time of {' and '.join(FEATURES)}, dense and sparse, fp32 and fp16, by {', '.join(GPU_BACKENDS)}, "
        f"and the goal of {GPU_LIMIT:g} ms", _benchmark),
}
"""Part of the page → what is in it, and what makes it where there is a GPU."""


def _call(command: Sequence[str], options: argparse.Namespace, log: str, folder: Path) -> Path:
    """Run a module of Python to its end; where its words went."""
    place = (options.output / log).absolute()
    with open(place, "w", encoding="utf-8") as file:
        try:
            subprocess.run([sys.executable, "-m", *command], stdout=file, stderr=subprocess.STDOUT, cwd=folder,
                           timeout=_HOUR, check=False)
        except subprocess.TimeoutExpired:
            file.write(f"\nstopped after {_HOUR} s\n")
    return place


def _page(parts: Sequence[Part]) -> str:
    """The page in Markdown."""
    failed = [line for part in parts for line in part.failed]
    skipped = [line for part in parts for line in part.skipped]
    lines = [f"# GPU check, {time.strftime('%Y-%m-%d %H:%M')}", ""]
    for part in parts:
        lines += [f"## {part.title}", *(part.lines or ("- nothing was run",)), ""]
    for title, said in (("Failed", failed), ("Skipped", skipped)):
        if said:
            lines += [f"## {title}", *(f"- {line}" for line in said), ""]
    lines.append("Something failed." if failed else "Nothing failed, but something was skipped." if skipped
                 else "All is well.")
    return "\n".join(lines) + "\n"
