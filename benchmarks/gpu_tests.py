"""The tests of the kernels that matter most, and the kernels under compute-sanitizer."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from gpu_kernels import workers
from gpu_session import Session

ROOT = Path(__file__).resolve().parents[1]
# The tests that are run before all others: bfloat16 first, which no interpreter can multiply.
MARKED = "gpu_first"
LAST_LINES = 12
SANITIZER = "compute-sanitizer"
NOTHING_SELECTED = 5


class Recorder:
    """A plugin of pytest that writes every outcome into the report as it comes."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note the outcome of a test: of its call, or of what kept it from being called."""
        if report.when != "call" and report.outcome == "passed":
            return
        row: dict[str, Any] = {"name": report.nodeid, "outcome": report.outcome, "seconds": round(report.duration, 2)}
        if report.failed:
            row["last_lines"] = str(report.longrepr).splitlines()[-LAST_LINES:]
            self.session.blame(f"{report.nodeid}: {row['last_lines'][-1] if row['last_lines'] else 'failed'}")
        self.session.record.put("tests", row)


def run_tests(session: Session) -> None:
    """Run the marked tests in several processes.

    Raises:
        RuntimeError: pytest ended otherwise than with all tests passed; without a test selected, too.
    """
    # Only the plugins that are needed: what else an environment has is not ours to test.
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    os.environ["OMP_NUM_THREADS"] = "1"
    os.chdir(ROOT)
    processes = str(1 if session.rehearsal else workers())
    # The interpreter takes minutes for the tests of halo attention.
    some = ["-k", "not halo"] if session.rehearsal else []
    chosen = ["-p", "xdist", "-n", processes, "-m", MARKED, *some, "tests/ops"]
    quiet = ["-q", "-p", "no:cacheprovider", "--tb=short", "--no-header"]
    code = int(pytest.main([*quiet, *chosen], plugins=[Recorder(session)]))
    if code == NOTHING_SELECTED:
        raise RuntimeError(f"no test of tests/ops is marked {MARKED}")
    if code != 0:
        raise RuntimeError(f"pytest ends with code {code}")


def sanitize(session: Session) -> None:
    """Run every kernel once under compute-sanitizer, which sees what is read and written beside its memory.

    Raises:
        RuntimeError: it found something.
    """
    tool = shutil.which(SANITIZER)
    if tool is None:
        session.record.update({"sanitizer": f"{SANITIZER} is not there"})
        print(f"{SANITIZER} is not there", flush=True)
        return
    # PyTorch's own pool of memory would hide what lies beyond a tensor.
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    script = Path(__file__).with_name("gpu_kernels.py")
    command = [tool, "--tool", "memcheck", "--error-exitcode", "9", sys.executable, str(script)]
    code = subprocess.run(command, env=environment, check=False).returncode
    found = "nothing found" if code == 0 else f"it ends with code {code}; see the log"
    session.record.update({"sanitizer": f"{SANITIZER} memcheck, every kernel once: {found}"})
    if code != 0:
        raise RuntimeError(f"{SANITIZER} ends with code {code}")
