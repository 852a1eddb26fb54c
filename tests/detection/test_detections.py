import json
import sys

import numpy as np
import pycocotools.mask as coco_masks
import pytest
import torch

from parhelion.detection.detections import Found, truth
from parhelion.detection.masks import pasted
from parhelion.errors import UserError

N, M, H, W = 3, 5, 37, 53
NAMES = ["coat", "shoe", "bag"]


@pytest.fixture
def found():
    return Found(
        image_id=41,
        size=(H, W),
        boxes=torch.tensor([[2.5, 4.0, 20.0, 30.5], [0.0, 0.0, 53.0, 37.0], [30.2, 3.0, 52.9, 11.0]]),
        labels=torch.tensor([2, 1, 3]),
        scores=torch.tensor([0.9, 0.5, 0.125]),
        masks=torch.rand(N, M, M, generator=torch.Generator().manual_seed(0)),
    )


@pytest.fixture
def boxes_only(found):
    return Found(image_id=41, size=(H, W), boxes=found.boxes, labels=found.labels, scores=found.scores)


@pytest.fixture
def nothing(found):
    return found.above(2.0)


def test_above_keeps_those_with_at_least_the_score_in_their_order(found, boxes_only):
    kept = found.above(0.5)
    assert len(kept) == 2
    assert kept.labels.tolist() == [2, 1]
    assert torch.equal(kept.boxes, found.boxes[:2])
    assert torch.equal(kept.masks, found.masks[:2])
    assert (kept.image_id, kept.size) == (41, (H, W))
    assert boxes_only.above(0.6).masks is None


def test_best_keeps_the_first(found):
    assert found.best(2).labels.tolist() == [2, 1]
    assert len(found.best(9)) == N


def test_results_are_cocos_entries(found):
    entries = found.results([7, 90, 1])
    assert [entry["category_id"] for entry in entries] == [90, 7, 1]
    assert {entry["image_id"] for entry in entries} == {41}
    assert entries[0]["bbox"] == [2.5, 4.0, 17.5, 26.5]
    assert entries[1]["score"] == 0.5
    for entry, mask, box in zip(entries, found.masks, found.boxes, strict=True):
        assert np.array_equal(coco_masks.decode(entry["segmentation"]), pasted(mask, box, (H, W)).numpy())


def test_results_survive_a_json_file(found):
    assert json.loads(json.dumps(found.results([7, 90, 1]))) == found.results([7, 90, 1])


def test_results_of_boxes_alone_have_no_segmentation(boxes_only):
    assert all(set(entry) == {"image_id", "category_id", "bbox", "score"} for entry in boxes_only.results([7, 90, 1]))


def test_results_of_nothing_are_no_entries(nothing):
    assert nothing.results([7, 90, 1]) == []


@pytest.mark.parametrize("label", [0, 4, -1])
def test_a_label_without_a_category_is_named(found, label):
    found.labels[1] = label
    with pytest.raises(UserError, match=f"the label {label}, but the 3 category ids stand for labels 1 to 3"):
        found.results([7, 90, 1])
    with pytest.raises(UserError, match=f"the label {label}, but the 3 class names"):
        found.as_supervision(NAMES)


def test_supervision_gets_the_same_detections(found):
    detections = found.as_supervision(NAMES)
    assert np.array_equal(detections.xyxy, found.boxes.numpy())
    assert np.array_equal(detections.confidence, found.scores.numpy())
    assert detections.class_id.tolist() == [1, 0, 2]
    assert detections.data["class_name"].tolist() == ["shoe", "coat", "bag"]
    whole = [pasted(mask, box, (H, W)).numpy() for mask, box in zip(found.masks, found.boxes, strict=True)]
    assert np.array_equal(np.asarray(detections.mask), np.stack(whole))


def test_supervision_can_filter_and_draw_them(found):
    from supervision import MaskAnnotator

    detections = found.as_supervision(NAMES)
    assert detections[detections.confidence > 0.4].data["class_name"].tolist() == ["shoe", "coat"]
    picture = np.zeros((H, W, 3), dtype=np.uint8)
    assert MaskAnnotator().annotate(picture, detections).any()


def test_supervision_gets_boxes_alone_and_nothing_at_all(boxes_only, nothing):
    assert boxes_only.as_supervision(NAMES).mask is None
    assert len(nothing.as_supervision(NAMES)) == 0


def test_supervision_gets_a_mask_outside_the_image_as_an_empty_one(found):
    found.boxes[1] = torch.tensor([60.0, 2.0, 70.0, 9.0])
    assert not np.asarray(found.as_supervision(NAMES).mask)[1].any()


def test_changing_supervisions_arrays_changes_nothing_here(found):
    before = found.boxes.clone()
    found.as_supervision(NAMES).xyxy[:] = -1
    assert torch.equal(found.boxes, before)


def test_a_missing_package_is_named(found, monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(UserError, match=r'supervision, which is not installed: pip install "parhelion\[detection\]"'):
        found.as_supervision(NAMES)


def test_the_truth_has_score_one_and_its_masks_come_back_in_place():
    size = (137, 153)
    rows, cols = torch.meshgrid(torch.arange(137), torch.arange(153), indexing="ij")
    disc = (rows - 55) ** 2 + (cols - 90) ** 2 <= 40**2
    true = truth(41, size, torch.tensor([[50, 15, 131, 96]]), torch.tensor([3]), disc[None])
    assert true.scores.tolist() == [1.0]
    assert true.boxes.dtype == torch.float32
    back = pasted(true.masks[0], true.boxes[0], size)
    assert (back & disc).sum() / (back | disc).sum() > 0.95


def test_the_truth_of_an_empty_image_has_no_instance():
    none = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)
    assert len(truth(41, (H, W), *none)) == 0
    assert truth(41, (H, W), *none, torch.zeros(0, H, W)).results([7]) == []


def test_true_masks_of_a_smaller_image_stand_in_the_same_boxes():
    size, small = (137, 153), (70, 80)
    rows, cols = torch.meshgrid(torch.arange(70) * 137 / 70, torch.arange(80) * 153 / 80, indexing="ij")
    disc = (rows - 55) ** 2 + (cols - 90) ** 2 <= 40**2
    boxes, labels = torch.tensor([[50, 15, 131, 96]]), torch.tensor([3])
    # One at a time, as an iterator gives them.
    true = truth(41, size, boxes, labels, iter(disc[None]))
    assert disc.shape == small
    back = pasted(true.masks[0], true.boxes[0], size)
    rows, cols = torch.meshgrid(torch.arange(137), torch.arange(153), indexing="ij")
    whole = (rows - 55) ** 2 + (cols - 90) ** 2 <= 40**2
    assert (back & whole).sum() / (back | whole).sum() > 0.93
