"""COCO's average precision and recall of detections, for boxes and for masks.

Computed by faster-coco-eval; the numbers are those of pycocotools.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from parhelion.data.annotated.counts import distinct_names
from parhelion.errors import UserError

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


@dataclass(frozen=True, kw_only=True)
class CocoScores:
    """COCO's numbers, 0 to 1. None stands where there is no instance to score; `mask*` are None for boxes alone."""

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
        """The numbers as box_ap, box_ap50, ..., mask_ap, ...; one without an instance behind it is left out."""
        groups = {"box": self.box, "mask": self.mask or {}}
        return {
            f"{kind}_{name}": value
            for kind, numbers in groups.items()
            for name, value in numbers.items()
            if value is not None
        }

    def as_dict(self) -> dict[str, Any]:
        """Everything by name, ready for JSON; null where there is no instance to score."""
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
