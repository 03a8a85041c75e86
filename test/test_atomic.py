"""A file is the old one or the new one, whatever ends its writer."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from kp_frontend.atomic import written_whole


def test_the_new_file_takes_the_place_of_the_old(tmp_path):
    file = tmp_path / "figures.json"
    file.write_text("old")
    with written_whole(file) as beside:
        beside.write_text("new")
        assert beside.suffix == ".json"
        assert file.read_text() == "old"
    assert file.read_text() == "new"
    assert os.listdir(tmp_path) == ["figures.json"]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    file = tmp_path / "figures.json"
    file.write_text("old")
    with pytest.raises(TypeError), written_whole(file) as beside:
        beside.write_text("ne") and beside.write_bytes("w")
    assert file.read_text() == "old"
    assert os.listdir(tmp_path) == ["figures.json"]


def test_a_killed_writer_leaves_the_old_file(tmp_path):
    file = tmp_path / "figures.json"
    file.write_text("old")
    program = ("import os, sys; from pathlib import Path; from kp_frontend.atomic import written_whole\n"
               "with written_whole(Path(sys.argv[1])) as beside: beside.write_text('ne'); os.kill(os.getpid(), 9)")
    assert subprocess.run([sys.executable, "-c", program, str(file)]).returncode == -9
    assert file.read_text() == "old"
