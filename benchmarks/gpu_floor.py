"""What a layer must at least do, and how long that takes at the rates that a machine was measured to reach.

A layer is a stage of projections, its 1x1 convolutions, and a stage of attention, one after the other. Each stage moves
its inputs and outputs once, multiplies and adds, and takes exponentials. It can do the three at the same time, so it
takes as long as the longest of them: that one binds. The floor of the layer is the sum of its stages.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

aten = torch.ops.aten
PROJECTIONS, ATTENTION = "projections", "attention"
# A backward pass of a projection makes two products of the size of the forward one.
PROJECTED = 3
# Attention makes two products forward. Backward it makes the weights again, since to store and to read them would take
# longer, and four products more: 7 for 2. Exponentials are taken once more with the weights.
MULTIPLIED, RAISED = 3.5, 2
# Backward reads queries, keys, values, the output and its gradient, and writes three gradients; forward reads three
# maps and writes one.
MOVED = 3


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a stage must do."""

    numbers: int  # that it moves
    multiply_adds: float
    exponentials: int = 0


@dataclass(frozen=True, kw_only=True)
class Rates:
    """What the machine was measured to move and to compute in a second; a multiply-add is two FLOPs."""

    bytes_per_second: float
    flops_per_second: float
    exponentials_per_second: float

    def floor(self, stages: Mapping[str, Work], itemsize: int) -> dict[str, Any]:
        """Seconds of all stages, and of each: what it must do, how long each of the three takes, and which binds."""
        rows = {name: self._stage(work, itemsize) for name, work in stages.items()}
        return {"seconds": sum(row["seconds"] for row in rows.values()), "stages": rows}

    def _stage(self, work: Work, itemsize: int) -> dict[str, Any]:
        seconds = {
            "moving": work.numbers * itemsize / self.bytes_per_second,
            "products": 2 * work.multiply_adds / self.flops_per_second,
            "exponentials": work.exponentials / self.exponentials_per_second,
        }
        binds = max(seconds, key=seconds.__getitem__)
        does = asdict(work) | {"bytes": work.numbers * itemsize}
        return {"work": does, "seconds_of": seconds, "binds": binds, "seconds": seconds[binds]}


class _Exponentials(TorchDispatchMode):
    """Counts the numbers that a softmax is taken of meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket is aten._softmax:
            self.count += result.numel()
        return result


def layer_work(layer: nn.Module, shape: tuple[int, ...], *, backward: bool) -> dict[str, Work]:
    """What each stage of `layer`, in plain PyTorch on the meta device, must do for a map of this shape."""
    convolutions = [module for module in layer.modules() if isinstance(module, nn.Conv2d)]
    entering, leaving = list[int](), list[int]()

    def note(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        entering.append(inputs[0].numel())
        leaving.append(output.numel())

    hooks = [module.register_forward_hook(note) for module in convolutions]
    flops, exponentials = FlopCounterMode(display=False), _Exponentials()
    x = torch.empty(shape, device="meta")
    with torch.no_grad(), exponentials, flops:
        out = layer(x)
    for hook in hooks:
        hook.remove()
    projected = flops.get_flop_counts()["Global"].get(aten.convolution, 0) // 2
    weights = sum(weight.numel() for module in convolutions for weight in module.parameters())
    tables = sum(weight.numel() for weight in layer.parameters()) - weights
    stages = {}
    if convolutions:
        ends = 3 * sum(entering) + 2 * sum(leaving) if backward else sum(entering) + sum(leaving)
        times = PROJECTED if backward else 1
        stages[PROJECTIONS] = Work(numbers=ends + times * weights, multiply_adds=times * projected)
    attended = flops.get_total_flops() // 2 - projected
    if attended:
        numbers = (sum(leaving) if convolutions else x.numel()) + out.numel() + tables
        stages[ATTENTION] = Work(
            numbers=numbers * (MOVED if backward else 1),
            multiply_adds=attended * (MULTIPLIED if backward else 1),
            exponentials=exponentials.count * (RAISED if backward else 1),
        )
    return stages
