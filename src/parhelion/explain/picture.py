"""The image between a file and a network, and back: what the network saw, for people to look at."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.transforms.v2.functional import pil_to_tensor, to_dtype

from parhelion.data.images import as_mode, open_image
from parhelion.data.transforms import Preprocessing, eval_transform
from parhelion.errors import UserError


@dataclass
class Seen:
    """One image as a network takes it."""

    argument: Any
    """What the network is called with."""
    tensor: Tensor
    """(1, C, H, W): what its layers see."""
    normalised: tuple[Tensor, Tensor] | None
    """Mean and deviation of each channel; None where nobody knows."""

    def picture(self) -> Image.Image:
        """The image for people: the normalisation undone, or else darkest to brightest; the first or three channels."""
        image = self.tensor[0].float().cpu()
        if self.normalised is not None:
            mean, std = self.normalised
            image = image * std[:, None, None] + mean[:, None, None]
        else:
            image = (image - image.min()) / (image.max() - image.min()).clamp_min(1e-12)
        pixels = (image.clamp(0, 1) * 255).round().byte()
        if len(pixels) != 3:
            return Image.fromarray(pixels[0].numpy())
        return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())


def seen_by(model: nn.Module, image: Tensor | Image.Image | str | Path) -> Seen:
    """`image` as `model` takes it, on its device and in its dtype; see `parhelion.explain.attention`."""
    weights = next((weight for weight in model.parameters() if weight.is_floating_point()), None)
    if isinstance(model, GeneralizedRCNN):
        scaling: Any = model.transform
        normalised = (torch.tensor(scaling.image_mean), torch.tensor(scaling.image_std))
        if isinstance(image, Tensor):
            tensor = _like(_batch(image), weights)
        else:
            pixels = pil_to_tensor(_opened(image, len(scaling.image_mean)))
            tensor = _like(to_dtype(pixels, scale=True)[None], weights)
        return Seen([tensor[0]], tensor, normalised)
    preprocessing = _preprocessing(model)
    if not isinstance(image, Tensor):
        if preprocessing is None:
            raise UserError(
                f"this {type(model).__name__} does not say how its images are scaled and normalised (it has no "
                "pretrained_cfg); give a tensor that it takes"
            )
        image = eval_transform(preprocessing)(_opened(image, preprocessing.in_chans))
    tensor = _like(_batch(image), weights)
    known = preprocessing is not None and preprocessing.in_chans == tensor.shape[1]
    statistics = (
        (torch.tensor(preprocessing.mean), torch.tensor(preprocessing.std)) if known and preprocessing else None
    )
    return Seen(tensor, tensor, statistics)


def key_px(image: tuple[int, int], size: tuple[int, int]) -> tuple[float, float]:
    """Height and width of a pixel of a map of `size`, in pixels of the image that it was made from.

    Networks halve their maps, and round up or down where that does not go; so pixels are 1, 2, 4, ... wide where such a
    map can be the image's.
    """
    across = []
    for pixels, length in zip(image, size, strict=True):
        halvings = (2**power for power in range(pixels.bit_length()))
        fitting = (px for px in halvings if length in (-(-pixels // px), pixels // px))
        across.append(float(next(fitting, pixels / length)))
    return across[0], across[1]


def _opened(image: Image.Image | str | Path, in_chans: int) -> Image.Image:
    return as_mode(image, in_chans) if isinstance(image, Image.Image) else open_image(image, in_chans)


def _batch(image: Tensor) -> Tensor:
    """The tensor as a batch of one."""
    if image.ndim == 3:
        image = image[None]
    if image.ndim != 4 or image.shape[0] != 1 or not image.is_floating_point():
        raise UserError(
            "a tensor of one image is (C, H, W) or (1, C, H, W) in floating point, not of shape "
            f"{tuple(image.shape)} in {image.dtype}"
        )
    return image


def _like(image: Tensor, weights: Tensor | None) -> Tensor:
    return image if weights is None else image.to(weights.device, weights.dtype)


def _preprocessing(model: nn.Module) -> Preprocessing | None:
    """What the model's configuration says in timm's words."""
    config: Any = getattr(model, "pretrained_cfg", None)
    if not config or "input_size" not in config:
        return None
    channels, height, width = config["input_size"]
    return Preprocessing(
        image_px=max(height, width),
        in_chans=channels,
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        crop_ratio=config.get("crop_pct") or 1.0,
        interpolation=config.get("interpolation") or "bicubic",
    )
