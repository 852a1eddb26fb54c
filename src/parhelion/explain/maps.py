"""`attention`: what every pixel of every attention layer attends to in one image."""

import html
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN

from parhelion.errors import UserError, few
from parhelion.explain import occlusion as occlusions
from parhelion.explain.occlusion import Occlusion
from parhelion.explain.picture import Seen, key_px, seen_by
from parhelion.explain.recorded import Layer, in_eval_mode, recorded
from parhelion.explain.rollout import rollout as rolled_out
from parhelion.explain.summary import Summary, summary

TOP = 5
FRAME_HEIGHT_PX = 900


@dataclass(frozen=True, kw_only=True)
class AttentionMaps:
    """What every pixel of every attention layer attends to in one image. In a notebook it shows itself as a page."""

    title: str
    picture: Image.Image
    """The image as the network saw it: cut, scaled, and with its normalisation undone."""
    layers: tuple[Layer, ...]
    """Each with `weights(row, col, part)`, in the order in which they ran."""
    top: tuple[tuple[str, float], ...]
    """The most probable classes, or the objects found, best first; empty for a network without a head."""
    note: str = ""
    """What a reader of the page should know of the model, a sentence."""
    rollout: Tensor | None = field(default=None, repr=False)
    """See `parhelion.explain.rollout.rollout`; None unless asked for."""
    occlusion: Occlusion | None = field(default=None, repr=False)
    """None unless asked for."""
    exactness: float
    """The largest error of weights times values as a share of what rounding explains, over all layers; at most 1."""

    def layer(self, name: str) -> Layer:
        """The layer called `name`. Raises UserError where there is none."""
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise UserError(
            f"{self.title} has no attention layer {name!r}; it has {few([one.name for one in self.layers])}"
        )

    def key_px(self, layer: Layer) -> tuple[float, float]:
        """Height and width of a pixel of the layer's map of keys, in pixels of the picture."""
        return key_px((self.picture.height, self.picture.width), layer.size)

    @cached_property
    def summaries(self) -> tuple[Summary, ...]:
        """Distance, entropy and shares of each layer."""
        return tuple(summary(layer, self.key_px(layer)) for layer in self.layers)

    def page(self, *others: "AttentionMaps") -> str:
        """A self-contained page of HTML to explore these maps, with those of `others` side by side."""
        from parhelion.explain.page import page

        return page([self, *others])

    def save(self, path: str | Path, *others: "AttentionMaps") -> None:
        """Write the `page` to a file in one step. Raises UserError where it cannot be written."""
        from parhelion.files.atomic import write_text

        write_text(Path(path), self.page(*others))

    def _repr_html_(self) -> str:
        """The page in a frame, for notebooks."""
        frame = html.escape(self.page(), quote=True)
        return f'<iframe srcdoc="{frame}" style="width: 100%; height: {FRAME_HEIGHT_PX}px; border: 0"></iframe>'


