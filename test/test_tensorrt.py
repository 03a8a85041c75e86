"""TensorRT: what runs an engine (on a fake GPU), what keeps it, and what says why it cannot run."""

from __future__ import annotations

import gc
import json
import sys
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("onnx")

from fake_cuda import CAPTURE_UNSUPPORTED, LAUNCH_FAILED, NO_DEVICE, OUT_OF_MEMORY, FakeCuda, FakeTensorrt
from tiny_models import full_metadata, full_model

from kp_frontend.engines import cuda_driver, tensorrt
from kp_frontend.engines.base import EngineLost, Request, Unavailable
from kp_frontend.engines.cuda_driver import Driver
from kp_frontend.engines.tensorrt import build, cache, library, plan_file
from kp_frontend.engines.tensorrt.cache import BuildOptions
from kp_frontend.engines.tensorrt.progress import Phases
from kp_frontend.engines.tensorrt.sizes import Sizes, choose_sizes
from kp_frontend.errors import InputError
from kp_frontend.model_file import read_metadata
from kp_training.__main__ import main

ANY = Sizes((16, 16), (64, 64), (128, 128))


@pytest.fixture
def cuda():
    return FakeCuda()


@pytest.fixture
def driver(cuda):
    return Driver(cuda)


@pytest.fixture
def trt(cuda):
    return FakeTensorrt(cuda)


def keep(model, trt, driver, sizes=ANY, plan=b"plan", changes=None):
    """Write an engine into the cache, for this machine but for `changes`."""
    target = replace(library.target_of(trt, driver), **(changes or {}))
    recipe = plan_file.Recipe(read_metadata(model), plan_file.file_sha256(model), sizes, 0, target)
    path = cache.folder() / f"{model.stem}-{recipe.key}.engine"
    plan_file.write_plan(path, recipe, model.name, plan)
    return path


@pytest.fixture
def engine(model, trt, driver):
    keep(model, trt, driver)
    return tensorrt.load(Request(model, build=False), trt, driver)


def image(height, width, seed=0):
    return np.random.default_rng(seed).random((1, 1, height, width), np.float32)


