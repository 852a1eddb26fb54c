"""The compiled libraries on their own, without torch and Python, against plain loops in C++."""

import shutil
import subprocess
from pathlib import Path

import pytest

from parhelion import native

SOURCES = Path(native.__file__).parents[2]
HERE = Path(__file__).parent

pytestmark = [
    pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed"),
    pytest.mark.skipif(not (SOURCES / "parhelion/native/simd.h").exists(), reason="installed without the sources"),
]


@pytest.fixture(scope="module")
def self_check(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("self_check") / "self_check"
    includes = [f"-I{SOURCES}", f"-I{SOURCES / 'parhelion/native'}"]
    subprocess.run(
        ["g++", "-std=c++17", "-fopenmp", *includes, HERE / "self_check.cpp", "-o", program, "-ldl"], check=True
    )
    return program


@pytest.mark.parametrize("level", native.LEVELS)
def test_kernels_equal_plain_loops(self_check: Path, level: str):
    reason = native.why_not_level(level)
    if reason is not None:
        pytest.skip(reason)
    done = subprocess.run([self_check, native._path(level)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_what_is_no_library_is_refused(self_check: Path):
    done = subprocess.run([self_check, HERE / "self_check.cpp"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout.startswith("usage: self_check LIBRARY; ")
