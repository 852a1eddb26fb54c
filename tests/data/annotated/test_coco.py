import json
import pickle
import pickletools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data.annotated.coco_folders import (
    BAD,
    BAD_BOX,
    GOOD,
    NO_BOX,
    SIZES,
    H,
    W,
    annotation,
    content,
    crowd_mask,
    library_mask,
    opened,
    rectangle,
    refused,
    run_lengths,
    train_content,
    val_content,
    with_annotations,
    write_coco,
    write_split,
)
from PIL import Image

from parhelion.data.images import BadImage


@pytest.mark.parametrize("layout", ["annotations", "beside"])
def test_both_layouts_give_images_with_what_is_annotated(tmp_path: Path, layout: str) -> None:
    source = opened(write_coco(tmp_path, layout=layout))
    assert source.train.image_ids.tolist() == [11, 5, 8]
    assert source.val.image_ids.tolist() == [2, 4]
    image, instances, path = source.train[2]
    assert (image.mode, image.size, instances.size) == ("RGB", (29, 13), (13, 29))
    assert (instances.image_id, Path(path).name) == (8, "000000000008.png")
    assert instances.boxes.tolist() == [[2, 1, 24.5, 12]]
    assert opened(f"coco:{tmp_path}", in_chans=1).val[1][0].mode == "L"


def test_labels_count_from_one_and_sparse_category_ids_are_kept(tmp_path: Path) -> None:
    source = opened(write_coco(tmp_path))
    assert (source.class_names, source.category_ids) == (("cup", "spoon", "jug"), (3, 7, 90))
    assert source.train[0][1].labels.tolist() == [1, 3, 2]
    truth = source.train.ground_truth()
    assert [entry["category_id"] for entry in truth["annotations"]] == [3, 90, 7, 7]
    assert truth["categories"] == [{"id": 3, "name": "cup"}, {"id": 7, "name": "spoon"}, {"id": 90, "name": "jug"}]


def test_an_image_without_objects_is_kept_with_an_empty_target(tmp_path: Path) -> None:
    images = opened(write_coco(tmp_path)).train
    target = images[1][1].target(masks=True)
    assert [tuple(target[name].shape) for name in ("boxes", "labels", "masks")] == [(0, 4), (0,), (0, *SIZES[5])]
    assert images.counts() == {"images": 3, "images without annotations": 1, "annotations": 4, "crowds": 1}


def test_worker_processes_read_the_same(tmp_path: Path) -> None:
    images = opened(write_coco(tmp_path)).train
    loader = torch.utils.data.DataLoader(images, batch_size=None, num_workers=2)
    for (image, instances, path), (same, alike, place) in zip(images, loader, strict=True):
        assert (image.tobytes(), path, instances.segmentations) == (same.tobytes(), place, alike.segmentations)
        assert np.array_equal(instances.boxes, alike.boxes)


def test_the_ground_truth_is_what_pycocotools_and_faster_coco_eval_load(tmp_path: Path) -> None:
    import faster_coco_eval
    from pycocotools.coco import COCO

    truth = opened(write_coco(tmp_path)).train.ground_truth()
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    theirs, faster = COCO(tmp_path / "truth.json"), faster_coco_eval.COCO(truth)
    for loaded in (theirs, faster):
        assert sorted(loaded.getImgIds()) == [5, 8, 11]
        assert loaded.getAnnIds(imgIds=[11], iscrowd=False) == [101, 103]
        assert loaded.anns[103]["bbox"] == [20.25, 5, 12.5, 15]
        assert loaded.anns[104]["area"] == 130
        assert np.array_equal(loaded.annToMask(loaded.anns[104]), crowd_mask())


