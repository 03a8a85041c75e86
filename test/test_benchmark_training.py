"""The training benchmark measures the loop that trains, and says what it could not; no time is judged here."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kp_frontend.errors import InputError
from kp_frontend.isolated import Ended, call_isolated
from kp_training.benchmarks import training as benchmark
from kp_training.benchmarks.photographs import photographs
from kp_training.cli import benchmark as command
from kp_training.methods import METHODS
from kp_training.methods.base import Stage

CASE = benchmark.Case("slow", "train", {}, ("procedural:4",), "cpu", steps=3)


class Item(NamedTuple):
    image0: Tensor
    image1: Tensor


class SlowItems:
    """Items that take 20 ms to make and 10 ms a batch to finish."""

    def __getitem__(self, number: int) -> Item:
        time.sleep(0.02)
        return Item(torch.zeros(1, 32, 40), torch.zeros(1, 32, 40))

    def finish(self, batch: Item) -> Item:
        time.sleep(0.01)
        return batch


@dataclass(frozen=True)
class SlowConfig:
    labelled: bool = False


class SlowMethod:
    """A method whose batches take 50 ms, and 200 MB for 4 pairs."""

    Config = SlowConfig

    def __init__(self, config: SlowConfig) -> None:
        self.config, self.variant = config, "plain"

    def stages(self) -> tuple[Stage, ...]:
        training = {"batch_size": 4, "accumulate": 2, "ema": 0.0}
        return (Stage("train", lambda: nn.Conv2d(1, 1, 3), self._items, self._losses, nn.Sequential, training),)

    def _items(self, context) -> SlowItems:
        if self.config.labelled:
            assert not context.trained("train").training
            assert context.items == 2 * 4 * (benchmark.WARM_UP + CASE.steps)
            time.sleep(0.1)
            context.images[0], context.images[1]
        return SlowItems()

    def _losses(self, run, network, batch) -> dict[str, Tensor]:
        room = np.ones(50 * len(batch.image0), np.float64).repeat(2**17)
        time.sleep(0.05)
        return {"loss": run(network, batch.image0).mean() + 0 * float(room[0])}


@pytest.fixture
def slow(monkeypatch):
    monkeypatch.setitem(METHODS, "slow", f"{__name__}:SlowMethod")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))  # where the process finds this file


def _measure_slow(case: benchmark.Case, progress) -> benchmark.Figures:
    """`measure`, in a process that knows the method above."""
    METHODS["slow"] = f"{__name__}:SlowMethod"
    return benchmark.measure(case, progress)


def test_figures_are_of_the_loop(slow):
    seen = []
    case = replace(CASE, settings={"workers": 0, "labelled": True})
    figures = call_isolated(_measure_slow, case, progress=lambda *done: seen.append(done))
    assert seen == [(number, 5) for number in range(1, 6)]
    assert (figures.height, figures.width, figures.batch, figures.own_batch, figures.workers) == (32, 40, 4, 4, 0)
    step = 2 * (4 * 0.02 + 0.01 + 0.05)  # two batches a step, and nothing at once
    assert figures.step.p50 >= 1e3 * step
    assert figures.images == pytest.approx(16e3 / figures.step.p50, rel=0.5)
    assert 0 < figures.images <= 16 / step
    assert 0 < figures.augmenting < figures.waiting < 160 / 280 + 0.15
    assert 0 < figures.loader_images <= 2 / 0.02
    assert figures.memory > 180
    assert 0 < figures.labelled_images <= 2 / 0.1


@pytest.mark.parametrize("too_much", [MemoryError("full"), Ended("measure", -9)])
def test_the_batch_is_halved_until_it_fits(slow, monkeypatch, too_much):
    tried = []

    def call(function, case, progress):
        tried.append(case.batch_size)
        if case.batch_size != 1:
            raise too_much
        return "figures"

    monkeypatch.setattr(benchmark, "call_isolated", call)
    assert benchmark.measure_isolated(CASE, print) == "figures"
    assert tried == [0, 2, 1]
    monkeypatch.setattr(benchmark, "call_isolated", lambda *_, **__: (_ for _ in ()).throw(too_much))
    with pytest.raises(InputError, match=r"slow train needs more memory.*--size"):
        benchmark.measure_isolated(CASE, print)


def test_torch_without_memory_is_a_memory_error():
    with pytest.raises(MemoryError), benchmark._memory_errors(torch.device("meta")):
        torch.zeros(2**60)
    with pytest.raises(RuntimeError, match="shape"), benchmark._memory_errors(torch.device("meta")):
        torch.zeros(3).reshape(2)


def test_photographs_are_made_once(tmp_path, monkeypatch):
    monkeypatch.setenv("KP_FRONTEND_CACHE", str(tmp_path))
    folder = photographs(3)
    files = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert len(files) == 3
    assert photographs(3) == folder
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == files


FIGURES = benchmark.Figures("kp2d", "v2", "train", "cpu", 240, 320, 2, 8, 10.0,
                            benchmark.Percentiles(400.0, 500.0, 600.0), 900.0, 0.25, 0.0, 9.0, 1, None)


def test_whole_command(tmp_path, monkeypatch, capsys):
    """The rows are every method's with its own network and the small one; what is refused is said."""
    asked = []

    def measured(case, progress):
        asked.append((case.method, case.settings.get("network"), case.stage))
        if case.method == "residual":
            raise InputError("no detector")
        return replace(FIGURES, method=case.method, stage=case.stage, labelled_images=0.5)

    monkeypatch.setattr(benchmark, "measure_isolated", measured)
    monkeypatch.setattr("kp_training.benchmarks.photographs.photographs", lambda: tmp_path)
    monkeypatch.setattr("kp_frontend.isolated.call_isolated", lambda *_, **__: 140.0)
    file = tmp_path / "figures.json"
    assert command.main(["training", "--steps", "3", "--json", str(file)]) == 0
    assert {method for method, _, _ in asked} == set(METHODS)
    assert ("kp2d", None, "train") in asked
    assert ("kp2d", "compact", "train") in asked
    assert [row[2] for row in asked if row[:2] == ("superpoint", None)] == ["magicpoint", "joint"]
    shown = capsys.readouterr().out
    for words in ("2 (memory; 8)", "25%", "left out: residual train: no detector", "NO  the loader alone",
                  "140 images/s", "0.50 photos/s"):
        assert words in shown
    written = json.loads(file.read_text())
    assert len(written["results"]) == len(asked) - 1
    assert written["results"][0]["step"]["p90"] == 500
    assert "torch" in written["versions"]


