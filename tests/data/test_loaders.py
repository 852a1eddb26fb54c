import gc
import multiprocessing
import random
import re
import signal
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from parhelion.data.images import BadImage
from parhelion.data.loaders import end_workers, go_to, make_loader
from parhelion.data.samples import Sample, Share
from parhelion.data.sources import open_source
from parhelion.data.transforms import Augmentation, Preprocessing, eval_transform, train_transform
from parhelion.errors import UserError

H, W = 7, 13
PREPROCESSING = Preprocessing(image_px=6, mean=(0.5,) * 3, std=(0.5,) * 3)
EVALUATE = eval_transform(PREPROCESSING)
AUGMENT = train_transform(PREPROCESSING, Augmentation(randaugment=5, erase=0.3))


class Numbered(Dataset[Sample]):
    """`count` images; those in `bad` cannot be read."""

    def __init__(self, count: int, bad: tuple[int, ...] = ()) -> None:
        self.count, self.bad = count, bad

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        if index in self.bad:
            return BadImage(f"cannot read the image {index}.png: it is empty"), index, f"{index}.png"
        noise = np.random.default_rng(index).integers(0, 256, (H, W, 3), dtype=np.uint8)
        return Image.fromarray(noise), index, f"{index}.png"


def one_pass(loader: DataLoader) -> tuple[list[int], Tensor]:
    batches = list(loader)
    return torch.cat([b["target"] for b in batches]).tolist(), torch.cat([b["image"] for b in batches])


def test_evaluation_keeps_the_order_and_every_image() -> None:
    batches = list(make_loader(Numbered(7), EVALUATE, batch=3, train=False))
    assert [batch["target"].tolist() for batch in batches] == [[0, 1, 2], [3, 4, 5], [6]]
    first = batches[0]
    assert (first["image"].shape, first["image"].dtype) == ((3, 3, 6, 6), torch.float32)
    assert (first["target"].dtype, first["name"], first["bad"]) == (torch.int64, ["0.png", "1.png", "2.png"], [])
    assert torch.equal(first["image"][1], EVALUATE(Numbered(7)[1][0]))


@pytest.mark.parametrize(("count", "sizes"), [(7, [3, 3]), (6, [3, 3]), (3, [3]), (2, [2]), (1, [1])])
def test_training_drops_an_incomplete_batch_unless_it_is_the_only_one(count: int, sizes: list[int]) -> None:
    loader = make_loader(Numbered(count), EVALUATE, batch=3, train=True)
    assert [len(batch["target"]) for batch in loader] == sizes
    assert len(loader) == len(sizes)


def test_the_same_seed_gives_the_same_batches_with_any_workers_whatever_ran_before() -> None:
    runs = []
    for workers in (0, 2, 1, 0):
        loader = make_loader(Numbered(11), AUGMENT, batch=4, train=True, workers=workers, seed=3)
        runs.append([one_pass(loader) for _ in range(2)])
        random.random(), np.random.rand(3), torch.rand(5)
    for run in runs[1:]:
        for (order, images), (expected_order, expected_images) in zip(run, runs[0], strict=True):
            assert order == expected_order
            assert torch.equal(images, expected_images)


def test_another_seed_and_another_epoch_give_other_orders_and_augmentations() -> None:
    three = make_loader(Numbered(11), AUGMENT, batch=11, train=True, seed=3)
    passes = [one_pass(three), one_pass(three), one_pass(make_loader(Numbered(11), AUGMENT, batch=11, train=True))]
    assert len({tuple(order) for order, _ in passes}) == 3
    assert all(sorted(order) == list(range(11)) for order, _ in passes)
    sorted_images = [images[np.argsort(order)] for order, images in passes]
    assert not torch.equal(sorted_images[0], sorted_images[1])
    assert not torch.equal(sorted_images[0], sorted_images[2])


@pytest.mark.parametrize("workers", [0, 1])
def test_an_epoch_can_be_gone_to(workers: int) -> None:
    def fresh() -> DataLoader:
        return make_loader(Numbered(11), AUGMENT, batch=4, train=True, workers=workers, seed=8)

    straight, resumed = fresh(), fresh()
    epochs = [one_pass(straight) for _ in range(3)]
    go_to(resumed, 2)
    order, images = one_pass(resumed)
    assert order == epochs[2][0]
    assert torch.equal(images, epochs[2][1])


# Checks of types draw random numbers, too.
@pytest.mark.usefixtures("shapes_unchecked")
def test_no_global_generator_moves() -> None:
    before = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    for train in (True, False):
        one_pass(make_loader(Numbered(5), AUGMENT, batch=2, train=train))
    assert random.getstate() == before[0]
    assert np.array_equal(np.random.get_state()[1], before[1])
    assert torch.equal(torch.get_rng_state(), before[2])


def until_refused(loader: DataLoader) -> tuple[list[int], str]:
    """The targets that came before the refusal, and its sentence."""
    seen: list[int] = []
    try:
        for batch in loader:
            seen += batch["target"].tolist()
    except BadImage as bad:
        return seen, str(bad)
    raise AssertionError("nothing was refused")


@pytest.mark.parametrize("workers", [0, 2])
def test_the_first_bad_image_is_refused_in_the_main_process_in_plain_words(workers: int) -> None:
    loader = make_loader(Numbered(9, bad=(4, 8)), EVALUATE, batch=2, train=False, workers=workers)
    seen, sentence = until_refused(loader)
    assert sentence == "cannot read the image 4.png: it is empty"
    assert seen == [0, 1, 2, 3]


def test_a_refusal_leaves_no_cycle_that_would_keep_the_workers_alive() -> None:
    loader = make_loader(Numbered(5, bad=(2,)), EVALUATE, batch=2, train=False, workers=1)
    alive = weakref.ref(loader.dataset)
    gc.disable()
    try:
        until_refused(loader)
        del loader
        assert alive() is None
    finally:
        gc.enable()