@pytest.mark.parametrize("masks", [True, False])
def test_the_ground_truth_found_again_scores_full_marks(tmp_path: Path, masks: bool) -> None:
    import faster_coco_eval

    truth = opened(write_coco(tmp_path), masks=masks).train.ground_truth()
    found = [{**entry, "score": 0.9} for entry in truth["annotations"] if not entry["iscrowd"]]
    coco = faster_coco_eval.COCO(truth)
    evaluation = faster_coco_eval.COCOeval_faster(coco, coco.loadRes(found), "segm" if masks else "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(1)


def test_an_annotation_id_of_zero_is_raised_for_the_evaluation(tmp_path: Path) -> None:
    source = opened(with_annotations(tmp_path, {**GOOD, "id": 0}, {**GOOD, "id": 1}))
    assert source.train.annotation_ids.tolist() == [0, 1]
    assert [entry["id"] for entry in source.train.ground_truth()["annotations"]] == [1, 2]


def test_a_missing_area_is_that_of_the_mask_or_else_of_the_box(tmp_path: Path) -> None:
    corner = [[4, 2, 14, 2, 4, 14]]
    spec = with_annotations(tmp_path, annotation(1, 11, 3, [4, 2, 10, 12], segmentation=corner, area=None))
    areas = [opened(spec, masks=masks).train.ground_truth()["annotations"][0]["area"] for masks in (True, False)]
    assert areas == [library_mask(corner, (H, W)).sum(), 120]


def test_a_missing_box_is_that_of_the_segmentation(tmp_path: Path) -> None:
    entries = [
        annotation(1, 11, 3, [4, 2, 10, 12], bbox=None, area=None),
        annotation(2, 11, 3, [3, 3, 3, 3], bbox=None, segmentation=run_lengths(crowd_mask())),
    ]
    spec = with_annotations(tmp_path, *entries)
    for masks in (True, False):
        boxes = opened(spec, masks=masks).train[0][1].boxes
        assert boxes.tolist() == [[4, 2, 14, 14], [20, 3, 36, 20]]


def test_a_missing_crowd_flag_means_an_object(tmp_path: Path) -> None:
    spec = with_annotations(tmp_path, annotation(1, 11, 3, [4, 2, 10, 12], iscrowd=None))
    assert opened(spec).train.crowd.tolist() == [False]


def test_boxes_that_reach_out_are_clipped_for_training_only_and_listed(tmp_path: Path) -> None:
    boxes = [[-0.5, 2, 10, 12], [-3, 2, 10, 12], [30, 20, 50, 3.5]]
    entries = [annotation(number, 11, 3, box) for number, box in enumerate(boxes, start=1)]
    images = opened(with_annotations(tmp_path, *entries)).train
    assert images[0][1].boxes.tolist() == [[0, 2, 9.5, 14], [0, 2, 7, 14], [30, 20, W, H]]
    # Less than a pixel is rounding.
    assert images.report.reaching_out == (2, 3)
    (note,) = images.report.notes()
    assert note.startswith("2 annotations that reach out of their image in")
    # An evaluation sees the file's own numbers.
    assert [entry["bbox"] for entry in images.ground_truth()["annotations"]] == boxes


def test_a_box_that_disagrees_with_its_mask_stays(tmp_path: Path) -> None:
    spec = with_annotations(tmp_path, annotation(1, 11, 3, [1, 1, 3, 3], segmentation=[rectangle(20, 9, 8, 8)]))
    assert opened(spec).train[0][1].boxes.tolist() == [[1, 1, 4, 4]]


@pytest.mark.parametrize("name", BAD)
def test_a_bad_annotation_is_refused_by_id_or_dropped(tmp_path: Path, name: str) -> None:
    kind, wrong = BAD[name]
    spec = with_annotations(tmp_path, GOOD, {**GOOD, "id": 2, **wrong}, {**GOOD, "id": 3}, {**GOOD, "id": 4, **wrong})
    sentence = refused(spec)
    assert f"instances_train2017.json' has {kind}: 2 (2, 4), but there should be none" in sentence
    assert "on_bad_annotation 'drop' leaves them out" in sentence
    images = opened(spec, on_bad_annotation="drop").train
    assert images.dropped == {kind: (2, 4)}
    assert images.annotation_ids.tolist() == [1, 3]
    assert [entry["id"] for entry in images.ground_truth()["annotations"]] == [1, 3]
    assert images[0][1].target(masks=True)["labels"].tolist() == [1, 1]


def test_without_box_and_segmentation_there_is_nothing_to_learn(tmp_path: Path) -> None:
    spec = with_annotations(tmp_path, GOOD, annotation(2, 11, 3, [4, 2, 3, 5], bbox=None, segmentation=None))
    assert opened(spec, masks=False, on_bad_annotation="drop").train.dropped == {NO_BOX: (2,)}


def test_all_problems_of_both_splits_come_in_one_sentence(tmp_path: Path) -> None:
    many = [{**GOOD, "id": number, "bbox": [4, 2, 0, 0]} for number in range(10, 18)]
    train = content(SIZES, [GOOD, *many, {**GOOD, "id": 30, "category_id": 2}])
    val = val_content()
    val["annotations"][1]["segmentation"] = []
    sentence = refused(write_coco(tmp_path, train=train, val=val))
    assert f"{BAD_BOX}: 8 (10, 11, 12, 13, 14 and 3 more), annotations of an unknown category: 1 (30) and '" in sentence
    assert "instances_val2017.json' has annotations without a segmentation: 1 (2), but" in sentence


@pytest.mark.parametrize("on_bad_annotation", ["refuse", "drop"])
def test_annotations_with_the_same_id_all_stay_and_are_counted(tmp_path: Path, on_bad_annotation: str) -> None:
    spec = with_annotations(tmp_path, GOOD, {**GOOD, "bbox": [1, 1, 2, 2]}, {**GOOD, "id": 2}, GOOD)
    images = opened(spec, on_bad_annotation=on_bad_annotation).train
    assert images.dropped == {}
    assert images[0][1].boxes.tolist() == [[4, 2, 14, 14], [1, 1, 3, 3], [4, 2, 14, 14], [4, 2, 14, 14]]
    file = tmp_path / "annotations/instances_train2017.json"
    assert images.report.notes() == (f"3 of 4 annotations in {file} share their id with another one; all are kept",)
    truth = images.ground_truth()["annotations"]
    assert [(entry["id"], entry["bbox"][0]) for entry in truth] == [(1, 4), (2, 1), (3, 4), (4, 4)]


def test_bad_annotations_that_share_an_id_are_counted_each(tmp_path: Path) -> None:
    bad = [{**GOOD, "id": 0, "category_id": 1}] * 75
    assert "annotations of an unknown category: 75 (0), but" in refused(with_annotations(tmp_path, GOOD, *bad))


def without_file(what: dict[str, Any]) -> None:
    what["images"][0]["file_name"] = "absent.png"


def without_width(what: dict[str, Any]) -> None:
    what["images"][0]["width"] = 0


def without_height(what: dict[str, Any]) -> None:
    del what["images"][0]["height"]


def twice(what: dict[str, Any]) -> None:
    what["images"].append({**what["images"][0], "file_name": what["images"][1]["file_name"]})


@pytest.mark.parametrize(
    ("spoil", "kind", "which"),
    [
        (without_file, "images whose file is missing", ("absent.png",)),
        (without_width, "images without a positive width and height", (11,)),
        (without_height, "images without a positive width and height", (11,)),
        (twice, "images whose id comes twice", (11, 11)),
    ],
)
def test_a_bad_image_goes_with_its_annotations(tmp_path: Path, spoil: Any, kind: str, which: tuple[Any, ...]) -> None:
    spec, what = write_coco(tmp_path), train_content()
    spoil(what)
    (tmp_path / "annotations/instances_train2017.json").write_text(json.dumps(what))
    sentence = refused(spec)
    searched = f", searched in '{tmp_path}/train2017'" if spoil is without_file else ""
    assert f"{kind}: {len(which)} ({which[0]}{searched}), but there should be none" in sentence
    images = opened(spec, on_bad_annotation="drop").train
    assert images.dropped == {kind: which, "annotations of images that are left out": (101, 103, 104)}
    assert images.image_ids.tolist() == [5, 8]
    assert images[1][1].segmentations == (train_content()["annotations"][1]["segmentation"],)
    truth = images.ground_truth()
    assert ([entry["id"] for entry in truth["images"]], len(truth["annotations"])) == ([5, 8], 1)


def test_when_nothing_can_be_used_dropping_is_no_help(tmp_path: Path) -> None:
    spec, what = write_coco(tmp_path), train_content()
    for image in what["images"]:
        image["width"] = None
    (tmp_path / "annotations/instances_train2017.json").write_text(json.dumps(what))
    sentence = refused(spec, on_bad_annotation="drop")
    assert "no image of" in sentence
    assert "images without a positive width and height: 3 (11, 5, 8)" in sentence


def test_an_image_of_another_size_than_its_annotations_say_is_bad(tmp_path: Path) -> None:
    spec = write_coco(tmp_path)
    file = tmp_path / "train2017/000000000008.png"
    Image.new("RGB", (13, 29)).save(file)
    image, instances, path = opened(spec).train[2]
    assert isinstance(image, BadImage)
    assert str(image) == f"the image {file} is 13 x 29 pixels, but its annotations say 29 x 13"
    assert (instances.image_id, path) == (8, str(file))
    file.write_bytes(b"")
    assert "it is empty or in no image format" in str(opened(spec).train[2][0])


def test_the_size_is_that_of_the_upright_image(tmp_path: Path) -> None:
    spec = write_coco(tmp_path)
    turned = Image.new("RGB", (13, 29))
    turned.getexif()[0x0112] = 6
    turned.save(tmp_path / "train2017/000000000008.png", exif=turned.getexif())
    assert opened(spec).train[2][0].size == (29, 13)


def test_what_is_held_does_not_grow_in_objects_and_not_by_reading(tmp_path: Path) -> None:
    def objects(images: object) -> int:
        return sum(1 for _ in pickletools.genops(pickle.dumps(images)))

    held = {}
    for count in (3, 300):
        entries = [{**GOOD, "id": number} for number in range(1, count + 1)]
        images = opened(with_annotations(tmp_path / str(count), *entries)).train
        held[count] = objects(images)
        assert [len(images[index][1].labels) for index in range(len(images))] == [count, 0, 0]
        assert objects(images) == held[count]
    assert held[3] == held[300]


def test_images_survive_the_way_to_a_worker_that_is_not_forked(tmp_path: Path) -> None:
    images = opened(write_coco(tmp_path)).train
    again = pickle.loads(pickle.dumps(images))
    assert again.ground_truth() == images.ground_truth()
    assert again[0][0].tobytes() == images[0][0].tobytes()


def test_an_index_may_count_from_the_end_but_not_past_it(tmp_path: Path) -> None:
    images = opened(write_coco(tmp_path)).train
    assert images[-1][1].image_id == 8
    assert len(list(images)) == 3
    with pytest.raises(IndexError):
        images[3]


def test_evaluation_takes_the_preferred_name(tmp_path: Path) -> None:
    for name in ("test", "validation"):
        write_split(tmp_path / f"annotations/instances_{name}.json", tmp_path / name, val_content())
    assert opened(tmp_path, splits=("val",)).val.file.name == "instances_validation.json"
    write_split(tmp_path / "val/_annotations.coco.json", tmp_path / "val", val_content())
    source = opened(tmp_path, splits=("val",))
    assert (source.train, source.val.folder) == (None, tmp_path / "val")


def test_the_test_split_needs_no_annotations(tmp_path: Path) -> None:
    write_coco(tmp_path)
    assert "has no annotations for test" in refused(tmp_path, splits=("test",))
    images = {**val_content()}
    images.pop("annotations")
    write_split(tmp_path / "annotations/image_info_test-dev2017.json", tmp_path / "test2017", images)
    test = opened(tmp_path, splits=("test",)).test
    assert (test.file.name, test.folder) == ("image_info_test-dev2017.json", tmp_path / "test2017")
    assert (test.image_ids.tolist(), len(test.annotation_ids)) == ([2, 4], 0)
    assert test[0][1].objects().boxes.shape == (0, 4)
    write_split(tmp_path / "annotations/image_info_test2017.json", tmp_path / "test2017", images)
    assert opened(tmp_path, splits=("test",)).test.file.name == "image_info_test2017.json"
    write_split(tmp_path / "annotations/instances_test2017.json", tmp_path / "test2017", val_content())
    source = opened(tmp_path, splits=("test",))
    assert source.images("test").file.name == "instances_test2017.json"
    assert (source.train, source.val, source.class_names) == (None, None, ("cup", "spoon", "jug"))


def test_the_test_split_may_lie_beside_its_images_and_a_val_split_must_be_annotated(tmp_path: Path) -> None:
    write_split(tmp_path / "test/_annotations.coco.json", tmp_path / "test", val_content())
    assert len(opened(tmp_path, splits=("test",)).test.annotation_ids) == 2
    images = {**val_content()}
    images.pop("annotations")
    write_split(tmp_path / "valid/_annotations.coco.json", tmp_path / "valid", images)
    assert "has no list of annotations" in refused(tmp_path, splits=("val",))


def test_several_files_for_a_split_are_listed(tmp_path: Path) -> None:
    spec = write_coco(tmp_path)
    write_split(tmp_path / "annotations/instances_train2014.json", tmp_path / "train2014", train_content())
    sentence = refused(spec)
    assert "annotations/instances_train2014.json, annotations/instances_train2017.json, but there should be" in sentence
    assert opened(spec, splits=("val",)).val is not None


def test_a_folder_laid_out_otherwise_is_described(tmp_path: Path) -> None:
    assert "it holds nothing, but should hold annotations/instances_NAME.json or" in refused(tmp_path)
    write_split(tmp_path / "annotations/person_keypoints_train.json", tmp_path / "train", train_content())
    assert "it holds annotations, annotations/person_keypoints_train.json, train, but" in refused(tmp_path)
    write_coco(tmp_path / "half", layout="beside")
    (tmp_path / "half/valid/_annotations.coco.json").unlink()
    assert "where NAME is val or validation or valid or test" in refused(tmp_path / "half")
    for spec in ("coco:", f"coco:{tmp_path / 'absent'}", f"voc:{tmp_path}"):
        assert f"there is no data source '{spec}': it should be coco:DIR" in refused(spec)


def test_options_that_mean_nothing_are_refused(tmp_path: Path) -> None:
    spec = write_coco(tmp_path)
    assert "in_chans is 2" in refused(spec, in_chans=2)
    assert "on_bad_annotation is 'skip', but it should be 'refuse' or 'drop'" in refused(spec, on_bad_annotation="skip")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('{"images": [', "cannot read the annotations in"),
        ("[]", "has no list of images, but it should be a COCO file with images, annotations, categories"),
        ({"annotations": None}, "has no list of annotations"),
        ({"images": []}, "has no images, but there should be at least one"),
        ({"categories": []}, "has no categories, but there should be at least one"),
        ({"images": [{"id": 1}]}, "lacks the file_name, which should be a text"),
        ({"images": [7]}, "is 7, but it should be an object with id, file_name"),
        ({"images": [{"id": "1", "file_name": "1.png"}]}, "has the id '1', but it should be a whole number"),
        ({"annotations": [{**GOOD, "image_id": 2**63}]}, "but it should be a whole number of at most 64 bits"),
        ({"annotations": [{**GOOD, "category_id": True}]}, "has the category_id True, but it should be a whole number"),
        ({"categories": [{"id": 3, "name": "cup"}, {"id": 3, "name": "jug"}]}, "but some share 3"),
    ],
)
@pytest.mark.parametrize("on_bad_annotation", ["refuse", "drop"])
def test_a_damaged_file_is_described(tmp_path: Path, text: Any, sentence: str, on_bad_annotation: str) -> None:
    spec = write_coco(tmp_path)
    text = text if isinstance(text, str) else json.dumps({**train_content(), **text})
    (tmp_path / "annotations/instances_train2017.json").write_text(text)
    said = refused(spec, on_bad_annotation=on_bad_annotation)
    assert sentence in said
    assert "instances_train2017.json'" in said


def test_different_categories_are_named(tmp_path: Path) -> None:
    val = val_content()
    val["categories"][1]["name"] = "fork"
    sentence = refused(write_coco(tmp_path, val=val))
    assert "the same categories, but 7 (spoon) only in" in sentence
    assert "and 7 (fork) only in" in sentence
    val["categories"][1] = {"id": 6, "name": "spoon"}
    assert "6 (spoon) only in" in refused(write_coco(tmp_path, val=val))


def test_categories_may_come_in_another_order(tmp_path: Path) -> None:
    val = val_content()
    val["categories"].reverse()
    assert opened(write_coco(tmp_path, val=val)).val[0][1].labels.tolist() == [3]
