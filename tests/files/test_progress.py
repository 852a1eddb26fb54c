import sys
import time

import pytest

from parhelion.files import progress as module
from parhelion.files.progress import Progress, span


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (185, "3 min 05 s"), (7810, "2 h 10 min")],
)
def test_spans_read_as_a_person_says_them(seconds, words):
    assert span(seconds) == words


def test_elsewhere_than_on_a_terminal_there_are_plain_lines_at_most_ten(capsys, monkeypatch):
    monkeypatch.setattr(module, "PLAIN_SECONDS", 0.0)
    with Progress(97) as progress:
        for _ in range(97):
            progress.advance(1, "epoch 1/3")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 9
    assert all("images/s" in line and "left" in line and "epoch 1/3" in line for line in lines)
    assert not any("\x1b" in line or "\r" in line for line in lines)


def test_short_work_prints_nothing_between(capsys):
    with Progress(50) as progress:
        for _ in range(50):
            progress.advance(1)
        progress.line("done")
    assert capsys.readouterr().out == "done\n"


def test_quiet_means_silent(capsys):
    with Progress(5, quiet=True) as progress:
        progress.advance(5)
        progress.line("done")
    assert capsys.readouterr().out == ""


def test_a_terminal_gets_a_bar_and_lasting_lines(capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    with Progress(50) as progress:
        progress.advance(20, "epoch 1/3  loss 0.5")
        time.sleep(0.01)
        progress.line("epoch 1 [done] in 48 s")
    assert "epoch 1 [done] in 48 s" in capsys.readouterr().out