def test_ctrl_c_shows_what_was_measured(tmp_path, monkeypatch, capsys):
    def measured(case, progress):
        if case.settings.get("network") == "compact":
            raise KeyboardInterrupt
        return FIGURES

    monkeypatch.setattr(benchmark, "measure_isolated", measured)
    monkeypatch.setattr("kp_training.benchmarks.photographs.photographs", lambda: tmp_path)
    monkeypatch.setattr("kp_frontend.isolated.call_isolated", lambda *_, **__: 140.0)
    assert command.main(["training", "--methods", "kp2d"]) == 130
    shown = capsys.readouterr().out
    assert "320×240" in shown
    assert "left out: kp2d compact train and what comes after it: stopped" in shown


@pytest.mark.parametrize(("words", "said"), [
    (["--steps", "1"], "--steps 1"), (["--size", "240"], "HEIGHTxWIDTH"), (["--methods", "orb"], "orb.*kp2d"),
    (["--methods", "residual", "--network", "compact"], "no choice of network"),
    (["--methods", "kp2d", "--network", "huge"], "huge"), (["--methods", "kp2d", "--size", "31x31"], "31"),
])
def test_bad_usage_is_one_line(words, said, tmp_path, monkeypatch):
    monkeypatch.setattr("kp_training.benchmarks.photographs.photographs", lambda: tmp_path)
    monkeypatch.setattr("kp_frontend.isolated.call_isolated", lambda *_, **__: 140.0)
    with pytest.raises(InputError, match=said) as error:
        command.main(["training", *words])
    assert "\n" not in str(error.value)
