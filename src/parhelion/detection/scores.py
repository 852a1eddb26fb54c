"""What a detector finds in images, and COCO's average precision and recall of that, for boxes and for masks.

Computed by faster-coco-eval; the numbers are those of pycocotools.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from parhelion.data.annotated.coco import CocoImages, DetectionSource
from parhelion.data.annotated.counts import distinct_names
from parhelion.data.annotated.headers import refuse_misfits
from parhelion.data.annotated.loaders import make_detection_loader
from parhelion.data.annotated.transforms import detection_eval_transform
from parhelion.data.loaders import OnBadImage, refuses
from parhelion.data.samples import Split
from parhelion.detection.detections import Found
from parhelion.detection.saved import Detector
from parhelion.errors import UserError
from parhelion.files.progress import Progress
from parhelion.runs.images import check_classes, nothing_to_evaluate

if TYPE_CHECKING:
    import numpy as np

IOUS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
# As COCO orders its axes. An object is small below 32² pixels, large from 96².
AREAS = ("all", "small", "medium", "large")
# Detections of each class in an image that count, in COCO's own numbers.
MOST = (1, 10, 100)
# fmt: off
NAMES = {  # how each number is written in a table
    "ap": "AP", "ap50": "AP50", "ap75": "AP75", "ap_small": "AP small", "ap_medium": "AP medium",
    "ap_large": "AP large", "ar_small": "AR small", "ar_medium": "AR medium", "ar_large": "AR large",
}
# fmt: on


@dataclass
class Outcome:
    """What a detector found in some images, as entries of a COCO results file."""

    entries: list[dict[str, Any]] = field(default_factory=list)
    image_ids: list[int] = field(default_factory=list)
    # One sentence for each image left out.
    skipped: list[str] = field(default_factory=list)

    def scores(self, images: CocoImages, *, masks: bool, most: int = MOST[-1]) -> CocoScores:
        """COCO's numbers over the images that were looked at, see `coco_scores`; UserError where there is none."""
        if not self.image_ids:
            raise UserError(nothing_to_evaluate(self.skipped))
        return coco_scores(only(images.ground_truth(), self.image_ids), self.entries, masks=masks, most=most)


def outcome(
    model: nn.Module,
    loader: Iterable[Mapping[str, Any]],
    category_ids: Sequence[int],
    progress: Progress | None = None,
) -> Outcome:
    """Run `model` over `loader` as `found_in` does; label n is the category `category_ids[n - 1]`."""
    collected = Outcome()

    def noted() -> Iterator[Mapping[str, Any]]:
        for batch in loader:
            collected.skipped += batch["bad"]
            yield batch

    for found in found_in(model, noted()):
        for one in found:
            collected.entries += one.results(category_ids)
            collected.image_ids.append(one.image_id)
        if progress is not None:
            progress.advance(len(found))
    return collected


def merged(parts: Sequence[Outcome]) -> Outcome:
    """The outcomes of several processes as one, its entries in the order of the images' ids."""
    return Outcome(
        entries=sorted((entry for part in parts for entry in part.entries), key=lambda entry: entry["image_id"]),
        image_ids=[identifier for part in parts for identifier in part.image_ids],
        skipped=[sentence for part in parts for sentence in part.skipped],
    )


def evaluate(
    detector: Detector,
    source: DetectionSource,
    *,
    split: Split = "val",
    batch: int = 8,
    workers: int = 0,
    on_bad_image: OnBadImage = "refuse",
    quiet: bool = False,
) -> Outcome:
    """What `detector` finds in each image of a split of `source`.

    Raises UserError where the classes of `source` are not those that the detector was trained on. Unless unreadable
    images are skipped, it is also raised, before the first image is looked at, where headers show that some cannot be
    used.
    """
    images = source.images(split)
    check_classes(detector.class_names, images.class_names, source.name)
    if refuses(on_bad_image):
        refuse_misfits(images)
    loader = make_detection_loader(
        images, detection_eval_transform(), batch=batch, train=False, workers=workers, on_bad_image=on_bad_image
    )
    with Progress(len(images), quiet=quiet) as progress:
        return outcome(detector.model, loader, images.category_ids, progress)