def check(engine, blob):
    maps = engine.run(blob)
    assert {name: values.dtype for name, values in maps.items()} == dict.fromkeys(engine.outputs, np.float32)
    np.testing.assert_array_equal(maps["scores"], blob)
    height, width = blob.shape[2:]
    means = blob.reshape(1, height // 8, 8, width // 8, 8).mean((2, 4))
    np.testing.assert_allclose(maps["descriptors"], np.broadcast_to(4 * means, (1, 4, *means.shape[1:])), rtol=1e-3)


def test_the_second_run_is_recorded_and_the_following_are_launched(cuda, engine):
    assert engine.backend == "tensorrt (Fake GPU)"
    assert (engine.metadata, engine.inputs, engine.outputs) == (full_metadata(), ("image",), ("scores", "descriptors"))
    cuda.calls.clear()
    check(engine, image(64, 96))
    assert [name for name in cuda.calls if name.startswith(("cuMemcpy", "cuStream", "cuGraph"))] == [
        "cuMemcpyHtoDAsync_v2", "cuMemcpyDtoHAsync_v2", "cuMemcpyDtoHAsync_v2", "cuStreamSynchronize"]
    for seed in range(1, 3):
        check(engine, image(64, 96, seed))
    counts = cuda.counts()
    assert (counts["cuStreamBeginCapture_v2"], counts["cuGraphLaunch"], counts["cuMemcpyHtoDAsync_v2"]) == (1, 2, 2)
    cuda.calls.clear()
    check(engine, image(64, 96, 3))
    assert cuda.calls == ["cuCtxSetCurrent", "cuGraphLaunch", "cuStreamSynchronize"]


def test_another_size_is_bound_and_recorded_anew(cuda, engine):
    for height, width in ((64, 96), (64, 96), (128, 128), (32, 16), (32, 16), (64, 96)):
        check(engine, image(height, width, height))
    assert cuda.counts()["cuGraphLaunch"] == 2
    gc.collect()
    assert len(cuda.graphs) == 0  # those of the sizes before are freed


def test_outputs_outlive_an_engine_that_is_replaced(cuda, model, trt, driver):
    keep(model, trt, driver)
    loaded = tensorrt.load(Request(model, build=False), trt, driver)
    blob = image(64, 64)
    scores = loaded.run(blob)["scores"]
    del loaded
    gc.collect()
    np.testing.assert_array_equal(scores, blob)
    assert len(cuda.memory) == 1  # of all buffers, the pinned one that is still looked at
    del scores
    gc.collect()
    assert not cuda.memory


def test_work_that_cannot_be_recorded_runs_all_the_same(cuda, engine):
    cuda.fails["cuStreamEndCapture"] = CAPTURE_UNSUPPORTED
    for seed in range(4):
        check(engine, image(64, 64, seed))
    counts = cuda.counts()
    assert (counts["cuStreamBeginCapture_v2"], counts["cuGraphLaunch"]) == (1, 0)


def test_a_lost_gpu_and_a_failing_network_are_told(cuda, trt, engine):
    trt.refuses = "Error Code 1: Cuda Runtime (an illegal memory access was encountered)"
    with pytest.raises(EngineLost, match="an illegal memory access"):
        engine.run(image(64, 64))
    trt.refuses = ""
    cuda.fails["cuStreamSynchronize"] = LAUNCH_FAILED
    with pytest.raises(EngineLost, match=r"cuStreamSynchronize: CUDA_ERROR_LAUNCH_FAILED \(719\)"):
        engine.run(image(64, 64))


def test_out_of_memory_says_what_to_do_and_lets_the_cpu_take_over(cuda, engine):
    check(engine, image(32, 32))
    cuda.fails["cuMemAlloc_v2"] = OUT_OF_MEMORY
    with pytest.raises(EngineLost, match=r"no memory left for tiny\.onnx at 128×128 .*take smaller images"):
        engine.run(image(128, 128))
    check(engine, image(32, 32))


def test_a_size_that_the_engine_was_not_built_for(engine):
    with pytest.raises(InputError, match=r"1×1×256×256, but .* built for 16×16 to 128×128, fastest at 64×64"):
        engine.run(image(256, 256))
    check(engine, image(64, 64))


def test_without_gpu_or_tensorrt_it_says_what_to_install(monkeypatch, model, driver):
    def missing(name):
        raise OSError(name)

    cuda_driver.open_driver.cache_clear()
    monkeypatch.setattr(cuda_driver.ctypes, "CDLL", missing)
    with pytest.raises(Unavailable, match=r"no NVIDIA GPU here: its driver \(libcuda\.so\.1\) is not installed"):
        tensorrt.load(Request(model))
    cuda = FakeCuda()
    cuda.fails["cuInit"] = NO_DEVICE
    monkeypatch.setattr(cuda_driver.ctypes, "CDLL", lambda name: cuda)
    with pytest.raises(Unavailable, match=r"cuInit: CUDA_ERROR_NO_DEVICE \(100\)"):
        tensorrt.load(Request(model))
    cuda_driver.open_driver.cache_clear()
    monkeypatch.setattr(cuda_driver.ctypes, "CDLL", lambda name: object())
    with pytest.raises(Unavailable, match=r"driver is too old .*cuInit"):
        tensorrt.load(Request(model))
    monkeypatch.setattr(library, "LIBRARIES", ("no_such_tensorrt",))
    with pytest.raises(Unavailable, match=r"pip install 'kp_frontend\[trt\]'; on a Jetson"):
        tensorrt.load(Request(model), driver=driver)
    cuda_driver.open_driver.cache_clear()


def test_the_driver_describes_its_gpu(driver):
    assert (driver.gpu.name, driver.gpu.sm, driver.gpu.cuda) == ("Fake GPU", "8.7", "12.6")


@pytest.mark.parametrize(("size", "changes", "found"), [
    ((64, 64), {}, True),
    ((128, 128), {}, True),
    ((0, 0), {}, True),
    ((256, 64), {}, False),
    ((64, 64), {"version": "10.3.0"}, False),
    ((64, 64), {"gpu": "Orin"}, False),
    ((64, 64), {"driver": "older"}, False),
])
def test_the_cache_knows_what_an_engine_is_for(model, trt, driver, size, changes, found):
    path = keep(model, trt, driver, changes=changes)
    assert cache.find(model, size, library.target_of(trt, driver)) == (path if found else None)
    full_model(model, full_metadata(data="trained anew"))
    assert cache.find(model, size, library.target_of(trt, driver)) is None


def test_an_engine_for_the_one_size_goes_before_one_for_many(model, trt, driver):
    exact = keep(model, trt, driver, Sizes((64, 64), (64, 64), (64, 64)))
    many = keep(model, trt, driver)
    target = library.target_of(trt, driver)
    assert [cache.find(model, size, target) for size in ((64, 64), (96, 64), (0, 0))] == [exact, many, many]


def test_the_size_that_is_asked_for_is_padded_or_the_models_own(model, trt, driver):
    keep(model, trt, driver, Sizes((64, 96), (64, 96), (64, 96)))
    check(tensorrt.load(Request(model, height=60, width=90, build=False), trt, driver), image(64, 96))
    full_model(model, full_metadata(height=64, width=96))
    keep(model, trt, driver, Sizes((64, 96), (64, 96), (64, 96)))
    check(tensorrt.load(Request(model, build=False), trt, driver), image(64, 96))


def test_no_engine_yet_says_how_to_build_one(model, trt, driver):
    with pytest.raises(Unavailable, match=r"no engine yet .* build_engine .*tiny\.onnx --height 48 --width 64"):
        tensorrt.load(Request(model, height=48, width=64, build=False), trt, driver)


def test_what_tensorrt_refuses_is_removed_and_said(model, trt, driver, caplog):
    path = keep(model, trt, driver)
    trt.takes = False
    with caplog.at_level("WARNING"), pytest.raises(Unavailable, match="no engine yet"):
        tensorrt.load(Request(model, build=False), trt, driver)
    assert "engine plan file is not compatible" in caplog.text
    assert not path.exists()


@pytest.mark.parametrize(("fails", "rejects", "message"), [
    ({}, "Error Code 1: Cuda Runtime (out of memory)", r"out of memory\)\): close what else uses it"),
    ({"cuStreamSynchronize": LAUNCH_FAILED}, "cannot deserialize", "CUDA_ERROR_LAUNCH_FAILED"),
    ({"cuMemAlloc_v2": OUT_OF_MEMORY}, "", r"CUDA_ERROR_OUT_OF_MEMORY \(2\)\): close what else uses it"),
    ({"cuCtxSetCurrent": LAUNCH_FAILED}, "", r"the GPU is lost \(cuCtxSetCurrent: CUDA_ERROR_LAUNCH_FAILED"),
])
def test_a_gpu_that_is_lost_or_full_costs_no_engine(model, cuda, trt, driver, fails, rejects, message):
    path = keep(model, trt, driver)
    cuda.fails.update(fails)
    trt.takes, trt.rejects = not rejects, rejects
    with pytest.raises(Unavailable, match=message):
        tensorrt.load(Request(model, build=False), trt, driver)
    assert path.exists()


def test_a_damaged_engine_is_removed_and_said(model, trt, driver, caplog):
    path = keep(model, trt, driver, plan=b"a plan")
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(Unavailable, match="no engine yet"):
        tensorrt.load(Request(model, build=False), trt, driver)
    assert "is damaged (its content is not what was written)" in caplog.text
    assert not path.exists()


def test_an_engine_file_runs_by_itself(model, trt, driver, tmp_path):
    recipe = plan_file.Recipe(full_metadata(), "0", Sizes((64, 96), (64, 96), (64, 96)), 0,
                              replace(library.target_of(trt, driver), driver="another"))
    path = tmp_path / "tiny.engine"
    plan_file.write_plan(path, recipe, "tiny.onnx", b"plan")
    loaded = tensorrt.load(Request(path), trt, driver)
    assert (loaded.metadata.height, loaded.metadata.width) == (64, 96)
    check(loaded, image(64, 96))


def test_an_engine_from_elsewhere_is_told_from_its_header(model, trt, driver, tmp_path):
    path = tmp_path / "orin.engine"
    target = replace(library.target_of(trt, driver), version="10.3.0", gpu="Orin", architecture="aarch64")
    plan_file.write_plan(path, plan_file.Recipe(full_metadata(), "0", ANY, 0, target), "tiny.onnx", b"plan")
    with pytest.raises(InputError, match=r"built with tensorrt 10\.3\.0 on Orin \(SM 8\.7, aarch64\), but here is "
                                         r"tensorrt 10\.13\.0 on Fake GPU .*build_engine MODEL\.onnx \(from tiny"):
        tensorrt.load(Request(path), trt, driver)


@pytest.mark.parametrize(("damage", "message"), [
    (lambda data: b"ftrt" + data, "was not written by build_engine"),
    (lambda data: b"", "was not written by build_engine"),
    (lambda data: data[:-2], r"is cut short \(2 of 4 bytes\)"),
    (lambda data: data + b"!", "is too long"),
    (lambda data: data[:-4] + b"PLAN", "its content is not what was written"),
    (lambda data: data[:40], "its header cannot be read"),
    (lambda data: data[:10], "its header cannot be read"),
    (lambda data: data.replace(b'"workspace"', b'"workspaze"'), "its header cannot be read"),
    (lambda data: data.replace(b'"version": 1}', b'"version": 2}'), "another version of build_engine"),
    (lambda data: data[:8] + b"\xff\xff\xff\xff" + data[12:], "its header cannot be read"),
])
def test_a_bad_engine_file_is_refused_in_one_line(model, trt, driver, tmp_path, damage, message):
    path = keep(model, trt, driver)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=message) as caught:
        tensorrt.load(Request(path), trt, driver)
    assert "\n" not in str(caught.value)


