"""Tables of relative positions: how they start, and how they follow a window or a map to another size."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from parhelion.shapes import Float, Tensor, always


def new_table(offsets: int, head_dim: int, width: int, *, spare: int = 0) -> nn.Parameter:
    """An (offsets + 2 spare, width) table drawn from N(0, 1/head_dim): queries of unit variance give unit logits.

    The papers do not say how the embeddings start. With N(0, 1) the positional branch of a GSA module would start
    11 to 36 times as strong as the content branch. `spare` zero rows at either end belong to no offset.
    """
    return nn.Parameter(F.pad(torch.randn(offsets, width) * head_dim**-0.5, (0, 0, spare, spare)))


def without_spare(table: Float[Tensor, "rows d"], spare: int) -> Float[Tensor, "offsets d"]:
    """The rows that belong to an offset."""
    return table[spare : table.shape[0] - spare]


def resized_table(table: Float[Tensor, "rows d"], rows: int) -> Float[Tensor, "resized d"]:
    """The table linearly interpolated to another number of rows; its middle and its ends stay where they are.

    This is how arXiv 2103.12731 carries embeddings to another block and halo.
    """
    if always(table.shape[0] == rows):
        return table
    return F.interpolate(table.T[None], size=rows, mode="linear", align_corners=True)[0].T.contiguous()


def reaching_table(table: Float[Tensor, "rows d"], length: int) -> Float[Tensor, "reaching d"]:
    """The table for an axis of `length` pixels: itself if it has every offset, else interpolated to 2 length - 1 rows.

    Under torch.export, where one program serves axes of any length, the 2 length - 1 middle rows of either.
    """
    reach = (table.shape[0] + 1) // 2
    if always(length <= reach):
        return table
    if always(length >= reach):
        return resized_table(table, 2 * length - 1)
    longest: Any = torch.sym_max(reach, length)
    middle = torch.arange(2 * length - 1, device=table.device) + (longest - length)
    return resized_table(table, 2 * longest - 1).index_select(0, middle)


def refitted_table(table: Float[Tensor, "rows d"], offsets: int, *, spare: tuple[int, int] = (0, 0)) -> Tensor:
    """The table interpolated to `offsets` rows, with zeros for its spare ones: (offsets + 2 spare, d).

    Args:
        table: The old one.
        offsets: Rows of the new one, without spare ones.
        spare: Spare rows at either end, of the old table and of the new one.
    """
    before, after = spare
    return F.pad(resized_table(without_spare(table, before), offsets), (0, 0, after, after))


def resize_parameter(table: nn.Parameter, offsets: int, *, spare: tuple[int, int] = (0, 0)) -> nn.Parameter:
    """A new parameter holding the `refitted_table`; optimisers that knew the old one must be made anew."""
    resized = refitted_table(table.detach(), offsets, spare=spare)
    return nn.Parameter(resized.clone(), requires_grad=table.requires_grad)
