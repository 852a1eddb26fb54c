"""Small data sets in COCO's format on disk, none of their images square."""

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from PIL import Image

from parhelion.data.annotated.coco import DetectionSource, open_coco
from parhelion.errors import UserError

CATEGORIES = {3: "cup", 7: "spoon", 90: "jug"}
SIZES = {11: (23, 37), 5: (31, 19), 8: (13, 29)}
"""Rows and columns of the training images, by id; 5 has no objects."""
VAL_SIZES = {2: (17, 41), 4: (27, 21)}

H, W = SIZES[11]

Layout = Literal["annotations", "beside"]


def rectangle(left: float, top: float, width: float, height: float) -> list[float]:
    """A polygon of four points."""
    right, bottom = left + width, top + height
    return [left, top, right, top, right, bottom, left, bottom]


def annotation(identifier: int, image: int, category: int, box: list[float], **other: Any) -> dict[str, Any]:
    """An annotation whose mask fills its box, unless `other` says otherwise; what is None there is left out."""
    entry = {
        "id": identifier,
        "image_id": image,
        "category_id": category,
        "bbox": box,
        "segmentation": [rectangle(*box)],
        "area": box[2] * box[3],
        "iscrowd": 0,
        **other,
    }
    return {key: value for key, value in entry.items() if value is not None}


def run_lengths(mask: np.ndarray) -> dict[str, Any]:
    """`mask` (h, w) as uncompressed run lengths, column by column, outside first."""
    flat = np.concatenate([[0], mask.T.reshape(-1), [0]])
    ends = np.flatnonzero(flat[1:-1] != flat[:-2])
    counts = np.diff([0, *ends.tolist(), mask.size]).tolist()
    return {"size": list(mask.shape), "counts": counts}


def crowd_mask() -> np.ndarray:
    """Of image 11: two regions."""
    mask = np.zeros(SIZES[11], np.uint8)
    mask[3:9, 20:30] = 1
    mask[15:20, 22:36] = 1
    return mask


def train_content() -> dict[str, Any]:
    """Three images; in 11 a cup, a jug and a crowd of spoons, in 8 a spoon in two parts."""
    parts = [rectangle(2, 1, 6, 5), rectangle(15.5, 4, 9, 8)]
    return content(
        SIZES,
        [
            annotation(101, 11, 3, [4, 2, 10, 12]),
            annotation(102, 8, 7, [2, 1, 22.5, 11], segmentation=parts, area=102.0),
            annotation(103, 11, 90, [20.25, 5, 12.5, 15]),
            annotation(104, 11, 7, [20, 3, 16, 17], segmentation=run_lengths(crowd_mask()), iscrowd=1, area=130),
        ],
    )


def val_content() -> dict[str, Any]:
    """Two images with an object each."""
    objects = [annotation(1, 2, 90, [3, 4, 30, 11]), annotation(2, 4, 3, [1, 6, 17, 19])]
    return content(VAL_SIZES, objects)


def content(sizes: dict[int, tuple[int, int]], annotations: list[dict[str, Any]]) -> dict[str, Any]:
    """What the JSON file says."""
    images = [
        {"id": number, "file_name": f"{number:012}.png", "height": h, "width": w} for number, (h, w) in sizes.items()
    ]
    categories = [{"id": number, "name": name} for number, name in CATEGORIES.items()]
    return {"images": images, "annotations": annotations, "categories": categories}


def write_split(annotations: Path, images: Path, what: dict[str, Any], *, draw: bool = True) -> None:
    """The JSON of one split, and its images: noise, a function of the id."""
    annotations.parent.mkdir(parents=True, exist_ok=True)
    annotations.write_text(json.dumps(what))
    images.mkdir(parents=True, exist_ok=True)
    for image in what["images"] if draw else ():
        noise = np.random.default_rng(image["id"]).integers(
            0, 256, (image["height"], image["width"], 3), dtype=np.uint8
        )
        Image.fromarray(noise).save(images / image["file_name"])


def write_coco(
    folder: Path,
    *,
    train: dict[str, Any] | None = None,
    val: dict[str, Any] | None = None,
    layout: Layout = "annotations",
) -> str:
    """A whole data set in `folder`, of `train_content` and `val_content` unless told otherwise; what opens it."""
    for name, what in (("train", train or train_content()), ("val", val or val_content())):
        if layout == "annotations":
            write_split(folder / f"annotations/instances_{name}2017.json", folder / f"{name}2017", what)
        else:
            name = {"train": "train", "val": "valid"}[name]
            write_split(folder / name / "_annotations.coco.json", folder / name, what)
    return f"coco:{folder}"


def opened(spec: str | Path, **options: Any) -> DetectionSource:
    """What `spec` names, or the folder `spec`: with masks and refusing what is bad unless `options` say otherwise."""
    spec = spec if isinstance(spec, str) else f"coco:{spec}"
    usual = {"in_chans": 3, "splits": ("train", "val"), "masks": True, "on_bad_annotation": "refuse"}
    return open_coco(spec, **{**usual, **options})