def test_sizes_are_padded_and_in_order():
    metadata = full_metadata()
    assert choose_sizes(metadata, (479, 640)) == Sizes((480, 640), (480, 640), (480, 640))
    assert choose_sizes(metadata) == Sizes((64, 64), (480, 640), (1088, 1920))
    assert choose_sizes(metadata, largest=(400, 400)) == Sizes((64, 64), (400, 400), (400, 400))
    assert choose_sizes(metadata, (480, 640), (240, 320)) == Sizes((240, 320), (480, 640), (480, 640))
    fixed = full_metadata(height=64, width=96)
    assert choose_sizes(fixed) == choose_sizes(fixed, (60, 90)) == Sizes((64, 96), (64, 96), (64, 96))
    with pytest.raises(InputError, match="exported for 96×64 only, not for 64×64"):
        choose_sizes(fixed, (64, 64))
    with pytest.raises(InputError, match="grow from smallest to usual to largest"):
        choose_sizes(metadata, (480, 640), smallest=(960, 640))


def test_progress_is_one_number_that_never_falls():
    told = []
    phases = Phases(lambda done, total: told.append((done, total)))
    phases.start("build", None, 2)
    phases.start("read", "build", 4)
    phases.step("read", 1)
    phases.finish("read")
    phases.step("build", 0)
    phases.start("tactics", "build", 2)
    phases.step("tactics", 0)
    phases.step("tactics", 0)
    phases.step("unknown", 3)
    phases.finish("tactics")
    phases.step("build", 1)
    assert told == [(250, 1000), (500, 1000), (750, 1000), (1000, 1000)]


