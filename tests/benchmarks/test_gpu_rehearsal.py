"""The whole of `benchmarks/gpu.py` in small, on a CPU, where packages are absent that a machine with a GPU may lack."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from gpu import REPORT, ROOT
from gpu_kernels import DTYPES, KERNELS
from gpu_parts import PARTS
from gpu_plans import CURRENT, REHEARSED

ABSENT = Path(__file__).parent / "absent"
SECONDS = 550
# Stands for NVIDIA's tool: runs the command that follows its options.
SANITIZER = """#!/bin/sh
while [ "${1#--}" != "$1" ]; do shift 2; done
exec "$@"
"""

pytestmark = pytest.mark.thorough


def beside_the_sources():
    """Every file that is not compiled Python, nor hidden: tests that run beside these may leave such ones."""
    kept = (path for folder in ("benchmarks", "tests", "src") for path in (ROOT / folder).rglob("*"))
    seen = (*kept, *(path for path in ROOT.iterdir() if not path.name.startswith(".")))
    return {path for path in seen if "__pycache__" not in path.parts}


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory):
    """The report of a rehearsal, its exit code, what it printed, and the files that it left."""
    folder = tmp_path_factory.mktemp("rehearsal")
    (folder / "bin").mkdir()
    (folder / "bin" / "compute-sanitizer").write_text(SANITIZER)
    (folder / "bin" / "compute-sanitizer").chmod(0o755)
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, (ABSENT, ROOT / "src"))),
        "PATH": os.pathsep.join((str(folder / "bin"), os.environ["PATH"])),
        "OMP_NUM_THREADS": "1",
    }
    before = beside_the_sources()
    command = [
        sys.executable,
        "benchmarks/gpu.py",
        "--rehearse",
        "--seconds",
        str(SECONDS),
        "--out",
        str(folder / "out"),
    ]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    report = json.loads((folder / "out" / REPORT).read_text())
    return report, done.returncode, done.stdout + done.stderr, (folder / "out", beside_the_sources() - before)


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 50)
def test_a_rehearsal_runs_every_part_without_a_failure(rehearsal):
    report, code, said, _ = rehearsal
    assert {part["name"]: part["state"] for part in report["parts"]} == {part.name: "done" for part in PARTS}, said
    assert not report["failures"], said
    assert code == 0, said
    assert "no result" in report["title"]


@pytest.mark.slow
def test_a_rehearsal_writes_two_files_and_nothing_beside_the_sources(rehearsal):
    *_, (out, new) = rehearsal
    assert sorted(path.name for path in out.iterdir()) == ["gpu.json", "log.txt"]
    assert not new


@pytest.mark.slow
def test_a_rehearsal_checks_kernels_plans_and_tests(rehearsal):
    report, *_ = rehearsal
    checked = {row["name"] for row in report["kernels"] if row["wrong"] is None}
    assert len(checked) == len(KERNELS) * (len(DTYPES) - 1)  # the interpreter has no bfloat16
    plans = {row["name"]: row for row in report["plans"]}
    assert set(plans) == {CURRENT, *map(str, REHEARSED)}
    for choice in REHEARSED:
        row = plans[str(choice)]
        assert set(row["ran"]) == {"halo_forward", "halo_backward_queries", "halo_backward_keys"}
        assert all(kernel["ahead"] == choice.ahead for kernel in row["ran"].values())
        assert all(kernel["keys"] <= choice.keys for kernel in row["ran"].values())
        assert set(row["seconds"]) == {"forward", "backward"}
    outcomes = [test["outcome"] for test in report["tests"]]
    assert "passed" in outcomes
    assert "failed" not in outcomes
    assert report["sanitizer"].endswith("nothing found")


@pytest.mark.slow
def test_a_rehearsal_times_eager_and_compiled_candidates(rehearsal):
    report, *_ = rehearsal
    halo = next(case for case in report["cases"] if case["name"] == "halo-layer-64")
    parts = {row["name"]: row["part"] for row in halo["candidates"]}
    assert parts["timm HaloAttn"] == "halo"
    assert parts["timm HaloAttn, compiled"] == parts["FlexAttention"] == "compiled-layers"
    assert [one["name"] for one in halo["left_out"]] == ["parhelion, CUDA graph"]
    assert all(row["floor"]["share"] > 0 for row in halo["candidates"])
    assert [run["steps"] for run in report["steps"]] == [3, 3]
    assert report["auto"]
