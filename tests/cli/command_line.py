"""What the command line prints where all goes well."""

import pytest

from parhelion.cli import main


def printed(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """What it prints for `arguments`, and nothing from before."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 0
    return capsys.readouterr().out
