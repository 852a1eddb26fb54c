"""Fixtures of the tests of operations."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from parhelion import native


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect what only a GPU can run, where there is none."""
    if torch.cuda.is_available():
        return
    wanting = [item for item in items if item.get_closest_marker("gpu")]
    if wanting:
        config.hook.pytest_deselected(items=wanting)
        items[:] = [item for item in items if item not in set(wanting)]


@pytest.fixture(params=native.LEVELS)
def level(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run the test once with the kernels of every level that runs here."""
    reason = native.why_not_level(request.param)
    if reason is not None:
        pytest.skip(reason)
    with native.using(request.param):
        yield request.param


@pytest.fixture
def threads() -> Iterator[None]:
    """Give back the number of threads after a test that changes it."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def tf32_setting() -> Iterator[None]:
    """Give back PyTorch's setting after a test that changes it."""
    before = torch.backends.cuda.matmul.allow_tf32
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


@pytest.fixture
def libraries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder where the compiled libraries are looked for, as after an install without a compiler."""
    monkeypatch.setattr(native, "_path", lambda level: tmp_path / f"kernels_{level}.so")
    for cached in (native.why_not_level, native._open):
        cached.cache_clear()
    yield tmp_path
    for cached in (native.why_not_level, native._open):
        cached.cache_clear()