def attention(
    model: nn.Module,
    image: Tensor | Image.Image | str | Path,
    *,
    class_names: Sequence[str] | None = None,
    title: str | None = None,
    note: str = "",
    layers: str = "*",
    rollout: bool = False,
    occlusion: bool = False,
) -> AttentionMaps:
    """See what every pixel of every attention layer of `model` attends to in one image.

    The model runs as it is, kernels included, once, in evaluation mode. What its operations are given is recorded;
    weights are computed from that when they are asked for, and **weights times values are compared with what the
    kernels returned**, for every query of halo attention and for up to 1024 queries of a global layer.

    Args:
        model: A network of `create_model`, a detector, a model of timm after `parhelion.accelerate`, or any module that
            holds `HaloAttention` or `GlobalSelfAttention`. Its mode and hooks are left as they were.
        image: An image or its file, which is scaled and normalised as the model's `pretrained_cfg` says; for a
            detector, any size. Or a tensor as the model takes it, (C, H, W) or (1, C, H, W).
        class_names: Names of the classes; those in the model's `pretrained_cfg`, or numbers, if None.
        title: What the model is called on the page; its class if None.
        note: A sentence for the page.
        layers: Names of the layers to keep, as a shell pattern such as "stages.2.*". All layers are checked.
        rollout: Also compute the attention rolled out over all layers. It is no explanation of an answer.
        occlusion: Also measure what the most probable class loses when each patch of the image is hidden, which takes
            up to 256 more passes through a classifier.

    Raises:
        UserError: a model without such attention, an image that cannot be read or has the wrong shape, layers that do
            not exist, or an occlusion of a model that does not classify.
        parhelion.explain.MismatchError: weights times values differ from what a kernel returned by more than rounding
            explains. That is a fault of Parhelion; please report it.
    """
    if not isinstance(model, nn.Module):
        raise UserError(f"explain.attention takes a torch.nn.Module, not {model!r:.60} of type {type(model).__name__}")
    seen = seen_by(model, image)
    with _input_of_backbone(model, seen):
        answer, found = recorded(model, lambda: model(seen.argument))
    exactness = max(layer.check() for layer in found)
    kept = tuple(layer for layer in found if fnmatchcase(layer.name, layers))
    if not kept:
        raise UserError(f"no attention layer is called {layers!r}; there are {few([layer.name for layer in found], 8)}")
    names = class_names if class_names is not None else _known_names(model)
    return AttentionMaps(
        title=title or type(model).__name__,
        picture=seen.picture(),
        layers=kept,
        top=_top(answer, names, detector=isinstance(model, GeneralizedRCNN)),
        note=note,
        rollout=rolled_out(found) if rollout else None,
        occlusion=_occlusion(model, seen.tensor, answer, names, found[-1]) if occlusion else None,
        exactness=exactness,
    )


@contextmanager
def _input_of_backbone(model: nn.Module, seen: Seen) -> Iterator[None]:
    """Let `seen` hold what a detector's backbone is given, which the detector scales by itself."""
    if not isinstance(model, GeneralizedRCNN):
        yield
        return

    def keep(module: nn.Module, given: Any) -> None:
        seen.tensor = given[0].detach()

    handle = model.backbone.register_forward_pre_hook(keep)
    try:
        yield
    finally:
        handle.remove()


def _known_names(model: nn.Module) -> Sequence[str] | None:
    config: Any = getattr(model, "pretrained_cfg", None) or {}
    return config.get("label_names")


def _top(answer: Any, names: Sequence[str] | None, *, detector: bool) -> tuple[tuple[str, float], ...]:
    """The best classes or objects of an answer, as far as it is one of a classifier or a detector."""
    if detector:
        # Label 0 is what surrounds the objects.
        labels, scores = answer[0]["labels"].tolist(), answer[0]["scores"].tolist()
        return tuple((_name(names, label - 1), score) for label, score in zip(labels[:TOP], scores[:TOP], strict=True))
    if not _classifies(answer):
        return ()
    probabilities, numbers = answer[0].float().softmax(0).topk(min(TOP, answer.shape[1]))
    return tuple(
        (_name(names, number), share) for number, share in zip(numbers.tolist(), probabilities.tolist(), strict=True)
    )


def _name(names: Sequence[str] | None, number: int) -> str:
    return names[number] if names is not None and number < len(names) else f"class {number}"


def _classifies(answer: Any) -> bool:
    return isinstance(answer, Tensor) and answer.ndim == 2 and answer.shape[1] > 1


def _occlusion(model: nn.Module, image: Tensor, answer: Any, names: Sequence[str] | None, last: Layer) -> Occlusion:
    if not _classifies(answer):
        raise UserError("occlusion needs the probability of a class, and this model returns none")
    best = int(answer[0].argmax())

    @torch.no_grad()
    def probability(images: Tensor) -> Tensor:
        return model(images).float().softmax(dim=1)[:, best].cpu()

    size = (image.shape[2], image.shape[3])
    patch = occlusions.patch_px(size, key_px(size, last.output_size))
    with in_eval_mode(model):
        lost = occlusions.losses(probability, image, patch)
    return Occlusion(_name(names, best), float(answer[0].float().softmax(0)[best]), patch, lost)
