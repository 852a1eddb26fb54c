"""`Detector`: a network with all that is needed to use it, saved in one file with its weights."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from parhelion.data.images import Exif
from parhelion.detection.pyramid import Pyramid
from parhelion.detection.rcnn import faster_rcnn, mask_rcnn
from parhelion.errors import UserError
from parhelion.files.weights import is_of_task, read_saved, save_weights, weights_file, why_not_fit
from parhelion.models.count import multiply_adds, parameters

TASK = "detection"
BUILDERS: dict[str, Callable[..., nn.Module]] = {"mask_rcnn": mask_rcnn, "faster_rcnn": faster_rcnn}
FACTS = ("detector", "class_names", "category_ids", "exif")


@dataclass(frozen=True, kw_only=True)
class Detector:
    """A detector with all that is needed to use it on an image file."""

    model: nn.Module
    # What `built` was given.
    arguments: dict[str, Any]
    # Label k is class_names[k - 1], and category_ids[k - 1] in the annotations that it was trained on.
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    # Whether its photos were turned upright as EXIF says, or taken as their pixels are stored.
    exif: Exif = "upright"
    # Complete epochs of training behind the weights, and the scores after the last of them.
    epoch: int = 0
    metrics: Mapping[str, float]

    @property
    def name(self) -> str:
        """Kind and backbone, in two words."""
        return f"{self.arguments['kind']} {self.arguments['backbone']}"

    @property
    def masks(self) -> bool:
        """Whether it segments the objects that it finds."""
        return self.arguments["kind"] == "mask_rcnn"

    @property
    def max_found(self) -> int:
        """The most objects that it finds in an image."""
        heads: Any = self.model.roi_heads
        return heads.detections_per_img

    @property
    def in_chans(self) -> int:
        """Channels of its images."""
        return self.arguments["in_chans"]

    @classmethod
    def load(cls, path: str | Path) -> "Detector":
        """The detector in a run folder or a .safetensors file, in evaluation mode on the CPU.

        `detection.predict.predictions(detector, paths)` finds objects in image files.

        Raises UserError where there is none, the file is damaged or a pickle, or its weights are not those of the
        detector that it describes.
        """
        file = weights_file(Path(path))
        weights, facts = read_saved(file, kind="detector", needed=FACTS)
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
        return cls(
            model=model.eval(),
            arguments=facts["detector"],
            class_names=tuple(facts["class_names"]),
            category_ids=tuple(facts["category_ids"]),
            exif=facts["exif"],
            epoch=facts.get("epoch", 0),
            metrics=facts.get("metrics", {}),
        )

    def save(self, path: Path) -> None:
        """Write the detector to the file `path` in one step.

        Raises UserError where its tables of global attention are for images of another size than it says, see
        `with_image_px`: the file could not be loaded.
        """
        px, backbone = self.arguments["image_px"], cast("Pyramid", self.model.backbone)
        if not backbone.has_tables_for((px, px)):
            raise UserError(
                f"the detector is for images of {px} pixels, but its tables of global attention are not; call "
                f"detector.model.backbone.resize(image_size=({px}, {px})) before it is saved"
            )
        facts = {
            "task": TASK,
            "detector": self.arguments,
            "class_names": list(self.class_names),
            "category_ids": list(self.category_ids),
            "exif": self.exif,
            "epoch": self.epoch,
            "metrics": dict(self.metrics),
        }
        save_weights(path, self.model.state_dict(), facts)

    def with_image_px(self, image_px: int) -> "Detector":
        """The same detector, its network changed in place, for images scaled to a longer side of `image_px` pixels.

        Tables of global attention stay as they are: with them the detector can be used, but not saved.
        """
        scaling: Any = self.model.transform
        scaling.min_size, scaling.max_size = (image_px,), image_px
        return replace(self, arguments={**self.arguments, "image_px": image_px})

    def with_max_found(self, max_found: int) -> "Detector":
        """The same detector, its network changed in place, finding at most `max_found` objects in an image."""
        heads: Any = self.model.roi_heads
        heads.detections_per_img = max_found
        return replace(self, arguments={**self.arguments, "box_detections_per_img": max_found})


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


def holds_detector(path: Path) -> bool:
    """Whether the run folder or file `path` holds a detector. Raises UserError where it is damaged or no run."""
    return is_of_task(path, TASK)


def costs(facts: Mapping[str, Any]) -> tuple[int, int]:
    """Parameters, and the backbone's multiply-adds of one square image, of the detector with the header `facts`.

    The multiply-adds of the heads depend on what they find.
    """
    with torch.device("meta"):
        model = built(facts["detector"])
    backbone, side = cast("Pyramid", model.backbone), facts["detector"]["image_px"]
    return parameters(model), multiply_adds(backbone.body, (side, side))
