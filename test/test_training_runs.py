"""Training runs: data sources, exact resume, checkpoints, settings, and the command's errors."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import yaml

from kp_frontend.errors import InputError
from kp_frontend.model_file import read_metadata
from kp_training.__main__ import main
from kp_training.data import Joined, open_images
from kp_training.data.pairs import HomographyPairs
from kp_training.data.photos import PhotoFolder, is_held_out
from kp_training.data.procedural import ProceduralImages
from kp_training.methods import METHODS
from kp_training.methods.kp2d import Kp2d
from kp_training.runs import load_checkpoint, load_network, open_run
from kp_training.training import EndlessBatches
from kp_training.validation import Validation
from kp_training.weights import trained_weights

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = ROOT / "models" / "kp2d_compact"
SMALL = ["network=compact", "height=64", "width=64", "batch_size=2", "workers=0", "save_every=2", "log_every=1",
         "warmup=2", "validation_pairs=2", "validate_every=4"]


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
    assert "left out 1 cut short, 1 smaller than 64 pixels, 1 unreadable, of 33 image files" in caplog.text
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


@pytest.mark.parametrize("augment", ["loader", "device"])
def test_resumed_run_equals_uninterrupted_run(tmp_path, photos, augment):
    """Stopped after one step and resumed: the same weights, averages and optimizer state, bit for bit."""
    words = ("--method", "kp2d", "--steps", "4", "--data", f"photos:{photos}", *SMALL, f"augment={augment}")
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
    start = Kp2d(Kp2d.Config(network="compact")).stages()[0].network().state_dict()
    assert any(not torch.equal(start[name], whole["state_dict"][f"network.{name}"]) for name in start)
    assert (tmp_path / "whole" / "best.ckpt").is_file()
    first, second = (json.loads((tmp_path / name / "metrics.json").read_text())["train"] for name in ("whole", "parts"))
    assert (first["steps"], first["best/step"]) == (4, 4)
    assert {key: value for key, value in first.items() if key != "minutes"} == {
        key: value for key, value in second.items() if key != "minutes"}
    assert {"Rep", "LE", "MMA@3", "M.Score", "Cor-3"} <= set(first)


def test_resume_takes_another_rate_and_decay(finished, tmp_path):
    """As the loop advises where a loss is not finite: with a rate of 0, nothing is learned any more."""
    run = shutil.copytree(finished, tmp_path / "run")
    before = load_checkpoint(run)
    assert _train("--resume", run, "--steps", "3", "learning_rate=0", "weight_decay=0.25") == 0
    after = load_checkpoint(run)
    learned = dict(load_network(open_run(run).method, after)[1].named_parameters())
    assert after["global_step"] == 3
    for name in learned:
        assert torch.equal(before["state_dict"][f"network.{name}"], after["state_dict"][f"network.{name}"]), name
    (group,) = after["optimizer_states"][0]["param_groups"]
    assert (group["lr"], group["initial_lr"], group["weight_decay"]) == (0, 0, 0.25)


def test_processes_take_turns_with_batches():
    ours, theirs = (iter(EndlessBatches(start, 2, 3)) for start in (4, 5))
    assert [next(ours), next(ours), next(theirs)] == [[12, 13, 14], [18, 19, 20], [15, 16, 17]]


def test_killed_run_ends_as_if_it_had_not_been(tmp_path):
    """`kill -9` in the middle of training, then --resume: the same weights as without, bit for bit."""
    words = ["--method", "kp2d", "--data", "procedural:4", *SMALL, "precision=bf16"]
    assert _train("--run", tmp_path / "whole", "--steps", "9", *words) == 0
    killed = tmp_path / "killed"
    command = [sys.executable, "-m", "kp_training", "train", "--run", str(killed), "--steps", "9", *words]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if "step 5 " in line:
            process.kill()
            break
    process.wait(60)
    process.stdout.close()
    assert load_checkpoint(killed)["global_step"] in (4, 6)
    assert _train("--resume", killed) == 0
    whole, resumed = load_checkpoint(tmp_path / "whole"), load_checkpoint(killed)
    assert resumed["global_step"] == 9
    for name, value in whole["state_dict"].items():
        assert torch.equal(value, resumed["state_dict"][name]), name


def test_two_processes_learn_what_one_does_that_accumulates_two_batches(tmp_path):
    """Over gloo, as `torchrun` starts them: the data, the draws and so the weights are the same."""
    words = ["train", "--method", "kp2d", "--steps", "3", "--data", "procedural:4", *SMALL]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as torchrun's processes: other sums round otherwise, and Adam makes much of it
    try:
        assert _train(*words[1:], "--run", tmp_path / "one", "accumulate=2") == 0
    finally:
        torch.set_num_threads(threads)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "--",
               "kp_training", *words, "--run", str(tmp_path / "two")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240,
                          env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("step 3 ") == 1  # the first process speaks for all
    one, two = load_checkpoint(tmp_path / "one"), load_checkpoint(tmp_path / "two")
    weights = [name for name in one["state_dict"] if name.endswith(("weight", "bias")) and name.startswith("network")]
    for name in weights:
        torch.testing.assert_close(one["state_dict"][name], two["state_dict"][name], atol=1e-5, rtol=1e-4)


class TwoStages(Kp2d):
    """kp2d's stage twice: the second starts from the first one's weights and asks for its network."""

    seen: ClassVar[list] = []

    def stages(self):
        (stage,) = super().stages()

        def dataset(context):
            TwoStages.seen.append((context.trained("first"), context.items))
            return stage.dataset(context)

        def start(network, context):
            network.load_state_dict(context.trained("first").state_dict())

        return replace(stage, name="first"), replace(stage, name="second", dataset=dataset, start=start)


@pytest.fixture
def two_stages(monkeypatch):
    monkeypatch.setitem(METHODS, "two", f"{__name__}:TwoStages")
    TwoStages.seen.clear()
    return ["--method", "two", "--data", "procedural:2", *SMALL]


def test_stages_follow_one_another_and_resume_where_they_stopped(tmp_path, two_stages):
    run = tmp_path / "run"
    assert _train("--run", run, "--steps", "2", "--minutes", "1e-6", "second.steps=3", *two_stages) == 0
    assert load_checkpoint(run)["kp_training"]["stage"] == "first"
    assert not (run / "first.ckpt").exists()
    assert _train("--resume", run, "--minutes", "1e-6") == 0  # ends the first stage, since only a step was left
    assert load_checkpoint(run / "first.ckpt")["global_step"] == 2
    assert _train("--resume", run) == 0
    assert load_checkpoint(run)["global_step"] == 3
    network, items = TwoStages.seen[-1]
    assert not network.training
    assert items == 3 * 2
    state = load_checkpoint(run / "first.ckpt")["state_dict"]
    assert torch.equal(state["average.describe.1.weight"], network.state_dict()["describe.1.weight"])
    metrics = json.loads((run / "metrics.json").read_text())
    assert (metrics["first"]["steps"], metrics["second"]["steps"]) == (2, 3)
    resolved = yaml.safe_load((run / "config.yaml").read_text())["training"]
    assert (resolved["first"]["steps"], resolved["second"]["steps"]) == (2, 3)


def test_export_of_an_earlier_stage_is_refused(tmp_path, two_stages, capsys):
    run = tmp_path / "run"
    assert _train("--run", run, "--steps", "1", *two_stages) == 0
    assert main(["export", str(run / "first.ckpt"), "--output", str(tmp_path / "m.onnx")]) == 2
    assert "is of stage 'first', before the last ('second')" in capsys.readouterr().err
    assert main(["export", str(run), "--output", str(tmp_path / "m.onnx")]) == 0


def test_patience_ends_a_stage_at_its_best(tmp_path, monkeypatch):
    scores = iter([0.2, 0.5, 0.4, 0.3, 0.9])
    monkeypatch.setattr(Validation, "_score", lambda *_: {"M.Score": next(scores)})
    run = tmp_path / "run"
    words = ["--method", "kp2d", "--data", "procedural:2", "--steps", "50", *SMALL, "validate_every=1", "patience=2"]
    assert _train("--run", run, *words) == 0
    assert load_checkpoint(run)["global_step"] == 4
    assert load_checkpoint(run / "best.ckpt")["global_step"] == 2
    assert json.loads((run / "metrics.json").read_text())["train"]["best/M.Score"] == 0.5


def test_data_is_finished_on_the_device_under_the_steps_seed(tmp_path, monkeypatch):
    """What `finish` draws depends on the micro-batch alone, so that it is the same after a resume."""
    draws = []

    def finish(self, batch):
        draws.append(torch.rand(()).item())
        return batch

    monkeypatch.setattr(HomographyPairs, "finish", finish, raising=False)
    words = ["--method", "kp2d", "--data", "procedural:2", "--steps", "4", *SMALL]
    assert _train("--run", tmp_path / "whole", *words) == 0
    whole = draws.copy()
    assert _train("--run", tmp_path / "parts", "--minutes", "1e-6", *words) == 0
    assert _train("--resume", tmp_path / "parts") == 0
    assert len(set(whole)) == 4
    assert draws[4:] == whole


def test_training_goes_on_from_another_runs_weights(tmp_path, capsys):
    first, second = tmp_path / "first", tmp_path / "second"
    words = ["--method", "kp2d", "--data", "procedural:2", "--steps", "1", *SMALL]
    assert _train("--run", first, *words) == 0
    assert _train("--run", second, *words, "--init", first / "last.ckpt", "learning_rate=0") == 0
    given, kept = (load_checkpoint(run)["state_dict"] for run in (first, second))
    assert torch.equal(given["average.describe.1.weight"], kept["network.describe.1.weight"])
    for file in ("last.ckpt", "best.ckpt"):
        (second / file).unlink()  # as where it was killed before the first checkpoint
    assert _train("--resume", second) == 0
    assert torch.equal(given["average.describe.1.weight"],
                       load_checkpoint(second)["state_dict"]["network.describe.1.weight"])
    other = [word for word in words if word != "network=compact"]
    assert _train("--run", tmp_path / "other", *other, "--init", first / "last.ckpt") == 2
    assert "do not fit" in capsys.readouterr().err
    torch.save({"strange": torch.zeros(1)}, tmp_path / "strange.pt")
    assert _train("--run", tmp_path / "strange", *words, "--init", tmp_path / "strange.pt") == 2
    assert "holds no weights that CompactNet reads" in capsys.readouterr().err


def test_weights_alone_start_a_run_and_are_exported(finished, tmp_path, capsys):
    """A checkpoint for others holds the averaged weights, nothing that only resuming needs, and no folder."""
    whole, slim = load_checkpoint(finished), tmp_path / "models" / "slim.ckpt"
    assert main(["export", str(finished), "--output", str(slim)]) == 0
    assert "train --init" in capsys.readouterr().out
    kept = load_checkpoint(slim)
    assert set(kept) == {"kp_training", "global_step", "metrics", "state_dict"}
    assert {name.removeprefix("network.") for name in kept["state_dict"]} == set(trained_weights(whole))
    assert all(torch.equal(values, kept["state_dict"][f"network.{name}"])
               for name, values in trained_weights(whole).items())
    for words in (["--output", tmp_path / "whole.onnx"], ["--output", tmp_path / "slim.onnx"]):
        source = finished if words[1].stem == "whole" else slim
        assert main(["export", str(source), *map(str, words)]) == 0
    models = [onnx.load(tmp_path / f"{name}.onnx").graph.initializer for name in ("whole", "slim")]
    assert [tensor.raw_data for tensor in models[0]] == [tensor.raw_data for tensor in models[1]]


def test_exported_weights_are_averaged_with_others(finished, tmp_path):
    other, averaged, again = SHIPPED.with_suffix(".ckpt"), tmp_path / "averaged.ckpt", tmp_path / "again.onnx"
    words = ["--output", str(averaged), "--average-with", str(other), "--share", "0.25"]
    assert main(["export", str(finished), *words]) == 0
    before, kept = trained_weights(load_checkpoint(other)), load_checkpoint(averaged)
    for name, values in trained_weights(load_checkpoint(finished)).items():
        expected = 0.25 * values + 0.75 * before[name] if values.is_floating_point() else values
        torch.testing.assert_close(kept["state_dict"][f"network.{name}"], expected)
    assert main(["export", str(averaged), "--output", str(again)]) == 0
    metadata = read_metadata(again)
    assert metadata.data.endswith("averaged with kp2d_compact.ckpt")
    assert metadata.metrics == {"share": 0.25, "steps": kept["global_step"]}


def test_shipped_weights_are_the_shipped_models():
    """`models/kp2d_compact.ckpt`, to start from, and `models/kp2d_compact.onnx`, to run, hold one network."""
    run, checkpoint = open_run(SHIPPED.with_suffix(".ckpt")), load_checkpoint(SHIPPED.with_suffix(".ckpt"))
    stage, network = load_network(run.method, checkpoint)
    image = torch.rand(1, 1, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours = stage.deployed(network).eval()(image)
    shipped = onnxruntime.InferenceSession(SHIPPED.with_suffix(".onnx")).run(None, {"image": image.numpy()})
    for found, expected in zip(ours, shipped, strict=True):
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


def test_full_disk_keeps_the_checkpoint_before(tmp_path):
    """A limit on the size of files stands for a disk that takes no more."""
    run = tmp_path / "run"
    assert _train("--method", "kp2d", "--data", "procedural:2", *SMALL, "--run", run, "--steps", "1") == 0
    command = [sys.executable, "-m", "kp_training", "train", "--resume", str(run), "--steps", "5"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120,
                          preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20)))
    assert done.returncode == 2, done.stderr
    assert "last.ckpt could not be written" in done.stderr
    assert "free some space, then train --resume" in done.stderr
    assert "Traceback" not in done.stderr
    assert load_checkpoint(run)["global_step"] == 1
    assert _train("--resume", run, "--steps", "3") == 0


def test_settings_are_listed_with_their_defaults(capsys):
    assert _train("--method", "kp2d", "--settings") == 0
    said = capsys.readouterr().out
    assert "  temperature=0.07" in said
    assert "  accumulate=1" in said
    assert "  train: batch_size=" in said


def test_run_folder_holds_the_resolved_configuration(tmp_path):
    config = tmp_path / "settings.yaml"
    config.write_text("method: kp2d\nnetwork: compact\nlearning_rate: 0.5e-3\nsteps: 9\ndata: ['procedural:3']\n")
    run = tmp_path / "run"
    assert _train(*SMALL, "--config", config, "learning_rate=0.25e-3", "--run", run, "--steps", "1") == 0
    resolved = yaml.safe_load((run / "config.yaml").read_text())
    assert (resolved["method"], resolved["data"]) == ("kp2d", ["procedural:3"])
    assert resolved["settings"]["network"] == "compact"
    assert resolved["settings"]["temperature"] == 0.07
    loop = resolved["training"]["train"]
    assert (loop["steps"], loop["learning_rate"]) == (1, 0.25e-3)
    assert {"seed", "ema"} <= set(loop)
    assert "revision" in resolved
    assert list(run.glob("events.*"))
    config.write_text("method: kp2d\nnetwork: compact\ndata: procedural:3\n")
    assert _train(*SMALL, "--config", config, "--run", tmp_path / "one", "--steps", "1") == 0
    assert open_run(tmp_path / "one").data == ["procedural:3"]


def test_paper_network_trains(tmp_path):
    run = tmp_path / "run"
    assert _train("--method", "kp2d", "--run", run, "--steps", "1", "--data", "procedural:2", "height=48", "width=64",
                  "batch_size=2", "workers=0", "log_every=1", "validation_pairs=1") == 0
    assert load_checkpoint(run)["kp_training"]["settings"]["network"] == "keypointnet"


def test_compact_trains_with_the_papers_losses(tmp_path):
    run = tmp_path / "run"
    words = ("--method", "kp2d", "--steps", "2", "--data", "procedural:2", *SMALL, "objective=paper")
    assert _train("--run", run, *words) == 0
    assert json.loads((run / "metrics.json").read_text())["train"]["steps"] == 2


def test_diverged_loss_stops_with_a_message(tmp_path, capsys, monkeypatch):
    def broken(self, run, network, batch):
        return {"loss": run(network, batch.image0.float())[0].sum() * float("nan")}

    monkeypatch.setattr(Kp2d, "_losses", broken)
    assert _train("--method", "kp2d", "--run", tmp_path / "run", "--steps", "2", "--data", "procedural:2", *SMALL) == 2
    said = capsys.readouterr().err
    assert "the loss is nan at step 0" in said
    assert "lower learning_rate" in said
    batch = torch.load(tmp_path / "run" / "bad_batch.pt", weights_only=True)
    assert batch["image0"].shape == (2, 1, 64, 64)


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


def test_interrupt_before_the_first_step_says_how_to_go_on(tmp_path, capsys, monkeypatch):
    """As while images are labelled: there is nothing to finish, so the command ends at once."""
    def interrupted(*_):
        raise KeyboardInterrupt

    words = ["--method", "kp2d", "--data", "procedural:2", "--steps", "1", *SMALL]
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with monkeypatch.context() as patched:
        patched.setattr(Kp2d, "_pairs", interrupted)
        assert _train("--run", tmp_path / "run", *words) == 130
    assert "continue with: python -m kp_training train --resume" in capsys.readouterr().out
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    assert _train("--resume", tmp_path / "run") == 0


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
    (["--method", "kp2d", "schedule=linear"], "unknown schedule 'linear'; choose one of: constant, cosine, drop"),
    (["--method", "kp2d", "precision=64"], "unknown precision '64'; choose one of: 16, 32, bf16"),
    (["--method", "kp2d", "precision=16"], "precision=16 needs a GPU"),
    (["--method", "kp2d", "ema=1"], "ema=1: expected 0 (none) or a decay below 1"),
    (["--method", "kp2d", "first.steps=1"], "unknown setting 'first.steps'; choose one of:"),
    (["--method", "kp2d", "--init", "{tmp}/none.pth"], "no weight file"),
    (["--method", "kp2d", "--data", "video:x"],
     "unknown data source 'video'; choose one of: photos, posed, procedural, rooms"),
    (["--method", "kp2d", "--data", "procedural:few"], "procedural:few: expected a number of 1 or more, as in"),
    (["--method", "kp2d", "--data", "photos:{tmp}/none"], "is no folder; give a folder of photographs"),
    (["--method", "kp2d", "--data", "photos:{tmp}"], "holds no photograph for training (0 image files, 0 usable)"),
    (["--method", "kp2d", "--config", "{tmp}/none.yaml"], "no config file"),
    (["--method", "kp2d", "--config", "{tmp}/latin.yaml"], "latin.yaml is not YAML in UTF-8 ('utf-8' codec can't"),
    (["--method", "kp2d", "--config", "{tmp}/number.yaml"], "number.yaml: data: 3: expected a spec, as photos:DIR, or"),
    (["--method", "kp2d", "--config", "{tmp}/numbers.yaml"], "numbers.yaml: data: [3]: expected a spec, as photos:DIR"),
    (["--method", "kp2d", "network=compact", "--run", "{tmp}/number.yaml"], "cannot make folder"),
    pytest.param(["--method", "kp2d", "--device", "cuda"], "--device cuda: PyTorch",
                 marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")),
    (["--method", "kp2d", "--minutes", "0"], "--minutes 0: expected more than 0"),
    (["--method", "kp2d", "--run", "{run}"], "holds a run already; continue it with --resume"),
    (["--resume", "{tmp}"], "holds no run (no config.yaml)"),
    (["--resume", "{run}", "--data", "procedural"], "--data does not go with --resume"),
    (["--resume", "{run}", "--method", "silk"], "was trained by method 'kp2d', not 'silk'"),
    (["--resume", "{run}", "network=nope"], "unknown network 'nope'"),
    (["--resume", "{run}/best.ckpt"], "best.ckpt: expected the folder of a run; a new run starts from the weights of a "
                                      "file with --init"),
    (["--resume", "{tmp}/none"], "expected the folder of a run"),
])
def test_bad_input_is_one_line(finished, tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "latin.yaml").write_bytes("data: Bücher".encode("latin-1"))
    (tmp_path / "number.yaml").write_text("data: 3")
    (tmp_path / "numbers.yaml").write_text("data: [3]")
    assert _train(*(word.format(tmp=tmp_path, run=finished) for word in words)) == 2
    said = capsys.readouterr().err
    assert message in said
    assert len(said.splitlines()) == 1


no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


@pytest.mark.parametrize(("words", "message"), [
    (["ema=0"], "ema=0.0 does not fit {run}/last.ckpt, which was trained with ema=0.995; leave it as it was"),
    (["optimizer=sgd"], "optimizer=sgd does not fit {run}/last.ckpt, which was trained with optimizer=adam; leave it"),
    (["network=keypointnet", "version=v0"], "last.ckpt was trained with network=compact, version=auto"),
    pytest.param(["precision=16"], "precision=16 needs a GPU", marks=no_gpu),
])
def test_resume_refuses_what_cannot_be_changed_and_can_still_go_on(finished, tmp_path, capsys, words, message):
    run = shutil.copytree(finished, tmp_path / "run")
    assert _train("--resume", run, "--steps", "2", *words) == 2
    said = capsys.readouterr().err
    assert message.format(run=run) in said
    assert len(said.splitlines()) == 1
    assert (run / "config.yaml").read_text() == (finished / "config.yaml").read_text()
    assert _train("--resume", run, "--steps", "2", "ema=0.5", "corner_weight=3", "weight_decay=0") == 0
    assert load_checkpoint(run)["global_step"] == 2


def test_resume_looks_at_the_stages_that_are_over(tmp_path, capsys, two_stages):
    run = tmp_path / "run"
    assert _train("--run", run, "--steps", "1", *two_stages) == 0
    (run / "last.ckpt").unlink()
    assert _train("--resume", run, "network=keypointnet") == 2
    assert "first.ckpt was trained with network=compact" in capsys.readouterr().err
    assert open_run(run).method.config.network == "compact"


@pytest.mark.parametrize("words", [["--init", "none.ckpt"], pytest.param(["precision=16"], marks=no_gpu)])
def test_a_run_that_cannot_begin_leaves_no_folder(tmp_path, words):
    assert _train("--method", "kp2d", *SMALL, "--run", tmp_path / "run", *words) == 2
    assert not (tmp_path / "run").exists()


def test_an_error_of_a_loader_worker_is_one_line(tmp_path, capsys, monkeypatch):
    def unreadable(self, number):
        raise InputError("no photograph can be read any more: mount the folder again")

    monkeypatch.setattr(ProceduralImages, "__getitem__", unreadable)
    words = ["--method", "kp2d", "--data", "procedural:2", "--steps", "1", *SMALL, "workers=1"]
    assert _train("--run", tmp_path / "run", *words) == 2
    assert capsys.readouterr().err == "error: no photograph can be read any more: mount the folder again\n"


@pytest.mark.parametrize("content", [b"", b"nonsense", b"PK\x03\x04 half an archive"])
def test_broken_checkpoints_are_refused(finished, tmp_path, capsys, content):
    run = shutil.copytree(finished, tmp_path / "run")
    (run / "last.ckpt").write_bytes(content)
    assert _train("--resume", run) == 2
    assert "cannot be read as a checkpoint" in capsys.readouterr().err


def test_checkpoints_of_others_are_refused(finished, tmp_path, capsys):
    run = shutil.copytree(finished, tmp_path / "run")
    torch.save({"state_dict": {}}, run / "last.ckpt")
    assert _train("--resume", run) == 2
    assert "was not written by `kp_training train`" in capsys.readouterr().err


def test_the_plain_command_trains_without_data(tmp_path):
    """In a process of its own: workers forked after OpenCV drew the procedural images once waited for ever."""
    command = [sys.executable, "-m", "kp_training", "train", "--method", "kp2d", "--steps", "2"]
    settings = ["--run", str(tmp_path / "run"), "batch_size=2", "network=compact", "workers=1"]
    done = subprocess.run([*command, *settings], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "metrics.json").exists()
