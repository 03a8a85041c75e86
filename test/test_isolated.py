"""Functions in processes of their own: their results and errors come back, and no process is left."""

from __future__ import annotations

import importlib
import math
import operator
import os

import pytest

from kp_frontend import isolated
from kp_frontend.errors import InputError
from kp_frontend.isolated import Ended, call_isolated
from kp_training import workers
from kp_training.evaluation.sequences import Size

FAILING = """
import os
from kp_frontend.errors import InputError

def fail(name, progress):
    progress(1, 2)
    if name == "killed":
        os.kill(os.getpid(), 9)
    raise {"input": InputError, "memory": MemoryError, "other": KeyError}[name](name)
"""


@pytest.mark.parametrize(("name", "error"), [("input", InputError), ("memory", MemoryError), ("other", Ended),
                                             ("killed", Ended)])
def test_errors_come_out_of_the_process(name, error, tmp_path, monkeypatch, capfd):
    (tmp_path / "failing_of_test.py").write_text(FAILING)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    seen = []
    with pytest.raises(error, match="fail" if error is Ended else name) as raised:
        call_isolated(importlib.import_module("failing_of_test").fail, name, progress=lambda *done: seen.append(done))
    assert seen == [(1, 2)]
    if error is Ended:
        assert raised.value.code == {"killed": -9, "other": 1}[name]
    assert ("KeyError: 'other'" in capfd.readouterr().err) == (name == "other")


def test_tasks_in_processes_give_the_same_results(monkeypatch):
    tasks, started = list(range(12)), []
    popen = isolated.Popen
    monkeypatch.setattr(
        isolated, "Popen", lambda *words, **names: started.append(popen(*words, **names)) or started[-1])
    assert sorted(workers.run_tasks(operator.neg, tasks, 3)) == [(task, -task) for task in tasks]
    assert len(started) == 3
    next(iter(workers.run_tasks(operator.neg, tasks, 2)))  # given up half way
    with pytest.raises(InputError, match="--size big"):
        list(workers.run_tasks(Size.parse, ["full", "big"], 2))
    with pytest.raises(RuntimeError, match="math domain error"):
        list(workers.run_tasks(math.sqrt, [1, -1, 4], 2))
    with pytest.raises(FileNotFoundError, match="nowhere"):  # as a full disk, for the caller to explain
        list(workers.run_tasks(os.listdir, ["/nowhere/1", "/nowhere/2"], 2))
    with pytest.raises(RuntimeError, match="exit code 3; out of memory"):
        list(workers.run_tasks(os._exit, [3, 3], 2))
    assert all(process.returncode is not None for process in started), "no process is left"
