"""Whether a network can learn from one image alone: batch norm needs more than one value of each channel."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class SingleImages:
    """Whether the batch norms of a network can learn from a batch of one image.

    A pass over a copy without memory finds out: in some networks the last map is not the smallest.
    """

    def __init__(
        self, network: nn.Module, *, in_chans: int, frozen: Sequence[nn.Module] = (), synchronised: bool = False
    ) -> None:
        """Copy the structure of `network`, whose weights and mode stay as they are.

        network: Takes images (B, in_chans, H, W).
        frozen: Parts of it whose statistics stay, so that they take any batch.
        synchronised: `nn.BatchNorm2d` takes its statistics over several processes, so over several images.
        """
        weightless = {id(tensor): _weightless(tensor) for tensor in (*network.parameters(), *network.buffers())}
        self._network, still = copy.deepcopy((network, tuple(frozen)), weightless)
        self._network.train()
        for part in still:
            part.eval()
        self._in_chans = in_chans
        norms = [module for module in self._network.modules() if isinstance(module, _BatchNorm) and module.training]
        # Subclasses are not synchronised, see `train.parallel.synchronise_batch_norms`.
        self._norms = [norm for norm in norms if not (synchronised and type(norm) is nn.BatchNorm2d)]
        for norm in self._norms:
            norm.register_forward_pre_hook(_refuse_one_value)
        # Sizes (h, w) that are known to do; larger ones do as well.
        self._enough: list[tuple[int, int]] = []

    @property
    def are_normed(self) -> bool:
        """Whether any batch norm takes its statistics from the images of one process."""
        return bool(self._norms)

    def suffice(self, h: int, w: int) -> bool:
        """Whether every batch norm gets more than one value of each channel from one image of `h` x `w` pixels."""
        if not self._norms or any(h >= rows and w >= cols for rows, cols in self._enough):
            return True
        try:
            with torch.no_grad():
                self._network(torch.empty(1, self._in_chans, h, w, device="meta"))
        except _OneValue:
            return False
        self._enough.append((h, w))
        return True


class _OneValue(Exception):  # noqa: N818  an answer, not an error
    """A batch norm got one value of each channel."""


def _refuse_one_value(_norm: nn.Module, inputs: tuple[Any, ...]) -> None:
    maps = inputs[0]
    if maps.numel() == maps.shape[1]:
        raise _OneValue


def _weightless(tensor: Tensor) -> Tensor:
    empty = torch.empty_like(tensor, device="meta")
    return nn.Parameter(empty, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
