"""Fixtures of the tests of the command line."""

from collections.abc import Callable

import pytest

from parhelion.cli import main


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The one sentence with which the command line refuses its arguments."""

    def sentence(*arguments: object) -> str:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        assert code == 2
        assert said.err.count("\n") == 1, said.err
        assert said.err.startswith("parhelion: ")
        return said.err

    return sentence
