"""Runs scripts of bash as a user would, but for what would take long or reach outside."""

import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from parhelion.cli import main

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = {"parhelion": "-m parhelion.cli", "python": "", "torchrun": "-m torch.distributed.run"}
"""What stands on the path of a script: the commands of this environment, on this source."""
BEYOND_WORDS = re.compile(r"[|<>&;$`]|^\w+=")
"""What only bash understands, so that a line with it is not run in this process."""
KNOWN_PACKAGES = {"pillow-heif", "segmentation-models-pytorch"}
"""Packages outside our extras that pages tell to install."""


class Shell:
    """A folder in which the blocks of a page run, one after the other.

    Lines that begin with `parhelion` run in this process, where torch is loaded already; those with `make` are only
    planned, and those with `pip` only checked against pyproject.toml. Bash runs all others, neighbours as one script.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        path = folder / ".commands"
        path.mkdir()
        for name, module in COMMANDS.items():
            command = path / name
            command.write_text(f'#!/bin/sh\nexec "{sys.executable}" {module} "$@"\n')
            command.chmod(command.stat().st_mode | stat.S_IXUSR)
        for name in ("scripts", "benchmarks"):
            (folder / name).symlink_to(ROOT / name)
        self.environment = {
            **os.environ,
            "PATH": f"{path}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]),
            "OMP_NUM_THREADS": "1",
        }

    def run(self, script: str) -> None:
        """Run `script`; AssertionError where a command fails."""
        ways = {"parhelion": self._parhelion, "make": self._make, "pip": self._pip}
        for name, lines in groupby(_commands(script), key=_kind):
            if name in ways:
                for line in lines:
                    ways[name](line)
            else:
                self._bash("\n".join(lines))

    def _bash(self, script: str, *, text: bool = False) -> str:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=self.folder,
            env=self.environment,
            check=False,
            text=True,
            stdout=subprocess.PIPE if text else None,
        )
        assert done.returncode == 0, f"exit code {done.returncode}: {script}"
        return done.stdout or ""

    def _parhelion(self, line: str) -> None:
        # Bash finds the files that a pattern stands for.
        words = self._bash(rf"printf '%s\0' {line}", text=True).split("\0")[1:-1]
        code = main(words)
        assert code == 0, f"exit code {code}: {line}"

    def _make(self, line: str) -> None:
        make = shutil.which("make")
        if make is not None:
            subprocess.run([make, "-n", "-C", ROOT, *shlex.split(line)[1:]], check=True, stdout=subprocess.DEVNULL)

    def _pip(self, line: str) -> None:
        verb, *packages = [word for word in shlex.split(line)[1:] if not word.startswith("-")]
        assert verb == "install", line
        project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
        for package in packages:
            ours = re.fullmatch(r"\.(?:\[([\w,]+)\])?", package)
            extras = (ours[1] or "").split(",") if ours else []
            assert ours or package in KNOWN_PACKAGES or f'"{package}>=' in project, f"unknown package: {line}"
            assert all(not extra or re.search(rf"^{extra} = \[", project, re.MULTILINE) for extra in extras), line


def _commands(script: str) -> Iterator[str]:
    """The lines of a script without comments, continued ones joined."""
    for line in re.sub(r"\\\n\s*", " ", script).splitlines():
        command = re.sub(r"(^|\s+)#.*", "", line).strip()
        if command:
            yield command


def _kind(line: str) -> str:
    word = line.split()[0]
    return "bash" if word == "parhelion" and BEYOND_WORDS.search(line) else word if word in WAYS else "bash"


WAYS = ("parhelion", "make", "pip")
