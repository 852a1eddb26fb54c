"""Launches of our kernels, compiled for sm_90 and run on the machine instead of a GPU.

The process is spoilt for a GPU and for Triton's interpreter (`machine_code.compiled_only`).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
from machine_code import compiled_only
from torch import Tensor

from parhelion.ops import gpu
from ptx.machine import Kernel
from ptx.problems import Problems
from ptx.registers import Array
from ptx.source import Source, source
from ptx.tensors import Tensors


@contextmanager
def on_machine(edited: Callable[[str], str] = str) -> Iterator[Problems]:
    """Let the machine run what is launched with tensors on the CPU meanwhile; gives what it notes.

    `edited`: makes the PTX that is run of that which Triton compiles.
    """
    problems = Problems()
    with patch.object(gpu, "interpreted", lambda: True), compiled_only(90) as launched:
        compile_launch = gpu.Launch.__call__

        def run(launch: gpu.Launch) -> None:
            compile_launch(launch)
            _, code = launched.pop()
            # Triton makes constants of some numbers, such as those that are 1.
            arguments = [x for path, x in _flat(launch.arguments) if path not in code.src.constants]
            kernel = source(edited(code.asm["ptx"]))
            run_compiled(kernel, arguments, launch.grid, code.metadata.shared, problems)

        with patch.object(gpu.Launch, "__call__", run):
            yield problems


def run_compiled(
    kernel: Source, arguments: Sequence[Any], grid: Sequence[int], shared_bytes: int, problems: Problems
) -> None:
    """Run a compiled kernel, called with tensors and numbers."""
    # Triton adds two addresses of memory that none of our kernels asks for.
    given = zip(kernel.parameters.items(), [*arguments, 0, 0], strict=True)
    parameters = {name: _number(argument, kind) for (name, kind), argument in given}
    tensors = Tensors((x for x in arguments if isinstance(x, Tensor)), problems)
    Kernel(kernel, parameters, tensors, shared_bytes, problems)(grid)


def _flat(argument: Any, path: tuple[int, ...] = ()) -> Iterator[tuple[tuple[int, ...], Any]]:
    """What is inside of tuples, with its place in each."""
    if isinstance(argument, tuple):
        for place, one in enumerate(argument):
            yield from _flat(one, (*path, place))
    else:
        yield path, argument


def _number(argument: Any, kind: str) -> Array:
    number = argument.data_ptr() if isinstance(argument, Tensor) else argument
    return np.array([number], {"u64": np.uint64, "u32": np.uint32, "f32": np.float32}[kind])
