"""What is scored against is the user's file, as the original program reads it."""

import json
from pathlib import Path
from typing import Any

import pytest
from data.annotated.coco_folders import SIZES, H, W, annotation, content, opened, rectangle, refused, write_coco
from original_scores import pycocotools_numbers

from parhelion.data.annotated.coco import CocoImages
from parhelion.detection.coco_scores import CocoScores, coco_scores

PLAIN = (
    annotation(1, 11, 3, [4, 2, 10, 12]),
    annotation(2, 11, 90, [20, 5, 12, 15]),
    annotation(3, 8, 3, [2, 1, 9, 7]),
)
PAST_THE_BORDER = (
    annotation(11, 11, 3, [25, 10, 60, 40]),
    annotation(12, 8, 7, [-30, -2, 40, 12]),
    annotation(13, 11, 7, [-0.5, 2, 10, 12]),
)
NOTHING_CAN_MATCH = {
    "annotations with a degenerate box": {"bbox": [4, 2, 0, 12], "area": 0},
    "annotations with a box outside the image": {"bbox": [W + 5, 2, 10, 12]},
    "annotations with a mask outside the image": {"segmentation": [rectangle(4, H + 3, 10, 12)]},
    "annotations with an empty mask": {"segmentation": {"size": [H, W], "counts": [H * W]}},
}


def evaluated(folder: Path, *annotations: dict[str, Any], **options: Any) -> tuple[dict[str, Any], CocoImages]:
    """The content of a validation file with these annotations, and what is opened of it."""
    what = content(SIZES, list(annotations))
    images = opened(write_coco(folder, val=what), splits=("val",), **options).val
    return json.loads(images.file.read_text()), images


def detections(annotations: tuple[dict[str, Any], ...]) -> list[dict[str, Any]]:
    """Of each annotation a detection inside the image, a little off, the later the less sure."""
    found = []
    for number, one in enumerate(annotations):
        h, w = SIZES[one["image_id"]]
        left, top, width, height = one["bbox"]
        left, right = max(0, left + 1), min(w, left + width)
        top, bottom = max(0, top), min(h, top + height)
        box = [left, top, right - left, bottom - top]
        parts = {"bbox": box, "segmentation": encoded(box, (h, w)), "score": 0.9 - 0.05 * number}
        found.append({"image_id": one["image_id"], "category_id": one["category_id"], **parts})
    return found


def encoded(box: list[float], size: tuple[int, int]) -> dict[str, Any]:
    """The packed run lengths of a box."""
    import pycocotools.mask

    (packed,) = pycocotools.mask.frPyObjects([rectangle(*box)], *size)
    return {"size": list(size), "counts": packed["counts"].decode()}


def assert_as_the_file(file: dict[str, Any], images: CocoImages, found: list[dict[str, Any]]) -> CocoScores:
    scores = coco_scores(images.ground_truth(), found, masks=True)
    for kind, numbers in (("bbox", scores.box), ("segm", scores.mask)):
        assert numbers is not None
        ours = {name: -1.0 if value is None else value for name, value in numbers.items()}
        assert ours == pytest.approx(pycocotools_numbers(file, found, kind), abs=1e-6), kind
    return scores


def test_boxes_past_the_border_are_scored_as_the_file_has_them(tmp_path: Path) -> None:
    annotations = (*PLAIN, *PAST_THE_BORDER)
    scores = assert_as_the_file(*evaluated(tmp_path / "all", *annotations), detections(annotations))
    # Clipped, the truth would be found.
    file, images = evaluated(tmp_path / "past", *PAST_THE_BORDER[:2])
    assert images.report.reaching_out == (11, 12)
    found = detections(PAST_THE_BORDER[:2])
    assert assert_as_the_file(file, images, found).box["ap50"] == 0
    assert scores.box["ap50"] > 0.3


@pytest.mark.parametrize("area", [-3, 0, 5e3, 2e10])
def test_areas_are_those_of_the_file(tmp_path: Path, area: float) -> None:
    annotations = ({**PLAIN[0], "area": area}, *PLAIN[1:])
    assert_as_the_file(*evaluated(tmp_path, *annotations), detections(annotations))


