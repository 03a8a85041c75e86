"""The installed package: what pip and colcon put where, and that `ros2 run` would find it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import kp_frontend
import kp_frontend.__main__
import kp_training.__main__
from kp_frontend import command_line

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = {
    "kp_frontend": list(kp_frontend.__main__.COMMANDS),
    "kp_training": list(kp_training.__main__.COMMANDS),
}


def run(command, **options) -> subprocess.CompletedProcess:
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=300, **options)


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A copy of what git would check out: building in the checkout would leave files behind."""
    folder = tmp_path_factory.mktemp("workspace") / "src" / "kp_frontend"
    folder.mkdir(parents=True)
    for name in ("kp_frontend", "kp_training", "launch", "config", "models", "resource", "scripts"):
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "package.xml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


def check_layout(prefix: Path, environment: dict[str, str]) -> None:
    """Both ament names, one stub a command that teaches its options, and the data files, below `prefix`."""
    for package, commands in COMMANDS.items():
        assert (prefix / "share/ament_index/resource_index/packages" / package).exists()
        assert (prefix / "share" / package / "package.xml").exists()
        assert sorted(path.name for path in (prefix / "lib" / package).iterdir()) == sorted(commands)
        for command in commands:
            assert os.access(prefix / "lib" / package / command, os.X_OK)
    for name in ("launch/extractor.launch.py", "config/extractor.yaml", "config/fastdds_shm.xml"):
        assert (prefix / "share/kp_frontend" / name).exists()
    for stub in ("kp_frontend/replay", "kp_training/train"):
        done = run([prefix / "lib" / stub, "--help"], env=environment)
        assert done.returncode == 0, done.stderr
        assert "usage" in done.stdout.lower()


def test_pip_installs_both_ament_packages(source: Path, tmp_path: Path):
    wheels, prefix = tmp_path / "wheels", tmp_path / "prefix"
    build = run([sys.executable, "-m", "pip", "wheel", source, "--no-deps", "--no-build-isolation", "-w", wheels])
    assert build.returncode == 0, build.stderr
    (wheel,) = wheels.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {"kp_frontend/py.typed", "kp_training/py.typed"} <= set(names)
    # --ignore-installed, or pip would remove the editable install that runs this test
    options = ["--no-deps", "--ignore-installed", "--prefix", prefix]
    install = run([sys.executable, "-m", "pip", "install", wheel, *options])
    assert install.returncode == 0, install.stderr
    (site_packages,) = prefix.glob("lib/python*/site-packages")
    check_layout(prefix, {**os.environ, "PYTHONPATH": str(site_packages)})


@pytest.mark.parametrize("option", [None, "--symlink-install", "--merge-install"])
def test_colcon_installs_both_ament_packages(source: Path, tmp_path: Path, option: str | None):
    pytest.importorskip("colcon_core", reason="colcon is not installed")
    colcon = Path(sys.executable).with_name("colcon")
    install = tmp_path / "install"
    build = run(
        [colcon, "--log-base", tmp_path / "log", "build", "--base-paths", source, "--build-base", tmp_path / "build",
         "--install-base", install, *([option] if option else [])], cwd=tmp_path,
    )
    assert build.returncode == 0, build.stdout + build.stderr
    prefix = install if option == "--merge-install" else install / "kp_frontend"
    python_path = [*prefix.glob("lib/python*/site-packages"), tmp_path / "build" / "kp_frontend"]
    check_layout(prefix, {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, python_path))})


def test_stub_outside_any_environment_says_what_to_source(tmp_path: Path):
    stub = tmp_path / "lib" / "kp_frontend" / "replay"
    stub.parent.mkdir(parents=True)
    shutil.copy(ROOT / "scripts/stub", stub)
    done = run([sys.executable, "-I", stub], cwd=tmp_path, env={"KP_FRONTEND_STUB": "1", "PATH": os.environ["PATH"]})
    if "source your workspace" not in done.stderr:
        pytest.skip("kp_frontend is installed for every process of this Python")
    assert done.returncode == 1


def test_package_xml_is_valid_and_holds_the_only_version():
    parse = pytest.importorskip("catkin_pkg.package").parse_package
    package = parse(str(ROOT / "package.xml"))
    assert package.get_build_type() == "ament_python"
    assert kp_frontend.__version__ in (package.version, "0+checkout")
    depends = {depend.name for depend in package.exec_depends}
    assert {"rclpy", "cv_bridge", "tf2_ros", "sensor_msgs", "nav_msgs", "diagnostic_msgs"} <= depends


def test_every_command_has_a_stub_and_a_module_with_main():
    for package, commands in COMMANDS.items():
        assert sorted(path.name for path in (ROOT / "scripts" / package).iterdir()) == sorted(commands)
        for command in commands:
            done = run([sys.executable, "-m", package, command, "--help"])
            assert done.returncode == 0, (package, command, done.stderr)
            assert "usage" in done.stdout.lower(), (package, command)


def test_runtime_does_not_import_torch():
    code = "import sys, kp_frontend.pipeline, kp_frontend.extractors.learned; sys.exit('torch' in sys.modules)"
    assert run([sys.executable, "-c", code]).returncode == 0


def test_sigterm_ends_a_command_as_ctrl_c_does(tmp_path):
    """A command cleans up."""
    (tmp_path / "command_of_test.py").write_text(
        "import time\nfrom pathlib import Path\ndef main(argv):\n    try:\n        print('here', flush=True)\n"
        "        time.sleep(60)\n    finally:\n        Path(argv[0]).touch()\n"
    )
    code = ("import sys; from kp_frontend import command_line; "
            "sys.exit(command_line.run('p', 'Purpose.', {'c': ('command_of_test', 'waits')}, sys.argv[1:]))")
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    with subprocess.Popen([sys.executable, "-c", code, "c", str(tmp_path / "clean")], env=environment,
                          stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        process.terminate()
        assert process.wait(20) == 130
    assert (tmp_path / "clean").is_file()


@pytest.mark.parametrize(("argv", "code"), [([], 2), (["--help"], 0), (["fly"], 2), (["fail"], 2), (["lack"], 2)])
def test_command_line_exit_codes(argv, code, tmp_path, monkeypatch, capsys):
    (tmp_path / "commands_of_test.py").write_text(
        "from kp_frontend.errors import InputError\ndef main(argv):\n    raise InputError('no such bag')\n"
    )
    (tmp_path / "lacking_of_test.py").write_text("import a_package_that_nobody_has\n")
    monkeypatch.syspath_prepend(tmp_path)
    table = {"fail": ("commands_of_test", "fails"), "lack": ("lacking_of_test", "lacks a package")}
    assert command_line.run("p", "Purpose.", table, argv) == code
    printed = capsys.readouterr()
    if code == 2 and argv:
        assert printed.err.startswith("error: ")
        assert printed.err.count("\n") == 1