def test_a_truncated_file_is_refused_by_name_from_a_worker(pets: Path, broken: Callable[[Path], Path]) -> None:
    file = broken(pets / "train/dog/2.png")
    _, sentence = until_refused(make_loader(open_source(str(pets)).train, AUGMENT, batch=2, train=True, workers=1))
    assert re.fullmatch(rf"cannot read the image {re.escape(str(file))}: .+", sentence)


@pytest.mark.parametrize("workers", [0, 2])
def test_skipped_images_are_told_and_an_all_bad_batch_is_empty(workers: int) -> None:
    loader = make_loader(
        Numbered(6, bad=(1, 2, 3)), EVALUATE, batch=2, train=False, workers=workers, on_bad_image="skip"
    )
    first, second, third = list(loader)
    assert (first["target"].tolist(), first["name"], first["image"].shape) == ([0], ["0.png"], (1, 3, 6, 6))
    assert first["bad"] == ["cannot read the image 1.png: it is empty"]
    assert (second["image"].shape, second["target"].shape, second["name"]) == ((0, 0, 0, 0), (0,), [])
    assert second["target"].dtype == torch.int64
    assert len(second["bad"]) == 2
    assert (third["target"].tolist(), third["bad"]) == ([4, 5], [])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_pass_can_begin_in_the_middle_and_reads_nothing_before_it(workers: int) -> None:
    def fresh(samples: Dataset[Sample]) -> DataLoader:
        return make_loader(samples, AUGMENT, batch=2, train=True, workers=workers, seed=1)

    straight = fresh(Numbered(11))
    epochs = [one_pass(straight) for _ in range(3)]
    # Everything that comes before the fourth batch of the second epoch cannot be read, and need not be.
    resumed = fresh(Numbered(11, bad=tuple(epochs[1][0][:6])))
    go_to(resumed, 1, 3)
    order, images = one_pass(resumed)
    assert order == epochs[1][0][6:]
    assert torch.equal(images, epochs[1][1][6:])
    whole = fresh(Numbered(11))
    go_to(whole, 1, 3)
    one_pass(whole)
    assert one_pass(whole)[0] == epochs[2][0]


@pytest.mark.parametrize("share", [(1, 1), (2, 1), (1, 2), (3, 2)])
def test_processes_and_parts_share_the_images_of_each_update(share: tuple[int, int]) -> None:
    processes, parts = share
    whole = make_loader(Numbered(31), AUGMENT, batch=12, train=True, seed=2)
    updates = [sorted(batch["target"].tolist()) for batch in whole]
    loaders = [
        make_loader(
            Numbered(31),
            AUGMENT,
            batch=12,
            train=True,
            seed=2,
            share=Share(process=process, processes=processes, parts=parts),
        )
        for process in range(processes)
    ]
    assert {len(loader) for loader in loaders} == {len(updates) * parts}
    batches = [[batch["target"].tolist() for batch in loader] for loader in loaders]
    assert {len(batch) for own in batches for batch in own} == {12 // processes // parts}
    for number, update in enumerate(updates):
        mine = [own[number * parts : (number + 1) * parts] for own in batches]
        assert sorted(target for own in mine for batch in own for target in batch) == update


def test_evaluation_is_shared_without_gap_or_repeat() -> None:
    shares = [Share(process=process, processes=3) for process in range(3)]
    loaders = [make_loader(Numbered(7), EVALUATE, batch=2, train=False, share=share) for share in shares]
    assert sorted(target for loader in loaders for target in one_pass(loader)[0]) == list(range(7))


def test_what_cannot_be_shared_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"batch is 10, but it must be a multiple of 6 .*\(processes: 2, parts of each: 3\)"
    ):
        make_loader(Numbered(30), EVALUATE, batch=10, train=True, share=Share(processes=2, parts=3))
    with pytest.raises(UserError, match="batch is 12, in 1 parts on 2 processes, but there are only 7 training images"):
        make_loader(Numbered(7), EVALUATE, batch=12, train=True, share=Share(processes=2))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"batch": 0}, "batch is 0"),
        ({"batch": 1, "workers": -1}, "workers is -1"),
        ({"batch": 1, "on_bad_image": "ignore"}, "on_bad_image is 'ignore'"),
    ],
)
@pytest.mark.usefixtures("shapes_unchecked")
def test_options_that_mean_nothing_are_refused(options: dict[str, object], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        make_loader(Numbered(3), EVALUATE, train=False, **options)


class InterruptHandler(Numbered):
    """The class number of an image is 1 if the process that reads it ignores Ctrl-C."""

    def __getitem__(self, index: int) -> Sample:
        image, _, name = super().__getitem__(index)
        return image, int(signal.getsignal(signal.SIGINT) is signal.SIG_IGN), name


@pytest.mark.usefixtures("ctrl_c_heard")
def test_workers_leave_ctrl_c_to_the_main_process() -> None:
    for workers, ignored in ((2, 1), (0, 0)):
        loader = make_loader(InterruptHandler(4), EVALUATE, batch=2, train=False, workers=workers)
        assert one_pass(loader)[0] == [ignored] * 4


def spin(_image: Image.Image) -> torch.Tensor:
    while True:
        pass


def test_a_worker_that_is_stuck_is_ended_at_once(pets: Path) -> None:
    loader = make_loader(open_source(str(pets)).val, spin, batch=1, train=False, workers=1)
    batches = iter(loader)
    (worker,) = multiprocessing.active_children()
    end_workers(loader)
    worker.join(timeout=60)
    # Any other code would make torch raise an error in this process.
    assert worker.exitcode == 0
    del batches