@pytest.mark.parametrize("kind", NOTHING_CAN_MATCH)
def test_what_nothing_can_match_counts_as_the_original_counts_it(tmp_path: Path, kind: str) -> None:
    wrong = {**PLAIN[0], "id": 9, **NOTHING_CAN_MATCH[kind]}
    assert f"{kind}: 1 (9), but" in refused(write_coco(tmp_path / "refused", val=content(SIZES, [*PLAIN, wrong])))
    file, images = evaluated(tmp_path, *PLAIN, wrong, on_bad_annotation="drop")
    scores = assert_as_the_file(file, images, detections(PLAIN))
    assert min(scores.box["ar100"], scores.mask["ar100"]) < 0.8
    assert images.dropped == {}
    assert images.report.unmatchable == {kind: (9,)}
    (note,) = images.report.notes()
    assert note.startswith(f"kept in {images.file}: 1 {kind} (9): COCO's scores count them")
    # It is no object to show or to learn from.
    assert images[0][1].labels.tolist() == [1, 3]


def test_what_nothing_can_match_is_left_out_of_training(tmp_path: Path) -> None:
    wrong = {**PLAIN[0], "id": 9, **NOTHING_CAN_MATCH["annotations with a degenerate box"]}
    spec = write_coco(tmp_path, train=content(SIZES, [*PLAIN, wrong]))
    images = opened(spec, on_bad_annotation="drop").train
    assert images.dropped == {"annotations with a degenerate box": (9,)}
    assert images.annotation_ids.tolist() == [1, 2, 3]


LINE = [4, 2, 10, 12]
ODD = [1, 2, 13, 4, 5, 16, 7]


@pytest.mark.parametrize("on_bad_annotation", ["refuse", "drop"])
def test_a_polygon_of_two_points_beside_a_good_one_is_left_out(tmp_path: Path, on_bad_annotation: str) -> None:
    first = {**PLAIN[0], "segmentation": [rectangle(4, 2, 10, 12), LINE, LINE]}
    options = {"on_bad_annotation": on_bad_annotation}
    file, images = evaluated(tmp_path, first, *PLAIN[1:], **options)
    assert_as_the_file(file, images, detections(PLAIN))
    assert images.ground_truth()["annotations"][0]["segmentation"] == [rectangle(4, 2, 10, 12)]
    assert images.report.bad_polygons == {"a polygon of fewer than three points": (1, 1)}
    (note,) = images.report.notes()
    assert "2 polygons of 1 annotations, whose others stay: a polygon of fewer than three points (1)" in note
    train = opened(write_coco(tmp_path / "train", train=content(SIZES, [first])), **options).train
    assert train[0][1].target(masks=True)["masks"].sum() == 120


def test_another_bad_polygon_beside_a_good_one_is_refused_or_left_out(tmp_path: Path) -> None:
    first = {**PLAIN[0], "segmentation": [LINE, ODD, rectangle(4, 2, 10, 12)]}
    spec = write_coco(tmp_path, train=content(SIZES, [first]))
    sentence = refused(spec)
    assert "has annotations with a polygon with an odd count of numbers: 1 (1), but" in sentence
    assert "fewer than three" not in sentence
    images = opened(spec, on_bad_annotation="drop").train
    assert images[0][1].segmentations == ([rectangle(4, 2, 10, 12)],)
    assert images.report.bad_polygons.keys() == {
        "a polygon of fewer than three points",
        "a polygon with an odd count of numbers",
    }


def test_an_object_of_bad_polygons_only_is_dropped(tmp_path: Path) -> None:
    spec = write_coco(tmp_path, train=content(SIZES, [*PLAIN, {**PLAIN[0], "id": 9, "segmentation": [LINE, ODD]}]))
    images = opened(spec, on_bad_annotation="drop").train
    assert images.dropped == {"annotations with a malformed segmentation (a polygon of fewer than three points)": (9,)}
    assert images.report.bad_polygons == {}