def test_progress_may_be_told_by_several_threads():
    """Of a dictionary that changes while it is read, Python raises, and TensorRT would end the process."""
    phases, raised = Phases(lambda done, total: None), []
    phases.start("build", None, 1 << 30)

    def work(thread):
        try:
            for run in range(3000):
                name = f"{thread} {run}"
                phases.start(name, "build", 1)
                phases.step(name, 0)
                phases.finish(name)
        except (RuntimeError, KeyError) as error:
            raised.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=work, args=[name]) for name in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    finally:
        sys.setswitchinterval(interval)
    assert not raised


@pytest.mark.parametrize(("precision", "expected"), [("fp32", set()), ("fp16", {"FP16"}), ("int8", {"INT8"})])
def test_before_version_10_the_builder_is_told_the_precision(precision, expected):
    flags, cleared = set(), set()
    config = SimpleNamespace(set_flag=flags.add, clear_flag=cleared.add)
    trt = SimpleNamespace(BuilderFlag=SimpleNamespace(TF32="TF32", FP16="FP16", INT8="INT8"),
                          NetworkDefinitionCreationFlag=SimpleNamespace(EXPLICIT_BATCH=0))
    builder = SimpleNamespace(create_builder_config=lambda: config)
    build._configure(trt, builder, full_metadata(precision=precision), 0)
    assert (flags, cleared) == (expected, {"TF32"})
    trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED = 1
    flags.clear()
    build._configure(trt, builder, full_metadata(precision=precision), 0)
    assert not flags  # from 10 on the file's own types are orders


