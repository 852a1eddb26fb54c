"""What the Triton kernels share: when they can run, in which precision, and how they are launched.

Triton is imported where a kernel is first needed, never with the package.
"""

import functools
import importlib.util
import math
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from parhelion.native.exporting import why_not_exported

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
NARROWEST = 16  # side of a matrix unit's operands
WIDEST = 512  # bytes of a head's channels; of more, a thread would hold too many numbers
# On Hopper a product of 64 rows or more is taken by a group of four warps. Triton 3.6 orders the groups of a program
# too loosely: one overwrites shared memory that another still multiplies (triton-lang/triton#11047). On an H100 this
# made gradients of queries wrong by 15%. So a program that has such a product has one group.
WARP_GROUP, GROUP_ROWS = 4, 64
MOST_IMAGES = 65_535  # programs along the last axis of a grid
SETTINGS = 4096  # kept of what is made from shapes alone: those of many sizes of maps, through many layers


def why_not_maps(**maps: Tensor) -> str | None:
    """Why no kernel can take these maps, or None if one can: all on one GPU, in one dtype that kernels know."""
    for name, tensor in maps.items():
        if tensor.device.type != "cuda" and not interpreted():
            return f"{name} is on {tensor.device}, not on a GPU"
    for what, values in (
        ("dtype", {tensor.dtype for tensor in maps.values()}),
        ("device", {tensor.device for tensor in maps.values()}),
    ):
        if len(values) > 1:
            return f"the kernel wants one {what}, not {' and '.join(sorted(map(str, values)))}"
    first = next(iter(maps.values()))
    if first.dtype not in DTYPES:
        return f"the kernel computes in float32, bfloat16 and float16, not in {first.dtype}"
    if first.shape[0] > MOST_IMAGES:
        return f"the kernel takes up to {MOST_IMAGES} images at a time, not {first.shape[0]}"
    reason = why_not_exported() or _why_not_device(first.device)
    if reason is not None:
        return reason
    widest = WIDEST // first.element_size()
    for name, tensor in maps.items():
        if tensor.shape[-1] > widest:
            limit = f"{widest} channels of {first.dtype}"
            return f"the kernel takes heads of up to {limit}, and {name} has {tensor.shape[-1]}"
    return None


def why_not_shared(needed: int, device: torch.device) -> str | None:
    """Why a GPU cannot run programs that share up to so many bytes of memory, or None if it can."""
    has = _shared_memory(device)
    if has is None or needed <= has:
        return None
    return f"the kernel may need {-(-needed // 1024)} KiB of shared memory, and {device} has {has // 1024}"


def wants_gradients(*tensors: Tensor | None) -> bool:
    """Whether a result of these is differentiated."""
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


@torch.compiler.assume_constant_result
def interpreted() -> bool:
    """Whether Triton interprets its kernels (TRITON_INTERPRET=1), so that they run on the CPU, slowly, for tests."""
    return _interprets()


@torch.compiler.assume_constant_result
def _why_not_device(device: torch.device) -> str | None:
    if not _found():
        return "Triton is not installed; it comes with PyTorch for GPUs on Linux"
    if device.type != "cuda" or torch.version.hip is not None:
        return None
    major, minor = torch.cuda.get_device_capability(device)
    return None if major >= 8 else f"the kernel needs compute capability 8.0 or more, and {device} has {major}.{minor}"


# Kept, since they are asked at every call; apart from what asks, since torch.compile looks through a cache.
@functools.cache
def _shared_memory(device: torch.device) -> int | None:
    """Bytes that the threads of a program can share; None where there is no limit, in the interpreter."""
    if device.type != "cuda":
        return None
    # Not every torch that has this number says so to a type checker.
    properties: Any = torch.cuda.get_device_properties(device)
    return int(properties.shared_memory_per_block_optin)


@functools.cache
def _found() -> bool:
    return importlib.util.find_spec("triton") is not None


@functools.cache
def _interprets() -> bool:
    if not _found():
        return False
    import triton

    return bool(triton.knobs.runtime.interpret)


def precision(dtype: torch.dtype) -> str:
    """How factors of a dtype are multiplied: float32 in three products of tf32, in one where PyTorch allows tf32."""
    if dtype != torch.float32:
        return "ieee"
    return "tf32" if torch.backends.cuda.matmul.allow_tf32 else "tf32x3"


def fewest_groups(warps: int, *rows: int) -> int:
    """`warps`, or those of one group where products have up to so many rows that a group takes them."""
    return min(warps, WARP_GROUP) if max(rows) >= GROUP_ROWS else warps


def known(number: int) -> int:
    """The number itself, from 0 on; torch.compile may know its name only, and compiles for its value from here on."""
    return len(range(number))


def padded(size: int, least: int = NARROWEST) -> int:
    """The next power of two, which the sides of a kernel's blocks must be; at least `least`."""
    side = least
    while side < size:
        side *= 2
    return side


def unspecialised(number: int) -> int:
    """A number for a kernel that is compiled once for all numbers; `plain` in `triton_numbers` takes it back.

    Triton compiles a kernel once more for a number that is 1, and for one that 16 divides. Nothing forbids it inside a
    tuple, so sizes and strides, which change with every map, come as odd numbers from 3 on.
    """
    return 2 * number + 3


class Map(NamedTuple):
    """A map (b, h, w, heads, channels) for a kernel: where it begins, and its strides, in runs of channels.

    Channels lie side by side. Strides are `unspecialised`.
    """

    start: Tensor
    image: int
    row: int
    col: int
    head: int


class Layout(NamedTuple):
    """What of a tensor a launch is set up from; tensors that have it in common are launched alike."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]


def layout(tensor: Tensor) -> Layout:
    """The layout of a tensor."""
    return Layout(tensor.shape, tensor.stride())


def common_run(*layouts: Layout) -> int:
    """How many channels, up to 8, all strides of some tensors are multiples of; channels lie side by side.

    Triton knows nothing of a stride. It knows the run that a kernel is compiled for and multiplies strides by, and so
    reads as many channels at a time.
    """
    return math.gcd(8, *(stride for one in layouts for stride in one.strides[:-1]))


def as_map(tensor: Tensor, run: int) -> Map:
    """A map (b, h, w, heads, channels) for a kernel, its strides in runs of so many channels."""
    return Map(tensor, *map_strides(tensor.stride(), run))


@functools.lru_cache(SETTINGS)
def map_strides(strides: tuple[int, ...], run: int) -> tuple[int, int, int, int]:
    """The strides of a `Map`."""
    image, row, col, head = (unspecialised(stride // run) for stride in strides[:4])
    return image, row, col, head


class Launch(NamedTuple):
    """A kernel with everything that it is called with; calling it runs it."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]
    choices: Mapping[str, Any]
    """What the kernel is compiled for, with `num_warps` and `num_stages`."""
    device: torch.device

    def __call__(self) -> None:
        """Run the kernel on its device; nothing is waited for."""
        with torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext():
            self.kernel[self.grid](*self.arguments, **self.choices)
