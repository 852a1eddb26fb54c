import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from timm.data import IterableImageDataset

from parhelion.data.images import BadImage
from parhelion.data.loaders import go_to, make_loader
from parhelion.data.samples import Share
from parhelion.data.sources import hugging_face, open_source, tensorflow_sets
from parhelion.data.sources.tensorflow_sets import TimmStream
from parhelion.data.transforms import Preprocessing, eval_transform
from parhelion.errors import UserError

TRANSFORM = eval_transform(Preprocessing(image_px=6, mean=(0.5,) * 3, std=(0.5,) * 3))


def refused(spec: str, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        open_source(spec, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def write_idx(file: Path, array: np.ndarray) -> None:
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    file.write_bytes(header + array.astype(np.uint8).tobytes())


@pytest.fixture
def fashion(tmp_path: Path) -> Path:
    """Five training and three test images in torchvision's own files."""
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for prefix, count in (("train", 5), ("t10k", 3)):
        write_idx(raw / f"{prefix}-images-idx3-ubyte", np.arange(count * 28 * 28).reshape(count, 28, 28) % 251)
        write_idx(raw / f"{prefix}-labels-idx1-ubyte", np.arange(count) + (4 if prefix == "train" else 0))
    return tmp_path


def test_torchvision_images_are_opened_by_timms_name(fashion: Path) -> None:
    source = open_source("torch/fashion_mnist", data_dir=fashion, in_chans=1)
    image, target, name = source.train[3]
    assert (image.mode, target, name) == ("L", 7, "torch/fashion_mnist:train/3")
    assert image.getpixel((9, 2)) == (3 * 784 + 2 * 28 + 9) % 251
    assert (len(source.train), len(source.val), source.class_names[9]) == (5, 3, "Ankle boot")
    assert open_source("torch/fashion_mnist", data_dir=fashion, splits=("val",)).val[0][0].mode == "RGB"


def test_a_torchvision_folder_reports_bad_files_by_name(pets: Path, broken: Callable[[Path], Path]) -> None:
    file = broken(pets / "train/cat/1.png")
    source = open_source("torch/image_folder", data_dir=pets)
    assert (source.class_names, len(source.train), len(source.val)) == (("cat", "dog"), 7, 3)
    image, _, name = source.train[1]
    assert isinstance(image, BadImage)
    assert (str(file) in str(image), name) == (True, str(file))


def test_a_torchvision_folder_without_evaluation_images_is_refused(pets: Path) -> None:
    (pets / "val").rename(pets / "spare")
    assert "differ in their classes: cat, dog and spare, train" in refused("torch/image_folder", data_dir=pets)


def test_torchvisions_test_images_are_those_it_is_evaluated_on_or_have_a_folder(fashion: Path, pets: Path) -> None:
    source = open_source("torch/fashion_mnist", data_dir=fashion, splits=("val", "test"))
    assert [source.test[index][1] for index in range(3)] == [source.val[index][1] for index in range(3)]
    assert "come without their classes; evaluate on val" in refused(
        "torch/places365", data_dir=fashion, splits=("test",)
    )
    assert f"has no test/ in {pets}" in refused("torch/image_folder", data_dir=pets, splits=("test",))
    (pets / "val").rename(pets / "test")
    assert len(open_source("torch/image_folder", data_dir=pets, splits=("test",)).test) == 3


def test_torchvision_names_and_places_are_checked(tmp_path: Path) -> None:
    assert "did you mean cifar10" in refused("torch/cifar11", data_dir=tmp_path)
    assert "the names after torch/ are cifar10," in refused("torch/zzz", data_dir=tmp_path)
    assert "needs a data_dir" in refused("torch/mnist")
    assert f"cannot open 'torch/mnist' in {tmp_path}: Dataset not found" in refused("torch/mnist", data_dir=tmp_path)


@pytest.mark.parametrize(
    ("module", "spec", "advice"),
    [
        (hugging_face, "hfds/cifar10", "pip install datasets"),
        (tensorflow_sets, "tfds/cifar10", "pip install tensorflow-datasets tensorflow"),
    ],
)
def test_a_missing_package_is_named_with_the_command(
    module: Any, spec: str, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    assert refused(spec).endswith(advice)


needs_datasets = pytest.mark.skipif(
    getattr(importlib.util.find_spec("datasets"), "origin", None) is None, reason="the package datasets is absent"
)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


@needs_datasets
@pytest.mark.usefixtures("offline")
def test_a_local_hugging_face_folder_gives_images_with_class_and_path(
    pets: Path, tmp_path: Path, broken: Callable[[Path], Path]
) -> None:
    file = broken(pets / "val/dog/1.png")
    source = open_source(f"hfds/{pets}", data_dir=tmp_path / "cache")
    assert source.class_names == ("cat", "dog")
    image, target, name = source.train[5]
    assert (image.size, target, name) == ((13, 7), 1, str(pets / "train/dog/2.png"))
    bad = source.val[2][0]
    assert isinstance(bad, BadImage)
    assert str(file) in str(bad)
    batch = next(iter(make_loader(source.train, TRANSFORM, batch=7, train=False, workers=1)))
    assert batch["target"].tolist() == [0, 0, 0, 1, 1, 1, 1]


def stored_columns(folder: Path, columns: dict[str, list[Any]], features: dict[str, Any], split: str = "train") -> str:
    import datasets

    folder.mkdir(exist_ok=True)
    table = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    table.to_parquet(folder / f"{split}.parquet")
    return f"hfds/{folder}"


@needs_datasets
@pytest.mark.usefixtures("offline")
def test_hugging_face_columns_of_another_name_are_found(tmp_path: Path, pets: Path) -> None:
    from datasets import ClassLabel
    from datasets import Image as ImageColumn

    rows = {"img": [str(pets / "val/cat/0.png"), None], "fine_label": [1, 0]}
    spec = stored_columns(
        tmp_path / "other", rows, {"img": ImageColumn(), "fine_label": ClassLabel(names=["up", "down"])}
    )
    source = open_source(spec, data_dir=tmp_path / "cache", splits=("train",))
    assert (source.class_names, source.train[0][0].size, source.train[0][1]) == (("up", "down"), (13, 7), 1)
    empty, _, name = source.train[1]
    assert isinstance(empty, BadImage)
    assert name == f"{spec}:train/1"
    assert name in str(empty)
    assert "has the splits train, but it should have val or" in refused(spec, data_dir=tmp_path / "cache")
    assert "but it should have test" in refused(spec, data_dir=tmp_path / "cache", splits=("test",))
    assert source.train.class_numbers() == [1, 0]


@needs_datasets
@pytest.mark.usefixtures("offline")
def test_hugging_face_labels_without_names_are_counted(tmp_path: Path, pets: Path) -> None:
    from datasets import Image as ImageColumn
    from datasets import Value

    file = str(pets / "val/cat/0.png")
    features = {"image": ImageColumn(), "label": Value("int64")}
    spec = stored_columns(tmp_path / "plain", {"image": [file] * 3, "label": [0, 3, 1]}, features)
    source = open_source(spec, data_dir=tmp_path / "cache", splits=("train",))
    assert source.class_names == ("0", "1", "2", "3")
    spec = stored_columns(tmp_path / "blank", {"image": [file] * 2, "label": [-1, None]}, features)
    sentence = refused(spec, data_dir=tmp_path / "cache", splits=("train",))
    assert "should hold a class number for every image, but it also holds -1, None" in sentence
    spec = stored_columns(
        tmp_path / "none", {"image": [file], "text": ["x"]}, {"image": ImageColumn(), "text": Value("string")}
    )
    assert "has the columns image, text, but" in refused(spec, data_dir=tmp_path / "cache", splits=("train",))


@needs_datasets
@pytest.mark.usefixtures("offline")
def test_one_data_set_saved_to_disk_is_evaluated_and_training_says_how_to_split_it(tmp_path: Path, pets: Path) -> None:
    import datasets
    from datasets import ClassLabel
    from datasets import Image as ImageColumn

    rows = {"img": [str(pets / "train/dog/2.png"), None, *[str(pets / "val/cat/0.png")] * 3], "label": [1, 0, 0, 1, 0]}
    features = datasets.Features({"img": ImageColumn(), "label": ClassLabel(names=["up", "down"])})
    saved = tmp_path / "saved"
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(saved)
    spec = f"hfds/{saved}"
    source = open_source(spec, splits=("val",))
    image, target, name = source.val[0]
    assert (source.class_names, len(source.val)) == (("up", "down"), 5)
    assert (image.size, target, name) == ((13, 7), 1, f"{spec}:all/0")
    empty, _, name = source.val[1]
    assert isinstance(empty, BadImage)
    assert name in str(empty)
    sentence = refused(spec)
    assert "one data set without splits, as Dataset.save_to_disk writes it" in sentence
    # What the sentence says works.
    command, _, then = sentence.partition("in Python: ")[2].partition(", then give ")
    exec(command, {"datasets": datasets})
    split = open_source(then, data_dir=tmp_path / "cache")
    assert (len(split.train), len(split.val)) == (4, 1)


@needs_datasets
@pytest.mark.usefixtures("offline")
def test_an_unknown_hugging_face_name_is_refused(tmp_path: Path) -> None:
    assert f"cannot open 'hfds/nobody/nothing' in {tmp_path}" in refused("hfds/nobody/nothing", data_dir=tmp_path)


class StandIn:
    """What timm's TensorFlow reader offers, without TensorFlow."""

    def __init__(self) -> None:
        self.batch_size, self.common_seed, self.dist_rank, self.dist_num_replicas = 1, 42, 1, 2
        self.epochs: list[int] = []
        self.workers: int | None = None

    def set_epoch(self, count: int) -> None:
        self.epochs.append(count)

    def set_loader_cfg(self, num_workers: int) -> None:
        self.workers = num_workers

    def __len__(self) -> int:
        return 3

    def __iter__(self) -> Iterator[tuple[Image.Image, np.int64]]:
        for number in range(3):
            yield Image.new("L", (13, 7), 90 * number), np.int64(number)


def test_a_stream_of_timm_goes_through_the_loader() -> None:
    reader = IterableImageDataset(None, reader=StandIn()).reader
    loader = make_loader(TimmStream("tfds/x:train", reader, 3), TRANSFORM, batch=3, train=True, seed=5)
    batches = [batch for _ in range(2) for batch in loader]
    assert [batch["target"].tolist() for batch in batches] == [[0, 1, 2]] * 2
    assert batches[0]["name"] == ["tfds/x:train/0", "tfds/x:train/1", "tfds/x:train/2"]
    assert batches[0]["image"].shape == (3, 3, 6, 6)
    assert (reader.batch_size, reader.common_seed, reader.workers, reader.epochs) == (3, 5, 0, [0, 1])
    assert (reader.dist_rank, reader.dist_num_replicas) == (0, 1)


def test_a_training_stream_of_timm_is_evaluated_in_order() -> None:
    reader = StandIn()
    reader.is_training = reader.reinit_each_iter = True
    ordered = TimmStream("tfds/x:train", reader, 3).in_order()
    assert (ordered.reader.is_training, ordered.reader.reinit_each_iter) == (False, False)
    assert reader.is_training
    loader = make_loader(ordered, TRANSFORM, batch=2, train=False)
    assert [batch["target"].tolist() for batch in loader] == [[0, 1], [2]]


def test_a_stream_of_timm_goes_on_in_the_middle_with_one_reader_only() -> None:
    def stream() -> TimmStream:
        return TimmStream("tfds/x:train", IterableImageDataset(None, reader=StandIn()).reader, 3)

    loader = make_loader(stream(), TRANSFORM, batch=1, train=True)
    go_to(loader, 1, 2)
    assert [batch["target"].tolist() for batch in loader] == [[2]]
    with pytest.raises(UserError, match="cannot go on in the middle of an epoch"):
        go_to(make_loader(stream(), TRANSFORM, batch=1, train=True, workers=2), 1, 2)
    with pytest.raises(UserError, match="which 2 processes cannot share"):
        make_loader(stream(), TRANSFORM, batch=2, train=True, share=Share(processes=2))
