"""Batches of one image: refused, told or left out where batch norm cannot learn from them."""

from collections.abc import Callable

from torch import nn

from parhelion.errors import UserError
from parhelion.models.single_images import SingleImages
from parhelion.runs.recipe import Recipe
from parhelion.train import loop

Size = tuple[int, int]


class LoneImages:
    """What a run does with batches of one image."""

    def __init__(
        self,
        recipe: Recipe,
        backbone: nn.Module,
        *,
        frozen: list[nn.Module],
        processes: int,
        padded: Callable[[Size], Size],
    ) -> None:
        """Look at `backbone` before the run changes it.

        backbone: The part of the network that takes images, (B, C, H, W).
        frozen: Parts of it that stay as they are.
        padded: From the size (h, w) of an image to that at which the backbone sees it.
        """
        self._recipe, self._processes, self._padded = recipe, processes, padded
        synchronised = recipe.sync_bn and processes > 1
        self._single = SingleImages(backbone, in_chans=recipe.in_chans, frozen=frozen, synchronised=synchronised)

    def check(self, train_images: int, note: Callable[[str], None]) -> None:
        """Raise UserError where every batch is one image that batch norm cannot learn from.

        note: hears a sentence where batch norm sees one image at a time, and can learn from it, though not well.
        """
        recipe = self._recipe
        together = min(recipe.batch // (recipe.accumulate * self._processes), train_images)
        if together > 1 or not self._single.are_normed:
            return
        side, alone = recipe.image_px, self._described(train_images)
        if not self._single.suffice(*self._padded((side, side))):
            others = ", statistics of all processes (sync_bn)" if self._processes > 1 else ""
            raise UserError(
                f"{alone}, and of one image of {side} pixels batch norm gets one value of each channel, where it needs "
                f"more; give a larger batch, fewer parts (accumulate){others}, more images or larger ones (image_px)"
            )
        note(
            f"{alone}: batch norm takes its statistics from that image alone; a larger batch, or fewer parts "
            "(accumulate), makes them better"
        )

    def why_not(self, batch: loop.Batch) -> str | None:
        """Why the network cannot learn from `batch`; None where it can."""
        if len(batch["image"]) != 1:
            return None
        h, w = batch["image"][0].shape[-2:]
        if self._single.suffice(*self._padded((h, w))):
            return None
        return (
            f"the image {batch['name'][0]} is left out: it came alone in its batch, and of one image of {h} x {w} "
            "pixels batch norm gets one value of each channel, where it needs more"
        )

    def _described(self, train_images: int) -> str:
        recipe = self._recipe
        if train_images == 1:
            return "there is one training image"
        shared = [f"{recipe.accumulate} parts"] if recipe.accumulate > 1 else []
        shared += [f"{self._processes} processes"] if self._processes > 1 else []
        return f"batch is {recipe.batch}{''.join(f' in {part}' for part in shared)}, so one image comes at a time"
