"""Programs that torchrun starts in two processes on this machine's CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path


def in_two_processes(program: Path, words: list[list[str]]) -> subprocess.CompletedProcess[str]:
    """What `program` printed; its first argument are the command lines `words` as JSON. It must end with code 0."""
    launch = ["--standalone", "--nproc-per-node=2", str(program), json.dumps(words)]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *launch],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done
