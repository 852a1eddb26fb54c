import gzip
import io
import json
import re
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from parhelion.data.images import BadImage
from parhelion.data.loaders import go_to, make_loader
from parhelion.data.samples import Share
from parhelion.data.sources import Source, open_source
from parhelion.data.sources.shards import Shard
from parhelion.data.transforms import Augmentation, Preprocessing, eval_transform, train_transform
from parhelion.errors import UserError

Picture = Callable[[int], Image.Image]

PREPROCESSING = Preprocessing(image_px=6, mean=(0.5,) * 3, std=(0.5,) * 3)
TRANSFORM = eval_transform(PREPROCESSING)
AUGMENT = train_transform(PREPROCESSING, Augmentation(randaugment=5, erase=0.3))
LENGTHS = {"train": [5, 3, 4], "validation": [2, 3]}


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def shards(tmp_path: Path, picture: Picture) -> Path:
    """Shards whose samples are numbered through in each split; the number is the class."""
    splits: dict[str, Any] = {}
    for split, lengths in LENGTHS.items():
        names = [f"{split}-{number}.tar" for number in range(len(lengths))]
        target = 0
        for name, length in zip(names, lengths, strict=True):
            with tarfile.open(tmp_path / name, "w") as tar:
                for _ in range(length):
                    add(tar, f"img.d/{target:03}.PNG", png(picture(target)))
                    add(tar, f"img.d/{target:03}.cls", str(target).encode())
                    target += 1
        splits[split] = {"name": split, "filenames": names, "shard_lengths": lengths, "num_samples": target}
    write_info(tmp_path, {"num_classes": 12, "splits": splits})
    return tmp_path


def write_info(folder: Path, info: dict[str, Any]) -> None:
    (folder / "_info.json").write_text(json.dumps(info))


def change_info(folder: Path, **changes: Any) -> None:
    info = json.loads((folder / "_info.json").read_text()) | changes
    write_info(folder, {key: value for key, value in info.items() if value is not None})


def change_split(folder: Path, split: str, **changes: Any) -> None:
    splits = json.loads((folder / "_info.json").read_text())["splits"]
    splits[split] |= changes
    change_info(folder, splits=splits)


def opened(folder: Path, **options: Any) -> Source:
    return open_source("wds/numbers", data_dir=folder, **options)


def targets(folder: Path, passes: int = 1, **options: Any) -> list[list[int]]:
    source = opened(folder)
    loader = make_loader(source.train if options["train"] else source.val, TRANSFORM, **options)
    return [[t for batch in loader for t in batch["target"].tolist()] for _ in range(passes)]


def refused(folder: Path | None, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        opened(folder, **options)
    return str(caught.value)


def test_shards_give_images_with_class_and_name(shards: Path, picture: Picture) -> None:
    source = opened(shards)
    image, target, name = list(source.val)[3]
    assert (image.size, image.tobytes(), target) == ((13, 7), picture(3).tobytes(), 3)
    assert name == "validation-1.tar/img.d/003"
    assert (len(source.val), source.class_names[:2], len(source.class_names)) == (5, ("0", "1"), 12)
    assert opened(shards, in_chans=1, splits=("val",)).train is None


def test_class_names_are_those_of_the_info_file(shards: Path) -> None:
    change_info(shards, num_classes=None, class_names=[f"digit {n}" for n in range(12)])
    assert opened(shards).class_names[11] == "digit 11"


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_workers_read_every_evaluation_image_once(shards: Path, workers: int) -> None:
    assert sorted(targets(shards, batch=2, train=False, workers=workers)[0]) == [0, 1, 2, 3, 4]


def test_training_shards_are_evaluated_in_order_each_image_once(shards: Path) -> None:
    train = opened(shards).train
    loader = make_loader(train.in_order(), TRANSFORM, batch=5, train=False)
    assert [batch["target"].tolist() for batch in loader] == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [10, 11]]
    assert train.train


def test_the_test_split_is_the_one_of_that_name(shards: Path) -> None:
    with pytest.raises(UserError, match=r"has the splits train, validation, but it should have test$"):
        opened(shards, splits=("test",))
    info = json.loads((shards / "_info.json").read_text())
    info["splits"]["test"] = info["splits"].pop("validation")
    write_info(shards, info)
    assert [target for _, target, _ in opened(shards, splits=("test",)).test] == [0, 1, 2, 3, 4]


def test_training_reads_every_image_and_fills_the_last_batch(shards: Path) -> None:
    for order in targets(shards, passes=2, batch=5, train=True):
        assert len(order) == 15
        assert sorted(order[:12]) == list(range(12))


