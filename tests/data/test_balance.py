from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset

from parhelion.data.balance import Balanced, class_numbers, class_weights, repeats
from parhelion.data.loaders import go_to, make_loader
from parhelion.data.samples import Sample, Share
from parhelion.data.sources import open_source
from parhelion.data.transforms import Augmentation, Preprocessing, train_transform
from parhelion.errors import UserError

# A long tail, with a class that has no images.
COUNTS = {0: 13, 1: 5, 3: 2}
NUMBERS = torch.tensor([number for number, count in COUNTS.items() for _ in range(count)])
AUGMENT = train_transform(Preprocessing(image_px=6, mean=(0.5,) * 3, std=(0.5,) * 3), Augmentation(erase=0.5))


class Grey(Dataset[Sample]):
    """As many images as there are NUMBERS; each image's class number is its index."""

    def __len__(self) -> int:
        return len(NUMBERS)

    def __getitem__(self, index: int) -> Sample:
        return Image.linear_gradient("L").resize((13, 7)).convert("RGB"), index, f"{index}.png"


def order(seed: int) -> list[int]:
    return Balanced(Grey(), NUMBERS).order(torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("seed", range(3))
def test_every_class_comes_equally_often_and_its_images_take_turns(seed: int) -> None:
    drawn = order(seed)
    assert len(drawn) == 20
    by_class = Counter(NUMBERS[drawn].tolist())
    assert sorted(by_class.values()) == [6, 7, 7]
    times = Counter(drawn)
    # Those of the frequent class come once or not at all, the others equally often but for one.
    assert {times[index] for index in range(13)} == {0, 1}
    assert {times[index] for index in range(13, 18)} == {1, 2}
    assert {times[index] for index in (18, 19)} in ({3}, {3, 4})
    # No class has a place of its own.
    assert NUMBERS[drawn].tolist() != sorted(NUMBERS[drawn].tolist())


def test_orders_differ_from_epoch_to_epoch_and_leave_no_image_out_for_ever() -> None:
    orders = [order(seed) for seed in range(9)]
    assert len({tuple(drawn) for drawn in orders}) == 9
    assert {index for drawn in orders for index in drawn} == set(range(20))


def test_repeats_are_counted() -> None:
    assert repeats([4, 2, 4, 4, 2, 7]) == [0, 0, 1, 2, 1, 0]


def balanced_loader(batch: int = 6, share: Share | None = None, workers: int = 0):
    samples = Balanced(Grey(), NUMBERS)
    return make_loader(samples, AUGMENT, batch=batch, train=True, seed=3, share=share, workers=workers)


def test_an_image_that_comes_again_in_an_epoch_looks_different() -> None:
    images = [
        (i, image) for b in balanced_loader(20) for i, image in zip(b["target"].tolist(), b["image"], strict=True)
    ]
    again = [image for index, image in images if index == 18]
    assert len(again) >= 3
    assert not torch.equal(again[0], again[1])
    assert not torch.equal(again[1], again[2])


def test_processes_and_parts_read_disjoint_parts_of_one_balanced_order() -> None:
    whole = balanced_loader(batch=12)
    for _ in range(2):
        updates = [batch["target"].tolist() for batch in whole]
    shared = []
    for process in range(2):
        loader = balanced_loader(12, Share(process=process, processes=2, parts=3))
        go_to(loader, 1)
        shared.append([batch["target"].tolist() for batch in loader])
    # The first update: three parts of each process, of two images each.
    together = [index for part in range(3) for process in range(2) for index in shared[process][part]]
    assert together == updates[0]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_balanced_pass_can_begin_in_the_middle(workers: int) -> None:
    straight, resumed = balanced_loader(), balanced_loader(workers=workers)
    batches = [list(straight), list(straight)][1]
    go_to(resumed, 1, 1)
    for ours, theirs in zip(resumed, batches[1:], strict=True):
        assert ours["target"].tolist() == theirs["target"].tolist()
        assert torch.equal(ours["image"], theirs["image"])


def test_weights_are_inverse_to_frequency_and_1_on_average_over_the_images() -> None:
    weights = class_weights(NUMBERS, 5)
    assert weights.tolist() == pytest.approx([20 / (3 * 13), 20 / (3 * 5), 0, 20 / (3 * 2), 0])
    assert weights[NUMBERS].mean().item() == pytest.approx(1)
    assert class_weights(torch.arange(12) % 3, 3).tolist() == [1, 1, 1]


def test_every_source_with_an_order_knows_the_classes_of_its_images(
    pets: Path, picture: Callable[[int], Image.Image]
) -> None:
    picture(9).save(pets / "train/cat/9.png")
    for spec, options in ((str(pets), {}), ("torch/image_folder", {"data_dir": pets})):
        source = open_source(spec, splits=("train",), **options)
        numbers = class_numbers(source.train, source=spec, field="sampling")
        assert numbers.tolist() == [0] * 4 + [1] * 4 == [source.train[index][1] for index in range(8)]
    bundled = open_source("bundled", splits=("train",))
    assert torch.bincount(class_numbers(bundled.train, source="bundled", field="sampling")).tolist() == [1000] * 10


def test_a_stream_cannot_be_balanced() -> None:
    class Numberless(Dataset[Sample]):
        """Does not know its classes."""

    with pytest.raises(UserError, match="sampling is balanced, but wds/x is a stream: how often its classes come"):
        class_numbers(Numberless(), source="wds/x", field="sampling")
