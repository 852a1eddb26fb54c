"""Fixtures that every test sees."""

import signal
from collections.abc import Iterator
from importlib.util import find_spec

import pytest
import torch


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