def test_list_and_clean(model, trt, driver, capsys, tmp_path):
    path = keep(model, trt, driver)
    (cache.folder() / "bad.engine").write_bytes(b"KPENGINE")
    assert main(["build_engine", "list", "--json", str(tmp_path / "list.json")]) == 0
    shown = capsys.readouterr().out
    assert "tiny.onnx" in shown
    assert "damaged" in shown
    listed = json.loads((tmp_path / "list.json").read_text())
    assert {entry["engine"] for entry in listed} == {str(path), str(cache.folder() / "bad.engine")}
    assert main(["build_engine", "clean", "--older-than", "1"]) == 0
    assert "0 files removed" in capsys.readouterr().out
    assert main(["build_engine", "clean", "--all"]) == 0
    assert "2 files removed" in capsys.readouterr().out
    assert cache.entries() == []


@pytest.mark.parametrize(("words", "message"), [
    (["{model}", "--height", "480"], "--height and --width go together"),
    (["{model}", "--min-size", "480"], "--min-size 480: expected HEIGHTxWIDTH"),
    (["{model}", "--output", "x.plan"], "expected a file name that ends in .engine"),
    (["{model}", "--workspace", "-1"], "workspace is -1 MB"),
    (["{tmp}/none.onnx"], "none.onnx cannot be read"),
    (["{model}.engine"], "expected an .onnx file"),
    (["clean", "--older-than", "-2"], "expected 0 or more"),
])
def test_bad_words_are_one_line(model, tmp_path, capsys, words, message):
    assert main(["build_engine", *(word.format(model=model, tmp=tmp_path) for word in words)]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert len(said.splitlines()) == 1


def test_the_command_needs_a_gpu(model, capsys):
    cuda_driver.open_driver.cache_clear()
    try:
        cuda_driver.open_driver()
    except Unavailable:
        assert main(["build_engine", str(model)]) == 2
        assert "no NVIDIA GPU" in capsys.readouterr().err
    else:
        pytest.skip("there is a GPU here")


def test_two_builders_at_once_build_once(model, trt, driver, monkeypatch):
    built, barrier = [], threading.Barrier(2)

    def build_plan(*arguments, **options):
        built.append(1)
        time.sleep(0.05)
        return b"plan"

    def work():
        barrier.wait(5)
        places.append(cache.build_engine(model, BuildOptions((64, 64)), lambda *done: None, trt=trt, target=target))

    monkeypatch.setattr(cache, "build_plan", build_plan)
    target, places = library.target_of(trt, driver), []
    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(built) == 1
    assert places[0] == places[1]
    check(tensorrt.load(Request(model, height=64, width=64, build=False), trt, driver), image(64, 64))
