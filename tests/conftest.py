"""Fixtures that every test sees."""

import functools
import signal
from collections.abc import Iterator
from importlib.util import find_spec

import pytest
import torch


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--level`, which hides what the processor can do from our choice of kernels.

    PyTorch's own choices are hidden by ATEN_CPU_CAPABILITY, ONEDNN_MAX_CPU_ISA and MKL_ENABLE_INSTRUCTIONS.
    """
    parser.addoption("--level", help="the fastest level of compiled kernels to run, one of parhelion.native.LEVELS")


def pytest_sessionstart(session: pytest.Session) -> None:
    """Hide the levels above `--level`, in this process and, since xdist hands options on, in each of its workers."""
    fastest = session.config.getoption("--level")
    if fastest is None:
        return
    # Not earlier: what checks shapes must be installed before parhelion is imported.
    from parhelion import native

    if fastest not in native.LEVELS:
        raise pytest.UsageError(f"--level {fastest} is none of {', '.join(native.LEVELS)}")
    hidden = native.LEVELS[: native.LEVELS.index(fastest)]
    seen = native.why_not_level.__wrapped__
    hides = dict.fromkeys(hidden, f"--level {fastest} hides these kernels")
    native.why_not_level = functools.cache(lambda level: seen(level) or hides.get(level))


@pytest.fixture(autouse=True)
def seed() -> None:
    """Give every test the same random numbers, whichever tests ran before it."""
    torch.manual_seed(20103019)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Compute with one thread, which is the faster way for tiny networks."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def no_pictures() -> Iterator[None]:
    """Train without drawing; see `runs.pictures`."""
    from runs.pictures import without_pictures

    with without_pictures():
        yield


@pytest.fixture
def shapes_unchecked() -> Iterator[None]:
    """Let unfit arguments reach the library's own checks, as they do for users.

    The pass with jaxtyping and beartype would refuse them first, in words of its own.
    """
    if find_spec("jaxtyping") is None:
        yield
        return
    from jaxtyping import config

    before = config.jaxtyping_disable
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", before)


@pytest.fixture
def ctrl_c_heard() -> Iterator[None]:
    """Hear Ctrl-C, even where the tests were started in the background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
