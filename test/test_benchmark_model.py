"""The benchmark of models times what it says, sees a wrong engine, and names what it left out; no time is judged."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_models import full_metadata, full_model

from kp_frontend.errors import InputError
from kp_frontend.features import Features
from kp_frontend.replay.summary import Percentiles
from kp_training.benchmarks import model, model_files, model_goals, model_process, model_rows
from kp_training.benchmarks.model_files import REFERENCE, Subject, Variant
from kp_training.benchmarks.model_rows import Facts, Row
from kp_training.cli import benchmark as command

ROW = Row("network", "kp2d_compact", "openvino", "int8 dense", None, 480, 640)


def figures(row: Row = ROW, whole: float = 8.0, accuracy: tuple[float, ...] = (), **facts) -> model.ModelFigures:
    parts = {name: Percentiles(value, value, value) for name, value in facts.pop("parts", {}).items()}
    found = Facts(**{"engine": f"{row.backend} (CPU)", "descriptor_size": 64,
                     "accuracy": dict(zip(model_rows.METRICS, accuracy)), **facts})
    return model.ModelFigures(row, found, Percentiles(whole, whole, whole), parts, 5)


def test_a_subject_is_a_file_with_its_weights_or_a_method(tmp_path):
    full_model(tmp_path / "tiny.onnx", full_metadata())
    assert model_files.find_subject(str(tmp_path / "tiny.onnx")) == Subject("tiny", tmp_path / "tiny.onnx")
    (tmp_path / "tiny.ckpt").touch()
    assert model_files.find_subject(str(tmp_path / "tiny.onnx")).weights == tmp_path / "tiny.ckpt"
    assert model_files.find_subject(str(tmp_path / "tiny.ckpt")) == Subject("tiny", None, tmp_path / "tiny.ckpt")
    assert model_files.find_subject("silk") == Subject("silk", method="silk")
    assert model_files.find_subject("kp2d_compact").weights is not None
    for name in ("surf", "no_such.onnx"):
        with pytest.raises(InputError, match=name):
            model_files.find_subject(name)


def test_models_of_another_precision_are_no_subjects_of_their_own(monkeypatch):
    monkeypatch.setattr(model_files, "model_names", lambda: ["a", "a_int8", "b_int8"])
    assert model_files.default_subjects() == ["a", "b_int8", "superpoint"]


def test_files_that_ship_are_taken_and_others_exported(tmp_path, monkeypatch):
    fp32 = full_model(tmp_path / "tiny.onnx", full_metadata())
    int8 = full_model(tmp_path / "tiny_int8.onnx", full_metadata(precision="int8", quantized_for="cpu"))
    asked = []
    monkeypatch.setattr("kp_training.cli.export.main", asked.append)
    subject = Subject("tiny", fp32, tmp_path / "tiny.ckpt")
    variants = [REFERENCE, Variant("int8", "cpu"), Variant("int8", "tensorrt"), Variant("fp16", top_k=50)]
    made = model_files.make_files(subject, variants, tmp_path, lambda *done: None)
    assert [made[variant] for variant in variants[:2]] == [fp32, int8]
    words = [" ".join(words) for words in asked]
    assert ["--precision int8" in words[0], "--quantized-for tensorrt" in words[0], "--top-k" in words[0]] == [1, 1, 0]
    assert ["--precision fp16" in words[1], "--top-k 50" in words[1]] == [1, 1]
    assert model_files.own_variant(Subject("tiny", int8)) == [Variant("int8", "cpu")]
    without = model_files.make_files(Subject("tiny", fp32), [Variant("fp16")], tmp_path, lambda *done: None)
    assert "no tiny.ckpt beside" in without[Variant("fp16")]


def test_an_export_that_fails_is_a_reason(tmp_path, monkeypatch):
    def fail(words):
        raise ValueError("no such\noperator")

    monkeypatch.setattr("kp_training.cli.export.main", fail)
    made = model_files.make_files(Subject("tiny", None, tmp_path / "x.ckpt"), [REFERENCE], tmp_path, lambda *done: None)
    assert made == {REFERENCE: "ValueError: no such operator"}


def test_an_untrained_network_is_always_the_same(tmp_path):
    first = model_files._untrained("superpoint", tmp_path)
    second = model_files._untrained("superpoint", tmp_path / "other")
    from kp_training.runs import load_checkpoint, load_network, open_run

    networks = [load_network(open_run(file).method, load_checkpoint(file))[1] for file in (first, second)]
    values = [next(network.parameters()).detach().numpy() for network in networks]
    np.testing.assert_array_equal(*values)


def test_every_file_runs_where_it_was_made_for():
    files = {Variant("fp32"): Path("a"), Variant("int8", "cpu"): Path("b"), Variant("int8", "tensorrt"): Path("c"),
             Variant("fp16", top_k=500): Path("d")}
    rows = model.network_rows(Subject("x"), files, ["tensorrt", "openvino"], [(48, 64), (96, 128)], [500, 1000])
    assert len({row.name for row in rows}) == len(rows) == 2 * (2 * 2 + 2 + 2 + 2)
    assert {row.backend for row in rows if row.file == Path("c")} == {"tensorrt"}
    assert {row.backend for row in rows if row.file == Path("b")} == {"openvino"}
    assert {row.top_k for row in rows if row.file == Path("d")} == {500}
    assert not model.network_rows(Subject("x", method="x"), files, ["openvino"], [(48, 64)], [500])[0].trained


def test_agreement_sees_what_moved():
    points = np.array([[10, 10], [50, 20], [90, 70]], np.float32)
    descriptors = np.eye(3, 4, dtype=np.float32)
    theirs = Features(points, np.ones(3, np.float32), descriptors)
    assert model_rows.agreement([theirs], [theirs]) == (1.0, 1.0)
    moved = Features(points + np.array([[0.5, 0], [0, 5], [0, 0]], np.float32), np.ones(3, np.float32), descriptors)
    assert model_rows.agreement([theirs, theirs], [theirs, moved]) == (pytest.approx((1 + 2 / 3) / 2), 1.0)


def test_rows_take_turns_until_they_have_enough():
    class Turns:
        def __init__(self) -> None:
            self.asked = []

        def ask(self, backend, name, number):
            assert (backend, name) == ("abc"[number], "turn")
            self.asked.append(number)
            if number == 2:
                raise InputError("the process that ran cuda ended with exit code -11")
            return [{"whole": 700.0 if number else 1.0}] * (1 if number else 4)

    process, refused, seen = Turns(), [], []
    rows = [replace(ROW, backend=name) for name in ("a", "b", "c")]
    times = model._take_turns(process, rows, dict.fromkeys(range(3)), 12, lambda *done: seen.append(done), refused)
    assert process.asked == [0, 1, 2, 0, 1, 0, 1]
    assert {number: len(each) for number, each in times.items()} == {0: 12, 1: model.LEAST_RUNS}
    assert "c: the process that ran cuda ended" in refused[0]
    assert seen[-1] == (3, 3)


def test_a_turn_warms_up_only_what_is_short():
    class Runs:
        def __init__(self, whole: float) -> None:
            self.whole, self.count = whole, 0

        def run(self, number):
            self.count += 1
            return {"whole": self.whole}

    rows = model_process.Rows()
    rows.runners = {0: Runs(1.0), 1: Runs(500.0)}
    assert [len(rows.turn(0)), rows.runners[0].count] == [4, 5]
    assert [len(rows.turn(1)), rows.runners[1].count] == [1, 1]


def test_a_process_says_why_and_goes_on(tmp_path):
    row = Row("network", "tiny", "onnxruntime", file=tmp_path / "no.onnx", height=48, width=64)
    with model_process.Processes() as processes:
        with pytest.raises(InputError, match=r"no\.onnx does not exist"):
            processes.ask("cpu", "probe", row)
        facts = processes.ask("cpu", "open", 0, Row("matching", "mutual NN", "cpu", top_k=20, size=8), None, 0)
        assert (facts.keypoints, facts.descriptor_size) == (20, 8)
        assert {each["whole"] > 0 for each in processes.ask("cpu", "turn", 0)} == {True}
        processes._running["cpu"]._child.kill()
        with pytest.raises(InputError, match="cpu ended with exit code -9"):
            processes.ask("cpu", "turn", 0)


def test_goals_speak_of_what_was_measured():
    orb = figures(replace(ROW, kind="classical", features="orb", label="", backend="cpu"), 4.0)
    exact = figures(replace(ROW, backend="onnxruntime", label="fp32 dense"), 20.0, (0.5, 0.8, 0.9),
                    parts={"after": 3.5})
    int8 = figures(whole=8.1, accuracy=(0.5, 0.79, 0.87), parts={"after": 2.9})
    gpu = figures(replace(ROW, backend="cuda", label="fp32 dense"), 1.0, parts={"after": 0.1})
    assert model_goals.judge([orb]) == {}
    found = model_goals.judge([orb, exact, int8])
    assert [sentence.split(":")[0].partition(" at ")[0] for sentence in found] == [
        "kp2d_compact on the CPU", "after the network, 1000 points of 64-D,",
        "kp2d_compact int8 within 2 % of fp32 on the few pairs of this run (its card has 1500)"]
    assert list(found.values()) == [False, True, False]
    assert next(iter(model_goals.judge([orb, exact, replace(int8, whole=Percentiles(8, 8, 8))]).values()))
    assert "2.02×" in next(iter(model_goals.judge([orb, exact, int8, gpu])))
    other = replace(ROW, height=240)
    assert model_goals.judge([orb, figures(other, 1.0)]) == {}

    superpoint = [replace(ROW, features="superpoint", backend=backend, label=label) for backend, label in
                  (("onnxruntime", "fp32 dense"), ("openvino", "int8 sparse"), ("tensorrt", "fp16 sparse"))]
    times = [figures(row, whole, parts={"after": 7.0}, descriptor_size=256)
             for row, whole in zip(superpoint, (400.0, 201.0, 0.9))]
    assert list(model_goals.judge(times).values()) == [False, False, True]


@pytest.mark.parametrize(("words", "said"), [
    (["--features", "surf"], "surf.*superpoint"), (["--backends", "cpu"], "cpu.*onnxruntime"),
    (["--sizes", "480"], "480.*HEIGHTxWIDTH"), (["--top-k", "0"], "--top-k 0"), (["--repeats", "0"], "--repeats 0"),
    (["--compare", "/nowhere.json"], "--compare /nowhere.json"),
])
def test_bad_usage_is_one_line(words, said):
    with pytest.raises(InputError, match=said) as error:
        command.main(["model", *words])
    assert "\n" not in str(error.value)


def test_whole_command(tmp_path, capsys):
    """A tiny model on the CPU, beside a backend that is not there and an earlier run."""
    tiny = full_model(tmp_path / "tiny.onnx", full_metadata())
    file, plot, earlier = tmp_path / "figures.json", tmp_path / "other.png", tmp_path / "earlier.json"
    name = "tiny fp32 dense 128×96 k=50 onnxruntime"
    earlier.write_text(json.dumps({"medians": {name: 1e-3}}))
    words = ["model", "--features", str(tiny), "--backends", "onnxruntime", "cuda", "--precisions", "fp32", "fp16",
             "--profiles", "dense", "--sizes", "96x128", "--top-k", "50", "--pairs", "1", "--repeats", "2"]
    assert command.main([*words, "--json", str(file), "--plot", str(plot), "--compare", str(earlier)]) == 0
    written = json.loads(file.read_text())
    assert plot.read_bytes().startswith(b"\x89PNG")
    rows = {row["features"]: row for row in written["results"]}
    assert set(rows) == {"orb", "sift", "tiny", "mutual NN 50×50×64", "mutual NN 50×50×256"}
    row = rows["tiny"]
    assert (row["name"], row["label"], row["engine"]) == (name, "fp32 dense", "onnxruntime (CPU)")
    assert (row["within"], row["cosine"]) == (1.0, pytest.approx(1.0))
    assert set(row["accuracy"]) == {"M.Score", "MMA@3", "Cor-3"}
    assert row["whole"]["p50"] > row["network"]["p50"] > 0
    assert row["runs"] >= 2
    reasons = " ".join(written["left_out"])
    assert "cuda: " in reasons
    assert "tiny fp16 dense: no fp16 dense file, and no tiny.ckpt" in reasons
    assert written["medians"][name] == row["whole"]["p50"]
    shown = capsys.readouterr().out
    for said in ("now / then", "left out: cuda: ", "128×96", "Cor-3"):
        assert said in shown
