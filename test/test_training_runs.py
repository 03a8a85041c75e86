"""Training runs: data sources, exact resume, checkpoints, settings, and the command's errors."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml

from kp_training.__main__ import main
from kp_training.data import Joined, open_images
from kp_training.data.photos import PhotoFolder, is_held_out
from kp_training.data.procedural import ProceduralImages
from kp_training.methods.kp2d import Kp2d
from kp_training.runs import load_checkpoint

ROOT = Path(__file__).resolve().parents[1]
SMALL = ["network=compact", "height=64", "width=64", "batch_size=2", "workers=0", "save_every=2", "log_every=1",
         "warmup=2", "held_out_pairs=2"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Thirty small photographs, one text file in disguise, one truncated JPEG and one tiny image."""
    folder = tmp_path_factory.mktemp("photos")
    images = ProceduralImages(5, size=(96, 128))
    for number in range(30):
        cv2.imwrite(str(folder / f"photo_{number:02}.jpg"), images[number % 5])
    (folder / "text.jpg").write_text("not an image")
    whole = (folder / "photo_00.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(whole[:20])
    cv2.imwrite(str(folder / "tiny.png"), np.zeros((20, 20), np.uint8))
    return folder


def _train(*words: str) -> int:
    return main(["train", *map(str, words)])


def test_photos_are_split_by_name_and_bad_files_are_counted(photos, caplog):
    training, kept = PhotoFolder(photos), PhotoFolder(photos, held_out=True)
    assert "left out 3 of 33 files" in caplog.text
    assert len(training) + len(kept) == 30
    assert len(kept) > 0
    assert all(is_held_out(path.name) for path in kept.paths)
    assert not set(training.paths) & set(kept.paths)
    assert np.mean([is_held_out(f"{number}.jpg") for number in range(3000)]) == pytest.approx(0.1, abs=0.02)


def test_sources_are_joined_in_order(photos):
    joined = open_images([f"photos:{photos}", "procedural:3"])
    assert isinstance(joined, Joined)
    first = len(PhotoFolder(photos))
    assert len(joined) == first + 3
    np.testing.assert_array_equal(joined[first], ProceduralImages(3)[0])
    np.testing.assert_array_equal(joined[first - 1], PhotoFolder(photos)[first - 1])
    assert not np.array_equal(open_images([])[0], open_images([], held_out=True)[0])


def test_resumed_run_equals_uninterrupted_run(tmp_path, photos):
    """Stopped after one step and resumed: the same weights, averages and optimizer state, bit for bit."""
    words = ("--method", "kp2d", "--steps", "4", "--data", f"photos:{photos}", *SMALL)
    assert _train("--run", tmp_path / "whole", *words) == 0
    assert _train("--run", tmp_path / "parts", "--minutes", "1e-6", *words) == 0
    assert load_checkpoint(tmp_path / "parts")["global_step"] == 1
    assert _train("--resume", tmp_path / "parts") == 0
    whole, parts = load_checkpoint(tmp_path / "whole"), load_checkpoint(tmp_path / "parts")
    assert whole["global_step"] == parts["global_step"] == 4
    for name, value in whole["state_dict"].items():
        assert torch.equal(value, parts["state_dict"][name]), name
    moments, again = (checkpoint["optimizer_states"][0]["state"] for checkpoint in (whole, parts))
    assert all(torch.equal(moments[key]["exp_avg"], again[key]["exp_avg"]) for key in moments)
    start = Kp2d(Kp2d.Config(network="compact")).network().state_dict()
    assert any(not torch.equal(start[name], whole["state_dict"][f"network.{name}"]) for name in start)
    metrics = json.loads((tmp_path / "parts" / "metrics.json").read_text())
    assert metrics["steps"] == 4
    assert np.isfinite(metrics["held_out/loss"])


def test_run_folder_holds_the_resolved_configuration(tmp_path):
    config = tmp_path / "settings.yaml"
    config.write_text("method: kp2d\nnetwork: compact\nlearning_rate: 0.5e-3\nsteps: 9\ndata: ['procedural:3']\n")
    run = tmp_path / "run"
    assert _train(*SMALL, "--config", config, "learning_rate=0.25e-3", "--run", run, "--steps", "1") == 0
    resolved = yaml.safe_load((run / "config.yaml").read_text())
    assert (resolved["method"], resolved["data"]) == ("kp2d", ["procedural:3"])
    assert resolved["settings"]["network"] == "compact"
    assert resolved["settings"]["temperature"] == 0.07
    assert (resolved["training"]["steps"], resolved["training"]["learning_rate"]) == (1, 0.25e-3)
    assert {"seed", "ema"} <= set(resolved["training"])
    assert "revision" in resolved
    assert list(run.glob("events.*"))


def test_paper_network_trains(tmp_path):
    run = tmp_path / "run"
    assert _train("--method", "kp2d", "--run", run, "--steps", "1", "--data", "procedural:2", "height=48", "width=64",
                  "batch_size=2", "workers=0", "log_every=1", "held_out_pairs=2") == 0
    assert load_checkpoint(run)["kp_training"]["settings"]["network"] == "keypointnet"


def test_compact_trains_with_the_papers_losses(tmp_path):
    run = tmp_path / "run"
    words = ("--method", "kp2d", "--steps", "2", "--data", "procedural:2", *SMALL, "objective=paper")
    assert _train("--run", run, *words) == 0
    metrics = json.loads((run / "metrics.json").read_text())
    assert {"held_out/location", "held_out/descriptor", "held_out/score"} <= set(metrics)


def test_diverged_loss_stops_with_a_message(tmp_path, capsys, monkeypatch):
    def broken(self, network, batch):
        return {"loss": network(batch.image0.float())[0].sum() * float("nan")}

    monkeypatch.setattr(Kp2d, "losses", broken)
    assert _train("--method", "kp2d", "--run", tmp_path / "run", "--steps", "2", "--data", "procedural:2", *SMALL) == 2
    said = capsys.readouterr().err
    assert "the loss is nan at step 0" in said
    assert "lower learning_rate" in said


def test_interrupt_leaves_a_run_that_resumes(tmp_path):
    """Ctrl-C during training ends with a whole checkpoint and exit code 0; the run goes on from there."""
    run = tmp_path / "run"
    command = [sys.executable, "-m", "kp_training", "train", "--method", "kp2d", "--run", str(run), "--steps", "100000",
               "--data", "procedural:2", *SMALL]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                               env=os.environ | {"OMP_NUM_THREADS": "1"})
    lines = []
    try:
        for line in process.stdout:
            lines.append(line)
            if "step 3 " in line:
                process.send_signal(signal.SIGINT)
                break
        rest, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0, "".join(lines) + rest
    assert "--resume" in rest
    done = load_checkpoint(run)["global_step"]
    assert 3 <= done < 1000
    assert _train("--resume", run, "--steps", str(done + 1)) == 0
    assert load_checkpoint(run)["global_step"] == done + 1


