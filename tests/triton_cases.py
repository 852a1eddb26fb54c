"""What the Triton kernels are tested on, where, and in which dtypes."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

import pytest
import torch
from kernel_cases import CASES, FEW, Case, axial, axial_plus, content, halo

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
SMALL = {
    "halo": halo(5, 7, 4, 1, heads=2, batch=1),
    "halo, stride 2": halo(5, 7, 4, 1, 2, heads=2, batch=1, tables="summed", border="masked"),
    "content, one chunk": content(5, 7, heads=2, batch=1),
    "axial, rows": axial(5, 7, "w", heads=2, batch=1),
    "axial, columns, plus a map": axial_plus(5, 7, "h", heads=2, batch=1),
}
MORE = {
    # h, w, block, halo
    "halo: a tail of columns": halo(9, 20, 9, 0, d=8, e=8, heads=1, batch=1),
    "halo: a wide window in two parts": halo(15, 21, 14, 2, d=8, e=3, heads=1, batch=1, border="masked"),
    "halo: logits turned round": halo(6, 7, 4, 1, scale=-0.7),
    "halo: a scale of zero": halo(6, 7, 4, 1, scale=0.0, border="masked"),
    "halo: wide heads": halo(4, 5, 4, 1, d=65, e=128, heads=1, batch=1),
    "content: several chunks of an image": content(40, 41, d=3, e=5, heads=1, batch=1),
    "content: wide heads": content(5, 7, d=65, e=128, heads=1, batch=1),
    "axial: a line of 7 pixels": axial(7, 7, "w", d=8, e=8, heads=4, batch=1),
    "axial: a line of 56 pixels": axial(56, 2, "h", d=8, e=8, heads=2, batch=1),
    "axial: wide heads": axial(5, 6, "w", d=65, e=128, heads=1, batch=1),
}
EVERY = CASES | MORE
# Sizes that the paper has: hours in the interpreter.
REAL = {
    "halo, 64 channels at 64x64": halo(64, 64, 8, 3, d=16, e=16, heads=4, batch=8, scale=1.0),
    "halo, 128 channels at 32x32": halo(32, 32, 8, 3, d=16, e=16, heads=8, batch=8, scale=1.0),
    "halo, 256 channels at 16x16": halo(16, 16, 8, 3, d=32, e=32, heads=8, batch=8, scale=1.0),
    "halo, blocks of 32": halo(64, 64, 32, 3, d=64, e=64, heads=8, scale=1.0),
    "halo, wide values": halo(19, 19, 10, 3, d=64, e=128, heads=8, scale=1.0),
    "content, 64 channels at 56x56": content(56, 56, d=8, e=8, heads=8, batch=8),
    "content, 512 channels at 7x7": content(7, 7, d=64, e=64, heads=8, batch=8),
    "content, a large image": content(160, 200, d=16, e=16, heads=8, batch=1),
    "axial, 64 channels at 56x56": axial(56, 56, "h", d=8, e=8, heads=8, batch=8),
    "axial, 512 channels at 7x7": axial(7, 7, "w", d=64, e=64, heads=8, batch=8),
    "axial, a large image": axial(160, 200, "w", d=16, e=16, heads=8, batch=1),
}
# Values of 512 bytes, the most that a kernel takes, so in narrow dtypes only.
REAL_NARROW = {"halo, values of 256 channels": halo(19, 19, 10, 3, d=64, e=256, heads=8, scale=1.0)}

# What a GPU that is there for minutes is asked for first: bfloat16, which Triton's interpreter cannot multiply, and the
# calls in float32 whose errors come closest to their budget on tensor cores.
FIRST = {
    torch.bfloat16: (
        "halo: whole blocks",
        "halo: one pixel",
        "halo: stride 2",
        "halo: no tables, masked",
        "halo: the paper's window, masked",
        "halo: five groups of queries",
        "halo: many chunks of keys",
        "halo: a wide window in two parts",
        "halo: no image",
        "content",
        "content: more than one chunk of pixels",
        "content: several chunks of an image",
        "content: no image",
        "axial: rows",
        "axial: long lines",
        "axial: columns, plus a map",
        "axial: no image",
        *REAL,
        *REAL_NARROW,
    ),
    torch.float16: (),
    torch.float32: (
        "halo: no tables",
        "halo: four groups, stride 2",
        "content: queries normalised",
        "content: wide heads",
        "axial: wide heads",
    ),
}
# What Triton's interpreter is asked for; the rest is for a GPU.
INTERPRETED = {torch.bfloat16: (), torch.float16: (*FEW, *MORE, *SMALL), torch.float32: (*EVERY, *SMALL)}
# Of these the interpreter takes seconds for what another case, or the same one in another dtype, shows as well.
INTERPRETED_LONG = {
    torch.float16: (),
    torch.float32: (
        "halo: block 1",
        "halo: stride 2",
        "halo: stride equals an odd block",
        "halo: no tables",
        "halo: no tables, stride 2",
        "halo: the paper's window",
        "halo: the paper's window, masked",
        "halo: four groups, stride 2",
        "halo: many chunks of keys",
        "halo: heads of 3",
        "halo: heads of 8",
        "halo: heads of 20",
        "halo: a tail of columns",
        "halo: a wide window in two parts",
        "halo: logits turned round",
        "halo: a scale of zero",
        "axial: rows",
        "axial: many lines",
        "axial: as many lines as lanes",
        "axial: rows, plus a map",
        "axial: a line of 56 pixels",
    ),
}


def calls(
    cases: dict[str, Case], dtypes: Iterable[torch.dtype] = DTYPES, *, thorough: Iterable[torch.dtype] = ()
) -> pytest.MarkDecorator:
    """Run a test with every case in every dtype, on a GPU only where the interpreter is not asked for it.

    thorough: dtypes that the interpreter computes for `make test-all` only.
    """
    return pytest.mark.parametrize(("case", "dtype"), list(_calls(cases, dtypes, thorough)))


def _calls(cases: dict[str, Case], dtypes: Iterable[torch.dtype], thorough: Iterable[torch.dtype]) -> Iterator[object]:
    for dtype in dtypes:
        for name, case in cases.items():
            marks = [] if name in INTERPRETED[dtype] else [pytest.mark.gpu]
            marks += [pytest.mark.gpu_first] if name in FIRST[dtype] else []
            if DEVICE == "cpu" and (dtype in thorough or name in INTERPRETED_LONG.get(dtype, ())):
                marks.append(pytest.mark.thorough)
            yield pytest.param(case, dtype, id=f"{name}-{dtype}", marks=marks)


def smaller(case: Case) -> Case:
    """The case with fewer images, heads and blocks where kernels are interpreted, at a hundred programs a second."""
    if DEVICE == "cuda":
        return case
    options = case.attend.keywords
    block, stride = options.get("block"), options.get("stride", 1)
    maps = [shape for shape in case.shapes if len(shape) == 5]
    batch, heads = min(maps[0][0], 1), min(maps[0][3], 2)
    h, w = maps[-1][1:3] if block is None else (min(maps[-1][1], block + 1), min(maps[-1][2], max(2 * block - 1, 3)))
    shapes = []
    for place, shape in enumerate(case.shapes):
        step = stride if place == 0 else 1
        cut = (batch, -(-h // step), -(-w // step), heads, shape[-1])
        shapes.append(cut if len(shape) == 5 else shape)
    return replace(case, shapes=tuple(shapes))