def refused(spec: str | Path, **options: Any) -> str:
    """The sentence with which opening fails."""
    with pytest.raises(UserError) as caught:
        opened(spec, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def with_annotations(folder: Path, *annotations: dict[str, Any]) -> str:
    """A data set whose training images have these annotations; what opens it."""
    return write_coco(folder, train=content(SIZES, list(annotations)))


def library_mask(segmentation: Any, size: tuple[int, int]) -> np.ndarray:
    """As pycocotools draws it."""
    from pycocotools.coco import COCO

    truth = COCO()
    truth.imgs = {1: {"height": size[0], "width": size[1]}}
    return truth.annToMask({"image_id": 1, "segmentation": segmentation})


GOOD = annotation(1, 11, 3, [4, 2, 10, 12])

MALFORMED = "annotations with a malformed segmentation"
NO_BOX = "annotations without a box of four finite numbers"
BAD_BOX = "annotations with a degenerate box"
FEW_POINTS = "a polygon of fewer than three points"
BAD_POLYGON = "a polygon with a number that is not finite or beyond 1,000,000 pixels"
BAD_RUNS = f"{MALFORMED} (run lengths that are neither whole numbers from 0 nor COCO's text)"
BAD_SUM = f"{MALFORMED} (run lengths that do not add up to the size of the image)"
EMPTY = "annotations with an empty mask"
BAD = {
    "no width": (BAD_BOX, {"bbox": [4, 2, 0, 12]}),
    "negative height": (BAD_BOX, {"bbox": [4, 2, 10, -1]}),
    "three numbers": (NO_BOX, {"bbox": [4, 2, 10]}),
    "not a number": (NO_BOX, {"bbox": [4, float("nan"), 10, 12]}),
    "infinite": (NO_BOX, {"bbox": [4, 2, float("inf"), 12]}),
    "huge integer": (NO_BOX, {"bbox": [4, 2, 10**400, 12]}),
    "texts": (NO_BOX, {"bbox": ["4", "2", "10", "12"]}),
    "no area in float32": (BAD_BOX, {"bbox": [4, 2, 1e-9, 12]}),
    "box to the right": ("annotations with a box outside the image", {"bbox": [W, 2, 10, 12]}),
    "box above": ("annotations with a box outside the image", {"bbox": [4, -12, 10, 12]}),
    "mask below": ("annotations with a mask outside the image", {"segmentation": [rectangle(4, H, 10, 12)]}),
    "mask to the left": ("annotations with a mask outside the image", {"segmentation": [rectangle(-10, 2, 10, 12)]}),
    "none": ("annotations without a segmentation", {"segmentation": None}),
    "empty list": ("annotations without a segmentation", {"segmentation": []}),
    "two points": (f"{MALFORMED} ({FEW_POINTS})", {"segmentation": [[1, 2, 3, 4]]}),
    "odd": (f"{MALFORMED} (a polygon with an odd count of numbers)", {"segmentation": [[1, 2, 13, 4, 5, 16, 7]]}),
    "flat": (f"{MALFORMED} (numbers where lists of numbers should be)", {"segmentation": rectangle(4, 2, 10, 12)}),
    "nan": (f"{MALFORMED} ({BAD_POLYGON})", {"segmentation": [[1, 2, 13, float("nan"), 5, 16]]}),
    "far": (f"{MALFORMED} ({BAD_POLYGON})", {"segmentation": [[1, 2, 13, 1e9, 5, 16]]}),
    "text": (f"{MALFORMED} (neither polygons nor run lengths)", {"segmentation": "polygon"}),
    "words": (
        f"{MALFORMED} (a polygon that is not a list of numbers)",
        {"segmentation": [["1", "2", "3", "4", "5", "6"]]},
    ),
    "size swapped": (
        f"{MALFORMED} (run lengths whose size is width, height where height, width should be)",
        {"segmentation": {"size": [W, H], "counts": [0, H * W]}},
    ),
    "another size": (
        f"{MALFORMED} (run lengths of another size than the image)",
        {"segmentation": {"size": [H, H], "counts": [0, H * H]}},
    ),
    "sum": (BAD_SUM, {"segmentation": {"size": [H, W], "counts": [5, H * W]}}),
    "negative run": (BAD_RUNS, {"segmentation": {"size": [H, W], "counts": [-1, H * W + 1]}}),
    "fractions": (BAD_RUNS, {"segmentation": {"size": [H, W], "counts": [0.0, float(H * W)]}}),
    "packed sum": (BAD_SUM, {"segmentation": {"size": [H, W], "counts": "05"}}),
    "cut off": (BAD_RUNS, {"segmentation": {"size": [H, W], "counts": "0P"}}),
    "not packed": (BAD_RUNS, {"segmentation": {"size": [H, W], "counts": "é~"}}),
    "half a character": (BAD_RUNS, {"segmentation": {"size": [H, W], "counts": "\ud83d"}}),
    "no counts": (BAD_RUNS, {"segmentation": {"size": [H, W]}}),
    "no pixel": (EMPTY, {"segmentation": {"size": [H, W], "counts": [H * W]}}),
    "run of none": (EMPTY, {"segmentation": {"size": [H, W], "counts": [H * W, 0]}}),
    "line": (EMPTY, {"segmentation": [[4, 2, 14, 2, 24, 2]]}),
    "unknown image": ("annotations of an unknown image", {"image_id": 12}),
    "unknown category": ("annotations of an unknown category", {"category_id": 1}),
}
"""Kinds of problem, and what of `GOOD` must be otherwise to have it on image 11."""