def found_in(model: nn.Module, loader: Iterable[Mapping[str, Any]]) -> Iterator[tuple[Found, ...]]:
    """What `model` finds in each image of each batch of `loader`, in evaluation mode, on the device of its parameters.

    The model goes back to the mode it was in.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    try:
        for batch in loader:
            with torch.inference_mode():
                answers = model([image.to(device) for image in batch["image"]]) if batch["image"] else []
            yield tuple(
                Found(
                    image_id=int(target["image_id"]),
                    size=(int(target["size"][0]), int(target["size"][1])),
                    **{name: tensor.cpu() for name, tensor in answer.items()},
                )
                for answer, target in zip(answers, batch["target"], strict=True)
            )
    finally:
        model.train(was_training)


def only(ground_truth: Mapping[str, Any], image_ids: Iterable[int]) -> dict[str, Any]:
    """`ground_truth`, a COCO annotation file, with the images of `image_ids` and their annotations alone."""
    kept = set(image_ids)
    return {
        **ground_truth,
        "images": [image for image in ground_truth["images"] if image["id"] in kept],
        "annotations": [entry for entry in ground_truth["annotations"] if entry["image_id"] in kept],
    }


@dataclass(frozen=True, kw_only=True)
class CocoScores:
    """COCO's numbers, 0 to 1; None where there is no instance to score. `mask*` are None for boxes alone."""

    # ap (mean over IoU 0.50 to 0.95), ap50, ap75, ap_small, ap_medium, ap_large; ar1, ar10 and ar100 (recall with at
    # most so many detections of a class in an image; one more where more than 100 count), ar_small to ar_large.
    box: dict[str, float | None]
    mask: dict[str, float | None] | None
    # AP at each IoU, 0.50 to 0.95.
    box_per_iou: dict[float, float | None]
    mask_per_iou: dict[float, float | None] | None
    # AP of each class by its name; where two classes share a name, every name has its id behind it.
    box_per_class: dict[str, float | None]
    mask_per_class: dict[str, float | None] | None

    def metrics(self) -> dict[str, float]:
        """The numbers as box_ap, box_ap50, ..., mask_ap, ..., without those that are None."""
        groups = {"box": self.box, "mask": self.mask or {}}
        return {
            f"{kind}_{name}": value
            for kind, numbers in groups.items()
            for name, value in numbers.items()
            if value is not None
        }

    def as_dict(self) -> dict[str, Any]:
        """All numbers by name, ready for JSON; null where there is no instance to score."""
        return asdict(self)

    def text(self) -> str:
        """A table in percent: COCO's numbers, then AP of each class."""
        numbers = [(_shown(name), name) for name in self.box]
        classes = [(name, name) for name in self.box_per_class]
        width = max(len(shown) for shown, _ in [*numbers, *classes, ("AP by class", "")])
        lines = [_heading("", width, self.mask is not None)]
        lines += [_line(shown, width, key, self.box, self.mask) for shown, key in numbers]
        lines += ["", _heading("AP by class", width, self.mask is not None)]
        lines += [_line(shown, width, key, self.box_per_class, self.mask_per_class) for shown, key in classes]
        return "\n".join(lines)


def coco_scores(
    ground_truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]], *, masks: bool, most: int = MOST[-1]
) -> CocoScores:
    """Score `results` (entries of a COCO results file) against `ground_truth` (a COCO annotation file), both unchanged.

    The size of a detected mask is that of the mask, as usual where boxes and masks stand in one file, not of its box.
    Ids may be any whole numbers, as everything is numbered afresh: COCO's programs count an annotation with the id 0
    as never found, and fail at large ids.

    most: Detections of each class that count in an image, the best first; 100 are COCO's, and fewer mean 100.

    No result at all is a score of 0. Raises UserError where there is nothing to score against (no annotation but of
    crowds), a result belongs to an unknown image or category, `masks` are asked for and missing, or faster-coco-eval
    is missing.
    """
    _check(ground_truth, results, masks)
    limits = (*MOST, most) if most > MOST[-1] else MOST
    box = _evaluated(ground_truth, results, "bbox", limits)
    mask = _evaluated(ground_truth, results, "segm", limits) if masks else None
    names = _class_names(ground_truth)
    return CocoScores(
        box=_numbers(*box, limits),
        mask=_numbers(*mask, limits) if mask else None,
        box_per_iou=_per_iou(box[0]),
        mask_per_iou=_per_iou(mask[0]) if mask else None,
        box_per_class=_per_class(box[0], names),
        mask_per_class=_per_class(mask[0], names) if mask else None,
    )


def _check(ground_truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]], masks: bool) -> None:
    for part in ("images", "annotations", "categories"):
        if part not in ground_truth:
            raise UserError(f"the ground truth has no '{part}', which every COCO annotation file has")
    annotations = ground_truth["annotations"]
    if all(annotation.get("iscrowd") for annotation in annotations):
        raise UserError("the ground truth has no annotated instance to score detections against")
    for part, key in (("images", "image_id"), ("categories", "category_id")):
        known = {entry["id"] for entry in ground_truth[part]}
        strange = next((entry[key] for entry in results if entry[key] not in known), None)
        if strange is not None:
            raise UserError(f"a detection has the {key} {strange}, which is not among the ground truth's {part}")
    if masks and not all(annotation.get("segmentation") for annotation in annotations):
        raise UserError("masks cannot be scored: the ground truth has annotations without a 'segmentation'")
    if masks and not all("segmentation" in entry for entry in results):
        raise UserError("masks cannot be scored: there are detections without a 'segmentation'")