def test_training_workers_take_turns_with_whole_batches(shards: Path) -> None:
    loader = make_loader(opened(shards).train, TRANSFORM, batch=4, train=True, workers=2)
    batches = [batch["name"] for batch in loader]
    assert [len(names) for names in batches] == [4] * 3
    assert len(loader) == 3
    # What one reads the other does not.
    first, second = ({name.partition("/")[0] for names in batches[w::2] for name in names} for w in (0, 1))
    assert not first & second
    assert len(first | second) == 3


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("done", [1, 2, 3])
def test_a_pass_can_begin_in_the_middle(shards: Path, workers: int, done: int) -> None:
    def fresh() -> Any:
        return make_loader(opened(shards).train, AUGMENT, batch=3, train=True, workers=workers, seed=4)

    straight, resumed = fresh(), fresh()
    epochs = [[(batch["name"], batch["image"]) for batch in straight] for _ in range(3)]
    go_to(resumed, 1, done)
    for expected in (epochs[1][done:], epochs[2]):
        found = [(batch["name"], batch["image"]) for batch in resumed]
        assert [names for names, _ in found] == [names for names, _ in expected]
        assert all(torch.equal(ours, theirs) for (_, ours), (_, theirs) in zip(found, expected, strict=True))


@pytest.mark.parametrize("parts", [1, 2])
def test_uneven_shards_give_every_process_equally_many_batches(shards: Path, parts: int) -> None:
    loaders = [
        make_loader(
            opened(shards).train,
            TRANSFORM,
            batch=4,
            train=True,
            share=Share(process=process, processes=2, parts=parts),
        )
        for process in range(2)
    ]
    batches = [[batch["name"] for batch in loader] for loader in loaders]
    assert [len(own) for own in batches] == [len(loader) for loader in loaders] == [3 * parts] * 2
    assert {len(names) for own in batches for names in own} == {2 // parts}
    first, second = ({name.partition("/")[0] for names in own for name in names} for own in batches)
    assert not first & second


def test_processes_share_the_evaluation(shards: Path) -> None:
    loaders = [
        make_loader(opened(shards).val, TRANSFORM, batch=2, train=False, share=Share(process=process, processes=3))
        for process in range(3)
    ]
    found = [t for loader in loaders for batch in loader for t in batch["target"].tolist()]
    assert sorted(found) == [0, 1, 2, 3, 4]


def test_too_few_shards_for_the_processes_are_refused(shards: Path) -> None:
    with pytest.raises(UserError, match=r"3 training shards in .* cannot feed 2 workers on each of 2 processes"):
        make_loader(opened(shards).train, TRANSFORM, batch=4, train=True, workers=2, share=Share(processes=2))


@pytest.mark.parametrize("workers", [0, 2])
def test_the_order_repeats_with_the_seed_and_differs_between_epochs(shards: Path, workers: int) -> None:
    runs = [targets(shards, passes=3, batch=4, train=True, workers=workers, seed=seed) for seed in (1, 1, 2)]
    assert runs[0] == runs[1]
    assert len({tuple(order) for order in runs[0] + runs[2]}) == 6


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_can_go_to_an_epoch(shards: Path, workers: int) -> None:
    epochs = targets(shards, passes=3, batch=4, train=True, workers=workers)
    loader = make_loader(opened(shards).train, TRANSFORM, batch=4, train=True, workers=workers)
    for epoch in (2, 0, 0):
        go_to(loader, epoch)
        assert [t for batch in loader for t in batch["target"].tolist()] == epochs[epoch]


def test_a_label_may_come_from_the_json_file(tmp_path: Path, picture: Picture) -> None:
    with tarfile.open(tmp_path / "only.tar", "w") as tar:
        add(tar, "a.png", png(picture(0)))
        add(tar, "a.json", b'{"kind": 1}')
    split = {"filenames": ["only.tar"], "shard_lengths": [1], "alt_label": "kind"}
    write_info(tmp_path, {"class_names": ["cat", "dog"], "splits": {"val": split}})
    assert [target for _, target, _ in opened(tmp_path, splits=("val",)).val] == [1]


def test_samples_that_cannot_be_used_come_as_values(tmp_path: Path, picture: Picture) -> None:
    with tarfile.open(tmp_path / "mixed.tar", "w") as tar:
        add(tar, "a.png", png(picture(0)))
        add(tar, "a.cls", b"2")
        add(tar, "b.png", b"no picture")
        add(tar, "b.cls", b"1")
        add(tar, "c.txt", b"no picture at all")
        add(tar, "d.png", png(picture(0)))
    split = {"filenames": ["mixed.tar"], "shard_lengths": [4]}
    write_info(tmp_path, {"num_classes": 2, "splits": {"val": split}})
    found = [str(image) for image, _, _ in opened(tmp_path, splits=("val",)).val if isinstance(image, BadImage)]
    assert found == [
        "cannot use the image mixed.tar/a: its .cls file is no number from 0 to 1",
        "cannot read the image mixed.tar/b: it is empty or in no image format that Pillow reads",
        "cannot read the image mixed.tar/c: the sample holds txt only",
        "cannot use the image mixed.tar/d: it has no .cls file, only png",
    ]


def test_a_label_that_is_in_the_json_file_only_is_asked_for_by_name(tmp_path: Path, picture: Picture) -> None:
    with tarfile.open(tmp_path / "only.tar", "w") as tar:
        add(tar, "a.png", png(picture(0)))
        add(tar, "a.json", b'{"kind": 1}')
    write_info(tmp_path, {"num_classes": 2, "splits": {"val": {"filenames": ["only.tar"], "shard_lengths": [1]}}})
    (bad,) = [image for image, _, _ in opened(tmp_path, splits=("val",)).val]
    assert str(bad) == (
        "cannot use the image only.tar/a: it has no .cls file; if the class number is in its .json file, name the "
        'field in _info.json: "alt_label" of the split'
    )


# Truncated between two samples, nothing tells that the first is whole.
@pytest.mark.parametrize(("length", "read"), [(2048, 0), (3000, 1), (700, 0)], ids=["between", "within", "header"])
def test_a_truncated_shard_is_named_and_the_others_are_read(shards: Path, length: int, read: int) -> None:
    file = shards / "validation-0.tar"
    file.write_bytes(file.read_bytes()[:length])
    loader = make_loader(opened(shards).val, TRANSFORM, batch=9, train=False, on_bad_image="skip")
    (batch,) = list(loader)
    assert batch["target"].tolist() == [*range(read), 2, 3, 4]
    (sentence,) = batch["bad"]
    assert sentence == f"cannot read more than {read} of 2 samples of {file}: it is truncated"


@pytest.mark.parametrize("ending", ["tar", "tar.gz"])
def test_a_shard_truncated_between_the_files_of_a_sample_lacks_that_sample_not_its_label(
    shards: Path, ending: str
) -> None:
    file = shards / "validation-0.tar"
    with tarfile.open(file) as tar:
        whole, last = file.read_bytes(), tar.getmembers()[-1]
    # The image of the last sample is whole, its label is not there.
    data = whole[: last.offset]
    if ending == "tar.gz":
        file = file.rename(shards / "validation-0.tar.gz")
        data = gzip.compress(data)
    file.write_bytes(data)
    change_split(shards, "validation", filenames=[file.name, "validation-1.tar"])
    (batch,) = list(make_loader(opened(shards).val, TRANSFORM, batch=9, train=False, on_bad_image="skip"))
    assert batch["target"].tolist() == [0, 2, 3, 4]
    assert batch["bad"] == [f"cannot read more than 1 of 2 samples of {file}: it is truncated"]


def test_a_shard_with_a_damaged_header_is_not_taken_for_a_short_one(shards: Path) -> None:
    file = shards / "validation-0.tar"
    with tarfile.open(file) as tar:
        at = tar.getmembers()[2].offset
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(data)
    (batch,) = list(make_loader(opened(shards).val, TRANSFORM, batch=9, train=False, on_bad_image="skip"))
    assert batch["target"].tolist() == [2, 3, 4]
    assert batch["bad"] == [f"cannot read more than 0 of 2 samples of {file}: it is damaged (bad checksum)"]


@pytest.mark.parametrize("workers", [0, 2])
def test_empty_shards_are_dealt_to_nobody(shards: Path, workers: int) -> None:
    with tarfile.open(shards / "empty.tar", "w"):
        pass
    (shards / "nothing.tar").touch()
    names = ["nothing.tar", "train-0.tar", "empty.tar", "train-2.tar"]
    change_split(shards, "train", filenames=names, shard_lengths=[0, 5, 0, 4])
    (order,) = targets(shards, batch=3, train=True, workers=workers)
    assert len(order) == 9
    # Two readers start over where their own shard holds too few.
    assert set(order) == {*range(5), *range(8, 12)} if not workers else set(order) <= {*range(5), *range(8, 12)}
    with pytest.raises(UserError, match=r"2 training shards in .* cannot feed 3 workers"):
        targets(shards, batch=3, train=True, workers=3)


def test_a_reader_whose_shards_give_nothing_is_one_sentence(shards: Path) -> None:
    with tarfile.open(shards / "train-1.tar", "w"):
        pass
    told = []
    for process in range(2):
        source = opened(shards).train
        # As if it could still happen: a reader would start over for ever.
        source.shards = [source.shards[0], Shard(shards / "train-1.tar", 0)]
        share = Share(process=process, processes=2)
        try:
            list(make_loader(source, TRANSFORM, batch=2, train=True, share=share))
        except BadImage as bad:
            told.append(str(bad))
    assert told == [f"cannot read any sample of {shards / 'train-1.tar'}"]


@pytest.mark.parametrize("workers", [0, 1])
def test_lengths_that_are_too_small_are_told_before_images_are_lost(shards: Path, workers: int) -> None:
    change_split(shards, "train", shard_lengths=[5, 2, 4])
    loader = make_loader(opened(shards).train, TRANSFORM, batch=4, train=True, workers=workers)
    sentence = f"cannot use the shard {shards / 'train-1.tar'}: it holds more than the 2 samples that shard_lengths"
    with pytest.raises(BadImage, match=sentence):
        list(loader)


def test_lengths_that_are_too_large_are_told(shards: Path) -> None:
    change_split(shards, "train", shard_lengths=[5, 7, 4])
    sentence = rf"more than 3 of 7 samples of {shards / 'train-1.tar'}: it holds no more; correct shard_lengths"
    with pytest.raises(BadImage, match=sentence):
        list(make_loader(opened(shards).train, TRANSFORM, batch=4, train=True))


@pytest.mark.parametrize(
    ("lengths", "sentence"),
    [
        ([0, 0, 0], '"shard_lengths" of split train of .* says 0 for shards that are not empty: .*train-0.tar, .*'),
        ([5, -3, "4"], 'should be whole numbers, at least 0, not -3, "4"'),
        ([5, True, 4.0], "should be whole numbers, at least 0, not true, 4.0"),
    ],
)
def test_lengths_that_cannot_be_are_refused(shards: Path, lengths: list[Any], sentence: str) -> None:
    change_split(shards, "train", shard_lengths=lengths)
    assert re.search(sentence, refused(shards))


def test_a_split_without_samples_is_refused(shards: Path) -> None:
    with tarfile.open(shards / "empty.tar", "w"):
        pass
    change_split(shards, "validation", filenames=["empty.tar"], shard_lengths=[0])
    assert refused(shards).endswith('has no sample: its "shard_lengths" are all 0')


def test_more_workers_than_training_shards_are_refused(shards: Path) -> None:
    with pytest.raises(UserError, match=r"3 training shards in .* cannot feed 4 workers; give at least as many shards"):
        make_loader(opened(shards).train, TRANSFORM, batch=2, train=True, workers=4)


def test_what_the_info_file_lacks_is_asked_for(shards: Path) -> None:
    assert "needs a data_dir" in refused(None)
    assert "cannot be downloaded" in refused(shards, download=True)
    change_info(shards, num_classes=None)
    assert 'add "class_names": [...]' in refused(shards)
    change_info(shards, num_classes=12)
    splits = json.loads((shards / "_info.json").read_text())["splits"]
    change_info(shards, splits={"train": splits["train"], "holdout": {}})
    assert "has the splits train, holdout, but it should have val or validation" in refused(shards)
    change_info(shards, splits={"train": {"filenames": ["train-0.tar"]}, "val": {}})
    assert 'should list its "filenames" and as many "shard_lengths"' in refused(shards)
    change_info(shards, splits=splits)
    (shards / "train-1.tar").unlink()
    assert refused(shards).endswith("are missing in " + f"{shards}: train-1.tar")
    (shards / "_info.json").write_text("{")
    assert "is not valid JSON" in refused(shards)
    (shards / "_info.json").unlink()
    assert "needs a file _info.json beside its shards" in refused(shards)


def test_skipping_leaves_no_gap_in_the_image_tensor(shards: Path) -> None:
    change_info(shards, num_classes=3)
    (batch,) = list(make_loader(opened(shards).val, TRANSFORM, batch=9, train=False, on_bad_image="skip"))
    assert (batch["target"].tolist(), len(batch["bad"])) == ([0, 1, 2], 2)
    assert torch.isfinite(batch["image"]).all()
    assert batch["image"].shape == (3, 3, 6, 6)
