"""Launches of our kernels, compiled for sm_90 and run on the machine instead of a GPU.

The process is spoilt for a GPU and for Triton's interpreter (`machine_code.compiled_only`).
"""

from collections.abc import Callable, Iterator
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
from ptx.source import source
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
            run_compiled(launch, edited(code.asm["ptx"]), code.metadata.shared, problems)

        with patch.object(gpu.Launch, "__call__", run):
            yield problems


def run_compiled(launch: gpu.Launch, ptx: str, shared_bytes: int, problems: Problems) -> None:
    """Run the compiled kernel of a launch."""
    kernel = source(ptx)
    arguments = [*_flat(launch.arguments)]
    # Triton adds addresses of memory that none of our kernels asks for.
    arguments += [0] * (len(kernel.parameters) - len(arguments))
    parameters = {
        name: _number(argument, kind)
        for (name, kind), argument in zip(kernel.parameters.items(), arguments, strict=True)
    }
    tensors = Tensors((x for x in arguments if isinstance(x, Tensor)), problems)
    Kernel(kernel, parameters, tensors, shared_bytes, problems)(launch.grid)


def _flat(argument: Any) -> Iterator[Any]:
    if isinstance(argument, tuple):
        for one in argument:
            yield from _flat(one)
    else:
        yield argument


def _number(argument: Any, kind: str) -> Array:
    return np.array(
        [argument.data_ptr() if isinstance(argument, Tensor) else argument],
        {"u64": np.uint64, "u32": np.uint32, "f32": np.float32}[kind],
    )