def _evaluated(
    ground_truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]], kind: str, limits: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Precision (iou, recall, class, area, most) and recall (iou, class, area, most), -1 without instances."""
    try:
        from faster_coco_eval import COCO, COCOeval_faster
    except ModuleNotFoundError:
        raise UserError(
            "COCO's scores need the package faster-coco-eval, which is not installed: "
            'pip install "parhelion[detection]"'
        ) from None

    # Copies, because the evaluation writes into what it is given.
    ground_truth, results = _renumbered(ground_truth, results)
    truth = COCO(ground_truth, print_function=_silent)
    # A result that has a box is as large as its box to COCO, also where its mask is scored.
    unused = "segmentation" if kind == "bbox" else "bbox"
    found = truth.loadRes([{key: value for key, value in entry.items() if key != unused} for entry in results])
    evaluation = COCOeval_faster(truth, found, kind, print_function=_silent)
    evaluation.params.maxDets = list(limits)
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation.eval["precision"], evaluation.eval["recall"]


def _renumbered(
    ground_truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Copies in which images, annotations and categories are numbered from 1.

    faster-coco-eval keeps ids in C++ types that hold fewer of them than COCO files do: hashes and timestamps fail.
    Images and categories keep the order of their ids, which decides between equal scores and orders the classes.
    Annotations of an unknown image or category go, as COCO's programs never look at them.
    """
    image, category = (
        {identifier: number for number, identifier in enumerate(sorted({one["id"] for one in ground_truth[part]}), 1)}
        for part in ("images", "categories")
    )

    def numbered(entry: Mapping[str, Any]) -> dict[str, Any]:
        return {**entry, "image_id": image[entry["image_id"]], "category_id": category[entry["category_id"]]}

    known = [one for one in ground_truth["annotations"] if one["image_id"] in image and one["category_id"] in category]
    truth = {
        **ground_truth,
        "images": [{**one, "id": image[one["id"]]} for one in ground_truth["images"]],
        "categories": [{**one, "id": category[one["id"]]} for one in ground_truth["categories"]],
        "annotations": [{**numbered(one), "id": number} for number, one in enumerate(known, start=1)],
    }
    return truth, [numbered(entry) for entry in results]


def _silent(*_: Any) -> None:
    """Take what faster-coco-eval would print."""


def _numbers(precision: np.ndarray, recall: np.ndarray, limits: Sequence[int]) -> dict[str, float | None]:
    overall = precision[..., 0, -1]
    numbers = {"ap": _mean(overall)}
    numbers |= {f"ap{round(100 * iou)}": _mean(overall[IOUS.index(iou)]) for iou in (0.5, 0.75)}
    numbers |= {f"ap_{area}": _mean(precision[..., AREAS.index(area), -1]) for area in AREAS[1:]}
    numbers |= {f"ar{most}": _mean(recall[..., 0, place]) for place, most in enumerate(limits)}
    return numbers | {f"ar_{area}": _mean(recall[..., AREAS.index(area), -1]) for area in AREAS[1:]}


def _per_iou(precision: np.ndarray) -> dict[float, float | None]:
    return {iou: _mean(precision[place, ..., 0, -1]) for place, iou in enumerate(IOUS)}


def _per_class(precision: np.ndarray, names: Sequence[str]) -> dict[str, float | None]:
    return {name: _mean(precision[:, :, place, 0, -1]) for place, name in enumerate(names)}


def _mean(values: np.ndarray) -> float | None:
    known = values[values > -1]
    return float(known.mean()) if known.size else None


def _class_names(ground_truth: Mapping[str, Any]) -> list[str]:
    """One name for each category in the order of their ids, which is that of the evaluation's axis."""
    categories = sorted({one["id"]: str(one["name"]) for one in ground_truth["categories"]}.items())
    identifiers, names = zip(*categories, strict=True)
    return distinct_names(names, identifiers)


def _shown(number: str) -> str:
    """How a number is written in a table."""
    return NAMES.get(number) or f"AR, {number.removeprefix('ar')} each"


def _heading(title: str, width: int, masks: bool) -> str:
    return f"{title:<{width}}  {'box, %':>7}" + (f"  {'mask, %':>7}" if masks else "")


def _line(
    shown: str, width: int, key: str, box: Mapping[str, float | None], mask: Mapping[str, float | None] | None
) -> str:
    values = [box[key]] if mask is None else [box[key], mask[key]]
    return f"{shown:<{width}}" + "".join(f"  {'-' if value is None else f'{100 * value:.2f}':>7}" for value in values)
