"""What an annotation file holds, in one line."""

from pathlib import Path
from typing import Any

import pytest
from data.annotated.coco_folders import GOOD, SIZES, annotation, content, opened, with_annotations, write_coco

from parhelion.data.annotated.counts import ObjectCounts, object_counts
from parhelion.errors import UserError


def counts_of(spec: str, **options: Any) -> ObjectCounts:
    train = opened(spec, **options).train
    assert train is not None
    return object_counts(train)


def test_images_objects_and_crowds_are_counted_by_split_and_class(tmp_path: Path) -> None:
    source = opened(write_coco(tmp_path))
    file = tmp_path / "annotations" / "instances_train2017.json"
    assert object_counts(source.train).text() == (
        f"{file}: 3 images, 1 of them without objects; 3 objects of 3 classes, 1 crowd: cup 1, spoon 1, jug 1"
    )
    assert object_counts(source.val).text().endswith("2 objects of 3 classes: cup 1, spoon 0, jug 1")


def test_of_many_classes_the_most_and_the_least_frequent_are_shown_and_those_without_objects(tmp_path: Path) -> None:
    what = content(SIZES, [])
    what["categories"] = [{"id": number, "name": f"kind {number}"} for number in range(1, 31)]
    what["annotations"] = [
        {**GOOD, "id": 100 * kind + number, "category_id": kind} for kind in range(1, 25) for number in range(kind)
    ]
    spec = write_coco(tmp_path, train=what, val=what)
    _, _, listed = counts_of(spec).text().partition(" objects of 30 classes: ")
    assert listed == (
        "kind 24 24, kind 23 23, kind 22 22, kind 21 21, kind 20 20, kind 19 19, kind 18 18, ..., "
        "kind 3 3, kind 2 2, kind 1 1; none of kind 25, kind 26, kind 27, kind 28, kind 29 and 1 more"
    )


def test_classes_of_one_name_are_told_apart(tmp_path: Path) -> None:
    what = content(SIZES, [GOOD])
    what["categories"] = [{**entry, "name": "thing"} for entry in what["categories"]]
    assert counts_of(write_coco(tmp_path, train=what, val=what)).of_class == {
        "thing (id 3)": 1,
        "thing (id 7)": 0,
        "thing (id 90)": 0,
    }


@pytest.mark.parametrize(
    ("entries", "why"),
    [
        ([], "it has no annotations"),
        ([{**GOOD, "iscrowd": 1}, {**GOOD, "id": 2, "iscrowd": 1}], "its 2 annotations are crowds"),
        (
            [{**GOOD, "segmentation": []}],
            "annotations without a segmentation: 1 (1); --no-masks trains and scores boxes only, which need no "
            "segmentation",
        ),
    ],
)
def test_where_there_is_no_object_the_reason_is_told(tmp_path: Path, entries: list[dict[str, Any]], why: str) -> None:
    counts = counts_of(with_annotations(tmp_path, *entries), on_bad_annotation="drop")
    with pytest.raises(UserError) as caught:
        counts.require_objects("to learn")
    assert str(caught.value).endswith(f"instances_train2017.json has no annotated object to learn: {why}")
    counts_of(write_coco(tmp_path / "good")).require_objects("to learn")


def test_an_image_with_more_objects_than_are_found_is_told(tmp_path: Path) -> None:
    many = [annotation(number, 11, 3, [4, 2, 10, 12]) for number in range(1, 8)]
    counts = counts_of(with_annotations(tmp_path, *many))
    assert counts.too_full(7) is None
    sentence = counts.too_full(6)
    assert sentence is not None
    assert sentence.endswith("has 7 objects, but at most 6 are found in one; --max-found 7 finds and scores more")
