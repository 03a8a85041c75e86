"""Launch files: what they name exists; and for real where launch_ros is installed."""

from __future__ import annotations

import ast
import importlib.util
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "launch").glob("*.launch.py"))
PROFILE = ROOT / "config" / "fastdds_shm.xml"


def calls(file: Path, name: str) -> list[ast.Call]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call) and getattr(node.func, "id", "") == name]


def keyword(call: ast.Call, name: str) -> ast.expr | None:
    return next((entry.value for entry in call.keywords if entry.arg == name), None)


def strings(file: Path) -> set[str]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def test_both_launch_files_are_there():
    assert [file.name for file in FILES] == ["extractor.launch.py", "replay.launch.py"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_every_executable_has_a_stub(file):
    executables = [ast.literal_eval(keyword(call, "executable")) for call in calls(file, "Node")]
    assert executables or file.name == "replay.launch.py"
    for name in executables:
        assert (ROOT / "scripts" / "kp_frontend" / name).exists(), name


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_every_named_file_exists(file):
    named = {text for text in strings(file) if re.fullmatch(r"[\w.]+\.(yaml|xml|launch\.py)", text)}
    assert named
    for name in named:
        assert any((ROOT / folder / name).is_file() for folder in ("config", "launch")), name


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_every_module_that_is_run_exists(file):
    for name in (text for text in strings(file) if re.fullmatch(r"kp_frontend(\.\w+)+", text)):
        assert (ROOT / (name.replace(".", "/") + ".py")).is_file(), name


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_the_profile_is_left_to_what_is_started(file):
    assert not calls(file, "SetEnvironmentVariable")
    assert not any("DEFAULT_PROFILES_FILE" in text or text == PROFILE.name for text in strings(file))


@pytest.mark.parametrize(("release", "name"), [("jazzy", "FASTRTPS"), ("kilted", "FASTDDS")])
def test_what_is_started_sets_the_profile_but_keeps_a_users(monkeypatch, release, name):
    pytest.importorskip("rclpy")
    from kp_frontend.nodes.run import PROFILE_VARIABLES, middleware_environment

    monkeypatch.setenv("ROS_DISTRO", release)
    for variable in PROFILE_VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    assert middleware_environment() == {f"{name}_DEFAULT_PROFILES_FILE": str(PROFILE)}
    for variable in PROFILE_VARIABLES:
        with monkeypatch.context() as users:
            users.setenv(variable, "/etc/mine.xml")
            assert middleware_environment() == {}


def table(file: Path, name: str) -> dict:
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and node.targets[0].id == name:
            return ast.literal_eval(node.value)
    raise AssertionError(name)


def test_arguments_are_parameters_and_topics_of_the_nodes():
    pytest.importorskip("rclpy")
    from kp_frontend.nodes.inputs import COMPANIONS
    from kp_frontend.nodes.parameters import ODOMETRY

    arguments = table(FILES[0], "PARAMETERS")
    assert set(arguments) - {"model"} <= {parameter.name for parameter in ODOMETRY}
    own = {name for name, _ in table(FILES[0], "TOPICS").values()}
    companions = {topic for topics in COMPANIONS.values() for topic in topics.values()}
    assert own == {"image", "camera_info", "right/camera_info", *companions}


def test_the_profile_is_a_default_for_shared_memory():
    space = {"dds": "http://www.eprosima.com"}
    root = ElementTree.parse(PROFILE).getroot()
    transports = {
        entry.findtext("dds:type", namespaces=space): entry
        for entry in root.iterfind(".//dds:transport_descriptor", space)
    }
    assert set(transports) == {"SHM", "UDPv4"}
    assert int(transports["SHM"].findtext("dds:segment_size", namespaces=space)) == 32 << 20
    assert int(transports["UDPv4"].findtext("dds:receiveBufferSize", namespaces=space)) == 4 << 20
    assert root.find("dds:participant", space).get("is_default_profile") == "true"
    used = {entry.text for entry in root.iterfind(".//dds:userTransports/dds:transport_id", space)}
    assert used == {entry.findtext("dds:transport_id", namespaces=space) for entry in transports.values()}


@pytest.fixture
def launched():
    """Runs a launch file's own function with arguments; gives what it starts."""
    pytest.importorskip("launch_ros.actions", reason="launch_ros is not in the wheels")
    pytest.importorskip("ament_index_python")
    from launch import LaunchContext

    def start(**arguments: str) -> list:
        spec = importlib.util.spec_from_file_location("extractor_launch", FILES[0])
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        context = LaunchContext()
        for entity in module.generate_launch_description().entities:
            if type(entity).__name__ == "DeclareLaunchArgument":
                if entity.name in arguments:
                    context.launch_configurations[entity.name] = arguments[entity.name]
                entity.execute(context)
        return module.start_node(context)

    return start


@pytest.mark.parametrize("odometry", ["true", "false"])
def test_the_asked_for_node_is_started(launched, odometry):
    nodes = launched(odometry=odometry, features="sift", image="/cam0/image_raw")
    assert [node.node_executable for node in nodes] == ["odometry" if odometry == "true" else "extractor"]