def test_checkpoint_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    from kp_training.runs import AtomicCheckpoints

    target = tmp_path / "last.ckpt"
    AtomicCheckpoints().save_checkpoint({"number": 1}, target)
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("killed before the rename")))
    with pytest.raises(OSError, match="killed"):
        AtomicCheckpoints().save_checkpoint({"number": 2}, target)
    assert torch.load(target, weights_only=True) == {"number": 1}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "finished"
    assert _train("--method", "kp2d", "--run", run, "--steps", "1", "--data", "procedural:2", *SMALL) == 0
    return run


@pytest.mark.parametrize(("words", "message"), [
    (["--data", "procedural"], "which method? give --method, one of: kp2d"),
    (["--method", "sift2"], "unknown method 'sift2'; choose one of: kp2d"),
    (["--method", "kp2d", "netwrk=compact"], "unknown setting 'netwrk'; choose one of:"),
    (["--method", "kp2d", "compact"], "'compact': expected key=value"),
    (["--method", "kp2d", "batch_size=many"], "batch_size=many: expected a whole number"),
    (["--method", "kp2d", "batch_size=0"], "batch_size=0: expected at least 1"),
    (["--method", "kp2d", "schedule=linear"], "unknown schedule 'linear'; choose one of: cosine, halve"),
    (["--method", "kp2d", "precision=16"], "unknown precision '16'"),
    (["--method", "kp2d", "--data", "video:x"], "unknown data source 'video'; choose one of: photos, procedural"),
    (["--method", "kp2d", "--data", "procedural:few"], "procedural:few: expected a number of images"),
    (["--method", "kp2d", "--data", "photos:{tmp}/none"], "is no folder; give a folder of photographs"),
    (["--method", "kp2d", "--data", "photos:{tmp}"], "holds no photograph for training (0 image files, 0 usable)"),
    (["--method", "kp2d", "--config", "{tmp}/none.yaml"], "no config file"),
    (["--method", "kp2d", "--device", "mps"], "--device mps: PyTorch"),
    (["--method", "kp2d", "--minutes", "0"], "--minutes 0: expected more than 0"),
    (["--method", "kp2d", "--run", "{run}"], "holds a run already; continue it with --resume"),
    (["--resume", "{tmp}"], "no checkpoint at"),
    (["--resume", "{run}", "--data", "procedural"], "--data does not go with --resume"),
    (["--resume", "{run}", "--method", "silk"], "was trained by method 'kp2d', not 'silk'"),
    (["--resume", "{run}", "network=nope"], "unknown network 'nope'"),
])
def test_bad_input_is_one_line(finished, tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    assert _train(*(word.format(tmp=tmp_path, run=finished) for word in words)) == 2
    said = capsys.readouterr().err
    assert message in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize("content", [b"", b"nonsense", b"PK\x03\x04 half an archive"])
def test_broken_checkpoints_are_refused(tmp_path, capsys, content):
    (tmp_path / "last.ckpt").write_bytes(content)
    assert _train("--resume", tmp_path) == 2
    assert "cannot be read as a checkpoint" in capsys.readouterr().err


def test_checkpoints_of_others_are_refused(tmp_path, capsys):
    torch.save({"state_dict": {}}, tmp_path / "last.ckpt")
    assert _train("--resume", tmp_path) == 2
    assert "was not written by `kp_training train`" in capsys.readouterr().err


def test_the_plain_command_trains_without_data(tmp_path):
    """In a process of its own: workers forked after OpenCV drew the procedural images once waited for ever."""
    command = [sys.executable, "-m", "kp_training", "train", "--method", "kp2d", "--steps", "2"]
    settings = ["--run", str(tmp_path / "run"), "batch_size=2", "network=compact", "workers=1"]
    done = subprocess.run([*command, *settings], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "metrics.json").exists()
