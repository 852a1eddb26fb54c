import copy
import json
import logging
import sys

import numpy as np
import pycocotools.mask as coco_masks
import pytest
from original_scores import TWELVE, pycocotools_ap, pycocotools_numbers

from parhelion.detection.scores import IOUS, coco_scores
from parhelion.errors import UserError

SIZES = {3: (120, 167), 8: (211, 149), 11: (97, 301), 20: (251, 260), 21: (64, 67)}
CATEGORIES = [{"id": 2, "name": "coat"}, {"id": 5, "name": "shoe"}, {"id": 9, "name": "bag"}]


def assert_as_pycocotools(ground_truth, results, masks=True):
    scores = coco_scores(ground_truth, results, masks=masks)
    for kind, numbers in (("bbox", scores.box), ("segm", scores.mask))[: 1 + masks]:
        expected = pycocotools_numbers(ground_truth, results, kind)
        ours = {name: -1.0 if value is None else value for name, value in numbers.items()}
        assert ours == pytest.approx(expected, abs=1e-6), kind
    return scores


def rectangle(box, size):
    """The RLE of a box (left, top, width, height), whole pixels, with its upper left corner cut off."""
    left, top, width, height = (round(side) for side in box)
    mask = np.zeros(size, dtype=np.uint8, order="F")
    mask[top : top + height, left : left + width] = 1
    mask[top : top + height // 3, left : left + width // 3] = 0
    rle = coco_masks.encode(mask)
    return {"size": list(rle["size"]), "counts": rle["counts"].decode()}


def annotation(number, image_id, category_id, box, crowd=0):
    rle = rectangle(box, SIZES[image_id])
    return {
        "id": number,
        "image_id": image_id,
        "category_id": category_id,
        "bbox": [float(side) for side in box],
        "area": float(coco_masks.area(rle)),
        "iscrowd": crowd,
        "segmentation": rle,
    }


def detection(image_id, category_id, box, score):
    return {
        "image_id": image_id,
        "category_id": category_id,
        "bbox": [float(side) for side in box],
        "score": score,
        "segmentation": rectangle(box, SIZES[image_id]),
    }


def annotated(*annotations):
    images = [{"id": number, "height": h, "width": w} for number, (h, w) in SIZES.items()]
    return {"images": images, "annotations": list(annotations), "categories": CATEGORIES}


def random_box(random, size):
    h, w = size
    height, width = (int(random.integers(2, side // 2)) for side in (h, w))
    return int(random.integers(0, w - width)), int(random.integers(0, h - height)), width, height


def near(random, box, size):
    """The box, a few pixels off, inside the image."""
    left, top, width, height = box
    left, top = (max(0, side + int(random.integers(-4, 5))) for side in (left, top))
    width, height = (max(1, side + int(random.integers(-5, 6))) for side in (width, height))
    return left, top, min(width, size[1] - left), min(height, size[0] - top)


def random_case(seed):
    """Crowds, hits that are a little off, false ones; an image without objects, one without detections."""
    random = np.random.default_rng(seed)
    annotations, results = [], []
    for image_id, size in SIZES.items():
        for _ in range(0 if image_id == 20 else random.integers(3, 14)):
            category, box = int(random.choice([2, 5, 9])), random_box(random, size)
            crowd = int(random.random() < 0.15)
            annotations.append(annotation(len(annotations) + 1, image_id, category, box, crowd))
            for _ in range(random.integers(0, 4)):
                category = category if random.random() < 0.9 else 5
                results.append(detection(image_id, category, near(random, box, size), float(random.random())))
        results += [
            detection(image_id, int(random.choice([2, 5, 9])), random_box(random, size), float(random.random()))
            for _ in range(random.integers(0, 5))
        ]
    return annotated(*annotations), [entry for entry in results if entry["image_id"] != 11]


@pytest.mark.parametrize("seed", range(12))
def test_random_detections_score_as_pycocotools_says(seed):
    scores = assert_as_pycocotools(*random_case(seed))
    # The cases mean something: neither nothing nor everything is right.
    assert 0.02 < scores.box["ap"] < 0.98
    assert scores.box["ap"] != scores.mask["ap"]


@pytest.mark.parametrize("seed", range(3))
def test_equal_scores_are_ranked_as_pycocotools_ranks_them(seed):
    ground_truth, results = random_case(seed)
    assert_as_pycocotools(ground_truth, [{**entry, "score": round(entry["score"], 1)} for entry in results])


@pytest.mark.parametrize("far", [2**31, 2**53 + 1, 2**62, -(2**62)])
def test_ids_of_any_size_score_like_small_ones(far):
    ground_truth, results = random_case(5)
    # Not all of them far, and the order stays.
    moved = {number: number + (far if (number > 8) == (far > 0) else 0) for number in SIZES}
    classes = {2: 2 + min(far, 0), 5: 5, 9: 9 + max(far, 0)}

    def with_ids(entry):
        return {**entry, "image_id": moved[entry["image_id"]], "category_id": classes[entry["category_id"]]}

    large = {
        "images": [{**one, "id": moved[one["id"]]} for one in ground_truth["images"]],
        "categories": [{**one, "id": classes[one["id"]]} for one in CATEGORIES],
        "annotations": [{**with_ids(one), "id": far + one["id"]} for one in ground_truth["annotations"]],
    }
    scores = coco_scores(large, list(map(with_ids, results)), masks=True)
    assert scores == coco_scores(ground_truth, results, masks=True)


def test_annotations_of_an_unknown_image_or_category_do_not_count():
    ground_truth, results = random_case(6)
    strange = [{**ground_truth["annotations"][0], key: 10**6} for key in ("image_id", "category_id")]
    more = {**ground_truth, "annotations": ground_truth["annotations"] + strange}
    assert coco_scores(more, results, masks=True) == coco_scores(ground_truth, results, masks=True)


def objects():
    return [
        annotation(1, 3, 2, (10, 20, 30, 40)),
        annotation(2, 3, 5, (60, 5, 100, 110)),
        annotation(3, 8, 2, (0, 0, 20, 25)),
        annotation(4, 8, 9, (30, 100, 50, 60)),
    ]


def detected(annotations):
    return [
        {**detection(one["image_id"], one["category_id"], one["bbox"], 0.9 - 0.1 * place)}
        for place, one in enumerate(annotations)
    ]


def test_perfect_detections_score_one():
    scores = assert_as_pycocotools(annotated(*objects()), detected(objects()))
    for numbers in (scores.box, scores.mask, scores.box_per_iou, scores.mask_per_iou, scores.box_per_class):
        assert set(numbers.values()) == {1.0}
    assert len(scores.metrics()) == 24


@pytest.mark.parametrize("pixels", [1, 2, 5, 9])
def test_shifted_detections_score_less_at_strict_ious(pixels):
    results = detected(objects())
    for entry in results:
        entry["bbox"][0] += pixels
        entry["segmentation"] = rectangle(entry["bbox"], SIZES[entry["image_id"]])
    scores = assert_as_pycocotools(annotated(*objects()), results)
    assert 0 < scores.box["ap"] < 1
    along = list(scores.box_per_iou.values())
    assert list(scores.box_per_iou) == list(IOUS) == [0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95]
    assert along == sorted(along, reverse=True)
    assert sum(along) / 10 == pytest.approx(scores.box["ap"])
    assert (along[0], along[5]) == (scores.box["ap50"], scores.box["ap75"])


def test_classes_are_scored_by_themselves():
    missed = [entry for entry in detected(objects()) if entry["category_id"] != 5]
    scores = assert_as_pycocotools(annotated(*objects()), missed)
    assert scores.box_per_class == scores.mask_per_class == {"coat": 1.0, "shoe": 0.0, "bag": 1.0}


def test_detections_in_a_crowd_cost_nothing():
    crowd = annotation(5, 8, 2, (60, 20, 80, 70), crowd=1)
    inside = [detection(8, 2, (70 + 5 * place, 50, 10, 12), 0.95) for place in range(6)]
    scores = assert_as_pycocotools(annotated(*objects(), crowd), detected(objects()) + inside)
    assert scores.box["ap"] == scores.mask["ap"] == 1.0
    without = assert_as_pycocotools(annotated(*objects()), detected(objects()) + inside)
    assert without.box["ap"] < 1.0


def test_false_positives_in_an_image_without_objects_cost_precision():
    false = [detection(20, 2, (9, 40, 50, 30), 0.99), detection(20, 9, (9, 40, 50, 30), 0.01)]
    scores = assert_as_pycocotools(annotated(*objects()), detected(objects()) + false)
    assert scores.box_per_class["coat"] < 1.0
    # Below every right one, a false one costs nothing.
    assert scores.box_per_class["bag"] == 1.0


def test_of_a_thousand_instances_a_hundred_detections_count():
    boxes = [(5 * (place % 50), 5 * (place // 50), 4, 4) for place in range(1000)]
    crowded = [annotation(number + 1, 20, 2, box) for number, box in enumerate(boxes)]
    results = [detection(20, 2, box, 1 - place / 2000) for place, box in enumerate(boxes)]
    scores = assert_as_pycocotools(annotated(*crowded), results)
    assert [scores.box[name] for name in ("ar1", "ar10", "ar100")] == pytest.approx([0.001, 0.01, 0.1])


def test_more_than_a_hundred_detections_count_where_asked():
    boxes = [(5 * (place % 50), 5 * (place // 50), 4, 4) for place in range(500)]
    crowded = annotated(*(annotation(number + 1, 20, 2, box) for number, box in enumerate(boxes)))
    results = [detection(20, 2, box, 1 - place / 2000) for place, box in enumerate(boxes)]
    scores = coco_scores(crowded, results, masks=False, most=400)
    assert [scores.box[name] for name in ("ar1", "ar10", "ar100", "ar400")] == pytest.approx([0.002, 0.02, 0.2, 0.8])
    assert scores.box["ap"] == pytest.approx(pycocotools_ap(crowded, results, "bbox", 400), abs=1e-6)
    assert scores.box["ap"] > 3 * coco_scores(crowded, results, masks=False).box["ap"]
    assert "AR, 400 each" in scores.text()
    # Fewer than COCO's are COCO's.
    assert "ar100" in coco_scores(crowded, results, masks=False, most=7).box


def test_an_object_of_one_pixel_counts():
    tiny = annotation(1, 3, 2, (30, 70, 1, 1))
    scores = assert_as_pycocotools(annotated(tiny), [detection(3, 2, (30, 70, 1, 1), 0.7)])
    assert scores.box["ap_small"] == scores.mask["ap_small"] == 1.0
    assert assert_as_pycocotools(annotated(tiny), [detection(3, 2, (31, 70, 1, 1), 0.7)]).box["ap"] == 0.0


def test_a_class_or_a_size_without_instances_is_left_out_of_the_mean():
    coat = annotation(1, 3, 2, (10, 20, 20, 20))
    results = [detection(3, 2, (10, 20, 20, 20), 0.7), detection(3, 9, (40, 20, 20, 20), 0.9)]
    scores = assert_as_pycocotools(annotated(coat), results)
    assert scores.box["ap"] == 1.0
    assert scores.box_per_class == {"coat": 1.0, "shoe": None, "bag": None}
    assert scores.box["ap_large"] is None
    flat = scores.metrics()
    assert "box_ap_large" not in flat
    assert flat["mask_ap_small"] == 1.0
    assert json.loads(json.dumps(flat, allow_nan=False)) == flat


def test_no_detection_at_all_scores_zero():
    scores = coco_scores(annotated(*objects()), [], masks=True)
    assert set(scores.metrics().values()) == {0.0}
    assert scores.mask_per_class == {"coat": 0.0, "shoe": 0.0, "bag": 0.0}


def test_polygons_and_plain_run_lengths_are_read():
    polygon, plain = objects()[:2]
    polygon["segmentation"] = [[10.0, 20.0, 40.0, 20.0, 40.0, 60.0, 10.0, 60.0]]
    h, w = SIZES[3]
    plain["segmentation"] = {"size": [h, w], "counts": [70 * h, 60 * h, (w - 130) * h]}
    assert 0 < assert_as_pycocotools(annotated(polygon, plain), detected(objects()[:2])).mask["ap"] < 1


def test_boxes_alone_need_no_masks():
    truth, results = objects(), detected(objects())
    for entry in truth + results:
        del entry["segmentation"]
    scores = assert_as_pycocotools(annotated(*truth), results, masks=False)
    assert scores.box["ap"] == 1.0
    assert scores.mask is scores.mask_per_iou is scores.mask_per_class is None
    assert set(scores.metrics()) == {f"box_{name}" for name in TWELVE}
    assert "mask" not in scores.text()


def test_annotation_ids_do_not_matter():
    numbered = [{**one, "id": 0} for one in objects()]
    assert coco_scores(annotated(*numbered), detected(objects()), masks=True).box["ap"] == 1.0


def test_classes_of_one_name_are_told_apart():
    ground_truth = annotated(*objects()) | {"categories": [{**one, "name": "thing"} for one in CATEGORIES]}
    missed = [entry for entry in detected(objects()) if entry["category_id"] != 5]
    per_class = coco_scores(ground_truth, missed, masks=False).box_per_class
    assert per_class == {"thing (id 2)": 1.0, "thing (id 5)": 0.0, "thing (id 9)": 1.0}


def test_classes_keep_their_names_whatever_the_order_of_the_file():
    ground_truth = annotated(*objects()) | {"categories": CATEGORIES[::-1]}
    missed = [entry for entry in detected(objects()) if entry["category_id"] != 2]
    assert coco_scores(ground_truth, missed, masks=False).box_per_class == {"coat": 0.0, "shoe": 1.0, "bag": 1.0}


def test_nothing_is_printed_and_nothing_given_is_changed(capfd, caplog):
    caplog.set_level(logging.INFO)
    ground_truth, results = random_case(0)
    before = copy.deepcopy((ground_truth, results))
    coco_scores(ground_truth, results, masks=True)
    assert (ground_truth, results) == before
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


def test_the_text_is_a_table_of_percents():
    missed = [entry for entry in detected(objects()) if entry["category_id"] != 5]
    lines = coco_scores(annotated(*objects()[:3]), missed[:2], masks=True).text().splitlines()
    assert lines[0].split() == ["box,", "%", "mask,", "%"]
    assert lines[1].split() == ["AP", "50.00", "50.00"]
    assert lines[-3:] == [
        "coat           100.00   100.00",
        "shoe             0.00     0.00",
        "bag                 -        -",
    ]
    assert len({len(line) for line in lines if line}) == 1


def test_ground_truth_without_instances_is_an_error():
    crowd = annotation(1, 3, 2, (10, 20, 30, 40), crowd=1)
    for annotations in ([], [crowd]):
        with pytest.raises(UserError, match="no annotated instance"):
            coco_scores(annotated(*annotations), detected(objects()), masks=False)


def test_detections_of_unknown_images_and_categories_are_errors():
    for strange in ({"image_id": 77}, {"category_id": 77}):
        results = detected(objects())
        results[2] |= strange
        with pytest.raises(UserError, match=f"has the {next(iter(strange))} 77"):
            coco_scores(annotated(*objects()), results, masks=False)


def test_missing_masks_and_missing_parts_are_errors():
    bare = [{key: value for key, value in one.items() if key != "segmentation"} for one in objects()]
    with pytest.raises(UserError, match="ground truth has annotations without"):
        coco_scores(annotated(*bare), detected(objects()), masks=True)
    with pytest.raises(UserError, match="detections without"):
        coco_scores(annotated(*objects()), [*detected(objects()), {**bare[0], "score": 0.5}], masks=True)
    with pytest.raises(UserError, match="no 'categories'"):
        coco_scores({"images": [], "annotations": []}, [], masks=False)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    with pytest.raises(UserError, match=r'pip install "parhelion\[detection\]"'):
        coco_scores(annotated(*objects()), detected(objects()), masks=False)
