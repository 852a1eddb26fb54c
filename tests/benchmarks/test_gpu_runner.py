"""How `benchmarks/gpu.py` runs its parts: processes, limits, what is written down, what is refused, and the tables."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import gpu
import gpu_tests
import pytest
import torch
from cases import OURS
from gpu_cases import COMPILED, TINY, TRAINED, cases
from gpu_measure import measured_case, put_case
from gpu_parts import PARTS, Part
from gpu_process import apart, forked
from gpu_record import Record
from gpu_session import facts, new_session
from gpu_table import NOT_MEASURED, markdown, summary_lines
from gpu_training import training_steps
from table import between_markers

from parhelion.cli import exit_code

pytestmark = pytest.mark.usefixtures("one_thread")
PROMISES = sum(len(case.targets) for case in cases(TINY))


@pytest.fixture
def told():
    return []


@pytest.fixture
def runner(tmp_path):
    with (tmp_path / "log.txt").open("ab") as log:
        yield gpu.Runner(tmp_path / "gpu.json", log, time.monotonic() + 600, rehearsal=True)


def part(work, *, least=0.0, most=60.0):
    return Part("some", "something", work, least, most)


# Processes


def test_what_a_process_prints_is_told_and_its_code_comes_back(told):
    def work():
        print("one")
        subprocess.run([sys.executable, "-c", "print('two')"], check=True)
        return 3

    ending = forked(work, seconds=60, tell=told.append)
    assert (ending.code, ending.timed_out, ending.last_lines) == (3, False, ("one", "two"))
    assert b"".join(told) == b"one\ntwo\n"


def test_an_exception_is_told_and_fails(told):
    ending = forked(lambda: 1 // 0, seconds=60, tell=told.append)
    assert ending.code == 1
    assert ending.last_lines[-1].startswith("ZeroDivisionError")


def test_a_crash_costs_the_process_only(told):
    ending = forked(lambda: os.kill(os.getpid(), signal.SIGSEGV), seconds=60, tell=told.append)
    assert ending.code == -signal.SIGSEGV
    assert b"Segmentation fault" in b"".join(told)


def test_a_hang_is_ended_with_all_its_children(told, tmp_path):
    def work():
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        (tmp_path / "child").write_text(str(child.pid))
        time.sleep(600)
        return 0

    started = time.monotonic()
    ending = forked(work, seconds=3, tell=told.append)
    assert ending.timed_out
    assert time.monotonic() - started < 60
    assert b"in work" in b"".join(told)  # where it hung
    child = Path("/proc", (tmp_path / "child").read_text())
    deadline = time.monotonic() + 30
    while child.exists() and "Z" not in (child / "stat").read_text().split(")")[1] and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not child.exists() or "Z" in (child / "stat").read_text().split(")")[1]


def test_one_that_never_stops_talking_is_ended_too(told):
    def work():
        while True:
            print("more", flush=True)

    ending = forked(work, seconds=2, tell=told.append)
    assert ending.timed_out
    assert ending.code == -signal.SIGKILL


def test_tasks_apart_fail_apart():
    tasks = {
        "well": lambda: 7,
        "raises": lambda: 1 // 0,
        "crashes": lambda: os.kill(os.getpid(), signal.SIGKILL),
        "exits": lambda: os._exit(5),
    }
    found = {name: rest for name, *rest in apart(tasks, workers=3, deadline=time.monotonic() + 60)}
    assert found == {
        "well": [7, None],
        "raises": [None, "ZeroDivisionError: integer division or modulo by zero"],
        "crashes": [None, "its process ended with signal 9"],
        "exits": [None, "it ended with code 5"],
    }


def test_tasks_apart_end_in_time():
    tasks = {name: lambda: time.sleep(600) for name in ("runs", "waits")}
    found = list(apart(tasks, workers=1, deadline=time.monotonic() + 1))
    assert sorted(found) == [(name, None, "there was no time for it") for name in ("runs", "waits")]


# Parts


def test_a_part_that_fails_is_written_down_and_stops_nothing(runner, capsys):
    def fails(session):
        session.record.put("kernels", {"name": "before", "wrong": "no"})
        raise RuntimeError("so it is")

    assert runner.begin()
    runner.run(part(fails))
    report = json.loads(runner.path.read_text())
    (row,) = report["parts"]
    assert (row["name"], row["state"]) == ("some", "failed")
    assert row["reason"] == "it ended with code 1: RuntimeError: so it is"
    assert row["last_lines"][-1] == "RuntimeError: so it is"
    assert report["kernels"] == [{"name": "before", "wrong": "no"}]
    runner.run(Part("next", "something", lambda session: print("done here"), 0, 60))
    assert json.loads(runner.path.read_text())["parts"][1]["state"] == "done"
    assert runner.end() == 1
    assert "done here" in capsys.readouterr().out
    assert b"done here" in runner.path.with_name("log.txt").read_bytes()


def test_a_part_that_hangs_is_ended_at_its_limit(runner):
    assert runner.begin()
    runner.rehearsal = False
    runner.run(part(lambda session: time.sleep(600), most=2))
    (row,) = json.loads(runner.path.read_text())["parts"]
    assert (row["state"], row["reason"]) == ("failed", "it was ended after 2 s")


def test_a_part_knows_when_to_stop(runner):
    assert runner.begin()
    runner.rehearsal = False
    runner.run(part(lambda session: session.record.update({"left": session.left}), most=30))
    assert 20 < json.loads(runner.path.read_text())["left"] < 30 - gpu.ENDING_SECONDS + 0.01


def test_a_part_that_does_not_fit_is_not_begun(runner, capsys):
    assert runner.begin()
    runner.deadline = time.monotonic() + 20
    runner.run(part(lambda session: pytest.fail("it was begun"), least=40))
    (row,) = json.loads(runner.path.read_text())["parts"]
    assert row["state"] == "not begun"
    assert row["reason"].endswith("it wants 40 at least")
    assert runner.end() == 0
    assert "some: not begun" in capsys.readouterr().out


def test_parts_of_value_fit_into_the_time_that_is_usual():
    assert [one.name for one in PARTS[:4]] == ["kernels", "tests", "halo", "plans"]
    assert sum(one.most for one in PARTS[:4]) + PARTS[4].least <= gpu.SECONDS - gpu.LAST_SECONDS
    assert PARTS[-1].name == "sanitizer"
    assert all(one.least <= one.most for one in PARTS)


def test_parts_are_added_to_a_report_of_the_same_machine_only(runner, tmp_path, capsys):
    assert runner.begin()
    runner.run(part(lambda session: session.record.put("kernels", {"name": "before", "wrong": "no"})))
    assert runner.begin()
    assert Record(runner.path).rows("kernels") == [{"name": "before", "wrong": "no"}]
    Record(runner.path).update({"versions": {"torch": "1.0"}})
    assert not runner.begin()
    assert "was measured with another versions" in capsys.readouterr().out


# The tests that matter most


def run_tests_of(source, runner, tmp_path, monkeypatch):
    (tmp_path / "tests" / "ops").mkdir(parents=True)
    (tmp_path / "tests" / "ops" / "test_some.py").write_text(source)
    monkeypatch.setattr(gpu_tests, "ROOT", tmp_path)
    assert runner.begin()
    runner.run(part(gpu_tests.run_tests))
    return json.loads(runner.path.read_text())


def test_each_marked_test_is_written_down(runner, tmp_path, monkeypatch):
    source = (
        "import pytest\n"
        "@pytest.mark.gpu_first\ndef test_well(): pass\n"
        "@pytest.mark.gpu_first\ndef test_ill():\n    assert 1 == 2\n"
        "@pytest.mark.gpu_first\n@pytest.mark.skip(reason='no')\ndef test_not(): pass\n"
        "def test_unmarked(): pass\n"
    )
    report = run_tests_of(source, runner, tmp_path, monkeypatch)
    outcomes = {test["name"].partition("::")[2]: test["outcome"] for test in report["tests"]}
    assert outcomes == {"test_well": "passed", "test_ill": "failed", "test_not": "skipped"}
    (failed,) = [test for test in report["tests"] if test["outcome"] == "failed"]
    assert any("assert 1 == 2" in line for line in failed["last_lines"])
    assert report["parts"][0]["reason"] == "it ended with code 1: RuntimeError: pytest ends with code 1"
    assert "test_ill" in report["failures"][0]


def test_no_marked_test_is_a_failure(runner, tmp_path, monkeypatch):
    report = run_tests_of("def test_unmarked(): pass\n", runner, tmp_path, monkeypatch)
    assert report["parts"][0]["state"] == "failed"
    assert report["parts"][0]["reason"].endswith("no test of tests/ops is marked gpu_first")


# Training


def test_a_step_that_is_not_finite_is_counted(tmp_path, monkeypatch):
    session = new_session(tmp_path / "gpu.json", seconds=600, rehearsal=True)
    factors = iter([1.0, float("nan"), 1.0, 1.0, 1.0, 1.0])
    cross_entropy = torch.nn.functional.cross_entropy
    monkeypatch.setattr(torch.nn.functional, "cross_entropy", lambda *args: cross_entropy(*args) * next(factors))
    pooled = (torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(3, 10))
    monkeypatch.setattr("parhelion.create_model", lambda name, **_: torch.nn.Sequential(*pooled))
    training_steps(session)
    report = json.loads(session.record.path.read_text())
    spoilt, fine = report["steps"]
    # The first NaN stays in the weights, which the second model shares here.
    assert (spoilt["model"], spoilt["steps"]) == (TRAINED[0], 3)
    assert spoilt["finite_steps"] == 1
    assert spoilt["losses"]["last"] is None
    assert f"{TRAINED[0]}: 2 of 3 training steps" in report["failures"][0]
    assert fine["finite_steps"] == 0


# The command


def test_a_gpu_is_asked_for_in_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert exit_code(lambda: gpu.main(["--out", str(tmp_path / "out")])) == 2
    said = capsys.readouterr().out
    assert said.count("\n") == 1
    assert "needs an NVIDIA GPU" in said


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "name a folder"),
        (["--out", "here", "--only", "kernels", "nothing"], "there is no part 'nothing'; the parts are kernels, tests"),
        (["--out", "here", "--seconds", "0"], "must be more than 0, not 0"),
        (["--out", "there"], "--add keeps its other parts"),
        (["--table", "there/gpu.json"], "is a rehearsal's, which is no result"),
    ],
)
def test_what_cannot_be_done_is_refused(arguments, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "gpu.json").write_text('{"rehearsal": true}')
    assert exit_code(lambda: gpu.main(arguments)) == 2
    assert says in capsys.readouterr().err


def test_the_parts_can_be_listed(capsys):
    assert gpu.main(["--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [one.name for one in PARTS]


# The table


def test_a_table_without_a_report_says_not_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "PAGE", tmp_path / "benchmarks.md")
    gpu.PAGE.write_text("above\n<!-- gpu -->\nold\n<!-- /gpu -->\nbelow\n")
    assert gpu.main(["--table", str(tmp_path / "nowhere.json")]) == 0
    printed = capsys.readouterr().out.strip()
    assert gpu.PAGE.read_text() == f"above\n<!-- gpu -->\n\n{printed}\n\n<!-- /gpu -->\nbelow\n"
    lines = printed.splitlines()[2:]
    assert len(lines) == PROMISES + 3
    assert all(line.endswith(f"| {NOT_MEASURED} |") for line in lines)


def test_the_readme_shows_the_report():
    text = gpu.PAGE.read_text(encoding="utf-8")
    assert between_markers(text, gpu.table(gpu.RESULT), "gpu") == text


def test_a_table_shows_what_was_measured_and_what_was_not(tmp_path):
    session = new_session(tmp_path / "gpu.json", seconds=600, rehearsal=True)
    session.record.update(facts(rehearsal=True) | {"parts": [], "failures": ["so it is"]})
    case = next(case for case in cases(TINY) if case.name == "halo-layer-64")
    few = tuple(one for one in case.candidates if one.name in (OURS, "parhelion, CUDA graph", "SDPA with a bias"))
    measured_case(type(case)(**{**vars(case), "candidates": few}), session, write=put_case(session, case))
    shapes = [{"title": title, "picks_the_faster": title == "one"} for title in ("one", "other")]
    steps = [
        {"model": model, "steps": taken, "finite_steps": taken, "losses": {}}
        for model, taken in zip(TRAINED, (500, 100), strict=True)
    ]
    report = session.record.report | {"auto": shapes, "steps": steps}
    table = markdown(report, "benchmarks/results/gpu.json")
    assert "| **500 of 500** |" in table
    assert "| 100 of 100 |" in table
    assert "| 1 of 2 |" in table
    lines = table.splitlines()
    assert sum(NOT_MEASURED in line for line in lines) == PROMISES - 2
    assert any(line.startswith("|  | SDPA with a bias |") and "%" in line and " by " in line for line in lines)
    assert any("CUDA graphs want a GPU" in line for line in lines)
    summary = "\n".join(summary_lines(report))
    assert "wrong: so it is" in summary
    assert "the slower path at 1 of 2 shapes other" in summary
    assert COMPILED not in summary
