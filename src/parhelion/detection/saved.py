"""Detectors as `parhelion train` saves them: weights, class names and category ids in one file."""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from parhelion.data.images import Exif
from parhelion.detection import faster_rcnn, mask_rcnn
from parhelion.errors import UserError
from parhelion.files.weights import read_facts, read_saved, save_weights, weights_file, why_not_fit
from parhelion.layers import GlobalSelfAttention
from parhelion.models.resnet import ResNet

TASK = "detection"
BUILDERS: dict[str, Callable[..., nn.Module]] = {"mask_rcnn": mask_rcnn, "faster_rcnn": faster_rcnn}
FACTS = ("detector", "class_names", "category_ids")


@dataclass(frozen=True, kw_only=True)
class Detector:
    """A detector with all that is needed to use it on an image file."""

    model: nn.Module
    # What `built` was given.
    arguments: dict[str, Any]
    # Label k is class_names[k - 1], and category_ids[k - 1] in the annotations that it was trained on.
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    # Whether its photos were turned as EXIF says, or taken as their pixels are stored.
    exif: Exif = "upright"
    # Complete epochs of training behind the weights, and the scores after the last of them.
    epoch: int = 0
    metrics: Mapping[str, float]

    @property
    def name(self) -> str:
        """What it is, in two words: kind and backbone."""
        return f"{self.arguments['kind']} {self.arguments['backbone']}"

    @property
    def masks(self) -> bool:
        """Whether it segments what it finds."""
        return self.arguments["kind"] == "mask_rcnn"

    @property
    def max_found(self) -> int:
        """Most objects that it finds in an image."""
        heads: Any = self.model.roi_heads
        return heads.detections_per_img

    @property
    def in_chans(self) -> int:
        """Channels of its images."""
        return self.arguments["in_chans"]


def built(arguments: Mapping[str, Any], *, drop_path: float = 0.0) -> nn.Module:
    """The network of `mask_rcnn` or `faster_rcnn` (`kind`) with the other arguments, as JSON knows them.

    Raises UserError where there is no such kind, or it cannot be built.
    """
    given = dict(arguments)
    kind = given.pop("kind")
    if kind not in BUILDERS:
        raise UserError(f"there is no detector of the kind {kind!r}, but {' and '.join(BUILDERS)}")
    build = BUILDERS[kind]
    # Rows of the catalogue hold tuples, which JSON does not know.
    choices = {name: tuple(v) if isinstance(v, list) else v for name, v in given.pop("choices").items()}
    return build(
        given.pop("backbone"),
        given.pop("num_classes"),
        widths=tuple(given.pop("widths")),
        choices=choices,
        drop_path=drop_path,
        **given,
    )


def with_image_px(detector: Detector, image_px: int) -> Detector:
    """`detector`, its network in place, for images whose longer side is scaled to `image_px` pixels.

    Nothing else changes: tables of global attention stay as they are, so with them it can be used but not saved.
    """
    scaling: Any = detector.model.transform
    scaling.min_size, scaling.max_size = (image_px,), image_px
    return replace(detector, arguments={**detector.arguments, "image_px": image_px})


def with_max_found(detector: Detector, max_found: int) -> Detector:
    """`detector`, its network in place, finding at most `max_found` objects in an image."""
    heads: Any = detector.model.roi_heads
    heads.detections_per_img = max_found
    return replace(detector, arguments={**detector.arguments, "box_detections_per_img": max_found})


def save_detector(path: Path, detector: Detector) -> None:
    """Write `detector` to `path` in one step.

    Raises UserError where its tables of global attention are for images of another size than it says, see
    `with_image_px`: the file could not be loaded.
    """
    _check_tables(detector)
    facts = {
        "task": TASK,
        "detector": detector.arguments,
        "class_names": list(detector.class_names),
        "category_ids": list(detector.category_ids),
        "exif": detector.exif,
        "epoch": detector.epoch,
        "metrics": dict(detector.metrics),
    }
    save_weights(path, detector.model.state_dict(), facts)


def _check_tables(detector: Detector) -> None:
    body = getattr(detector.model.get_submodule("backbone.body"), "model", None)
    if not isinstance(body, ResNet):
        return
    px = detector.arguments["image_px"]
    # A body is cut after its last map.
    for bottleneck, size in zip(body.bottlenecks, itertools.chain(*body.network.sizes((px, px))), strict=False):
        operator = bottleneck.operator
        if isinstance(operator, GlobalSelfAttention) and operator.size != size:
            raise UserError(
                f"the detector is for images of {px} pixels, but its tables of global attention are not; call "
                f"detector.model.backbone.body.model.resize(image_size=({px}, {px})) before it is saved"
            )


def holds_detector(path: Path) -> bool:
    """Whether the run folder or file `path` is that of a detector. Raises UserError where it is damaged or no run."""
    return read_facts(weights_file(path)).get("task") == TASK


def load_detector(path: str | Path) -> Detector:
    """The detector in a run folder or a .safetensors file, in evaluation mode on the CPU.

    Raises UserError where there is none, the file is damaged or a pickle, or its weights are not what it says.
    """
    file = weights_file(Path(path))
    weights, facts = read_saved(file)
    missing = [key for key in FACTS if key not in facts]
    if missing:
        raise UserError(f"{file} is no detector: its header lacks {', '.join(missing)}")
    try:
        model = built(facts["detector"])
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"the header of {file} describes no detector that can be built: {error}") from error
    counts = {len(facts["class_names"]), len(facts["category_ids"]), facts["detector"]["num_classes"]}
    if len(counts) > 1:
        raise UserError(f"the header of {file} has {' and '.join(map(str, sorted(counts)))} classes; it is damaged")
    if misfit := why_not_fit(model, weights):
        raise UserError(
            f"{file} says that it is a {facts['detector']['kind']}, but does not hold its tensors: {misfit}"
        )
    model.load_state_dict(weights)
    return Detector(
        model=model.eval(),
        arguments=facts["detector"],
        class_names=tuple(facts["class_names"]),
        category_ids=tuple(facts["category_ids"]),
        # Earlier versions turned all photos, and did not say so.
        exif=facts.get("exif", "upright"),
        epoch=facts.get("epoch", 0),
        metrics=facts.get("metrics", {}),
    )
