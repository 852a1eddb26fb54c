import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from parhelion.classification.scores import merged, outcome
from parhelion.errors import UserError

CLASSES = 7


class Echo(nn.Module):
    """Takes its images for logits; notes the mode it runs in."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.modes = []

    def forward(self, images):
        self.modes.append(self.training)
        return images * self.weight


def batches(logits, target, sizes=(3, 2)):
    for images, classes in zip(logits.split(sizes), target.split(sizes), strict=True):
        yield {"image": images, "target": classes, "name": ["?"] * len(images), "bad": []}


def test_scores_are_those_of_hand_counted_logits():
    # The true class 2 comes first, second, fifth, sixth and last.
    logits = torch.tensor([[0, 0, 9.0, 1, 2, 3, 4]] * 5)
    logits[1, 0], logits[2, [0, 1, 5, 6]], logits[3, [0, 1, 4, 5, 6]] = 10, 11.0, 12.0
    logits[4, 2] = -1
    scores = outcome(Echo(), batches(logits, torch.full((5,), 2))).metrics()
    assert scores["top1"] == pytest.approx(1 / 5)
    assert scores["top5"] == pytest.approx(3 / 5)
    expected = [math.log(sum(math.exp(v) for v in row)) - row[2] for row in logits.tolist()]
    assert scores["loss"] == pytest.approx(sum(expected) / 5, rel=1e-6)
    assert scores["images"] == 5


def test_with_fewer_than_five_classes_top5_is_always_right():
    scores = outcome(Echo(), batches(torch.randn(5, 3), torch.tensor([0, 1, 2, 1, 0]))).metrics()
    assert scores["top5"] == 1.0


def test_evaluation_mode_is_used_and_put_back():
    model = Echo().train()
    outcome(model, batches(torch.randn(5, CLASSES), torch.zeros(5).long()))
    assert model.modes == [False, False]
    assert model.training


def test_skipped_images_are_counted_and_empty_batches_passed_over():
    empty = {"image": torch.empty(0, 0, 0, 0), "target": torch.empty(0).long(), "bad": ["a.jpg is empty"]}
    full = list(batches(torch.randn(5, CLASSES), torch.zeros(5).long()))
    found = outcome(Echo(), [full[0], empty, full[1]])
    assert found.metrics()["skipped"] == 1
    assert found.metrics()["images"] == 5
    with pytest.raises(UserError, match=r"none of the 1 images could be used; the first: a\.jpg is empty"):
        outcome(Echo(), [empty]).metrics()
    with pytest.raises(UserError, match="no image to evaluate"):
        outcome(Echo(), []).metrics()


def test_confusion_counts_true_classes_by_row():
    logits, target = torch.eye(CLASSES)[[0, 3, 3, 6, 5]], torch.tensor([0, 2, 3, 2, 5])
    confusion = outcome(Echo(), batches(logits, target)).confusion(CLASSES)
    assert confusion.sum() == 5
    assert [confusion[true, taken].item() for true, taken in [(0, 0), (2, 3), (2, 6), (3, 3), (5, 5)]] == [1] * 5


def test_parts_merge_into_the_whole():
    logits, target = torch.randn(5, CLASSES), torch.randint(CLASSES, (5,))
    whole = outcome(Echo(), batches(logits, target))
    parts = [outcome(Echo(), [batch]) for batch in batches(logits, target)]
    nothing = outcome(Echo(), [])
    assert merged([nothing, *parts, nothing]).metrics() == whole.metrics()
    with pytest.raises(UserError, match="no image to evaluate"):
        merged([nothing, nothing]).metrics()


def test_images_that_any_process_left_out_are_counted_together():
    seen = outcome(Echo(), batches(torch.randn(5, CLASSES), torch.arange(5)))
    parts = [replace(seen, skipped=skipped) for skipped in ((), ("a cannot be read",), ("b cannot be read",))]
    assert merged(parts).skipped == ("a cannot be read", "b cannot be read")
    assert merged(parts).metrics()["skipped"] == 2
