"""How a command ends that is not let finish."""

import os
import subprocess
import sys

import pytest
from runs.colour_folders import colour_folders

from parhelion.classification import scores
from parhelion.cli import main

pytestmark = pytest.mark.usefixtures("one_thread")


def test_ctrl_c_is_one_sentence_and_130(capsys, monkeypatch, tmp_path):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(scores, "outcome", interrupted)
    data, out = colour_folders(tmp_path), tmp_path / "run"
    quick = ("--image-px", "16", "--batch", "10")
    assert main(["train", "resnet_tiny", "--data", str(data), "--out", str(out), *quick]) == 130
    said = capsys.readouterr().err
    assert said == f"parhelion: stopped at once; parhelion train --resume {out} goes on\n"


def test_a_closed_pipe_is_quiet():
    # A pipe whose reader is gone.
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "parhelion.cli", "--help"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert done.stderr == ""
    assert done.returncode == 141
