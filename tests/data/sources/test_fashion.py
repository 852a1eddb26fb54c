import gzip
from pathlib import Path

import numpy as np
import pytest

from parhelion.data.sources import fashion, open_source
from parhelion.data.sources.fashion import CLASS_NAMES, DEBIAN, FILES, bundled_images
from parhelion.errors import UserError

COUNTS = {"train": 7, "t10k": 3}


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.astype(np.uint8).tobytes()


def write_files(folder: Path, *, packed: bool = True) -> Path:
    """Seven training and three test images, in the files of Fashion-MNIST."""
    folder.mkdir(parents=True)
    for prefix, count in COUNTS.items():
        images, labels = np.arange(count * 28 * 28).reshape(count, 28, 28) % 251, np.arange(count) + 2
        for name, array in ((fashion.IMAGES, images), (fashion.LABELS, labels)):
            data = idx(array)
            file = folder / f"{prefix}-{name}"
            file.with_name(file.name + ".gz" * packed).write_bytes(gzip.compress(data) if packed else data)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_files(tmp_path / "files")


def refused(**options: object) -> str:
    with pytest.raises(UserError) as caught:
        open_source("fashion-mnist", **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("below", "packed"), [("", True), ("FashionMNIST/raw", True), ("FashionMNIST/raw", False)])
def test_images_are_read_from_debians_files_and_from_torchvisions(tmp_path: Path, below: str, packed: bool) -> None:
    write_files(tmp_path / "data" / below, packed=packed)
    source = open_source("fashion-mnist", data_dir=tmp_path / "data", in_chans=1)
    image, target, name = source.train[3]
    assert (image.mode, target, name) == ("L", 5, "fashion-mnist:train/3")
    assert image.getpixel((9, 2)) == (3 * 784 + 2 * 28 + 9) % 251
    assert (len(source.train), len(source.val), source.val[1][2]) == (7, 3, "fashion-mnist:test/1")
    assert source.class_names == CLASS_NAMES == bundled_images("test")[2]
    assert source.train.images.dtype == np.uint8


def test_the_default_folder_is_debians_where_it_exists(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fashion, "DEBIAN", folder)
    source = open_source("fashion-mnist", splits=("val",))
    assert (source.train, len(source.val), source.val[0][0].mode) == (None, 3, "RGB")
    monkeypatch.setattr(fashion, "DEBIAN", folder / "absent")
    assert "needs the Debian package dataset-fashion-mnist in" in refused()
    assert "or a data_dir" in refused(download=True)


def test_missing_files_are_named(folder: Path, tmp_path: Path) -> None:
    (folder / "t10k-labels-idx1-ubyte.gz").unlink()
    assert "t10k-labels-idx1-ubyte.gz missing; download fetches" in refused(data_dir=folder)
    assert all(name in refused(data_dir=tmp_path / "nowhere") for name in FILES)


@pytest.mark.parametrize("name", ["train-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"])
@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda data: data[: len(data) // 2], "damaged or cut short"),
        (lambda data: b"", "begins with -"),
        (lambda data: b"no gzip at all", "damaged or cut short"),
        (lambda data: data[:-8] + bytes(8), "damaged or cut short"),
        (lambda data: gzip.compress(gzip.decompress(data)[:-1]), "should follow its header"),
        (lambda data: gzip.compress(gzip.decompress(data)[:7]), "is not an IDX file"),
        (lambda data: gzip.compress(b"\0\0\r" + gzip.decompress(data)[3:]), "begins with 00000d0"),
    ],
)
def test_a_damaged_file_is_one_sentence_with_its_name(folder: Path, name: str, damage: object, says: str) -> None:
    file = folder / name
    file.write_bytes(damage(file.read_bytes()))
    sentence = refused(data_dir=folder)
    assert str(file) in sentence
    assert says in sentence


def test_images_and_class_numbers_must_fit(folder: Path) -> None:
    labels = folder / "train-labels-idx1-ubyte"
    labels.write_bytes(idx(np.arange(5)))
    assert "holds 7 x 28 x 28 values in train-images-idx3-ubyte and 5 in" in refused(data_dir=folder)
    labels.write_bytes(idx(np.arange(7) + 9))
    assert "the class number 15, but 9 is the last" in refused(data_dir=folder)


def test_a_download_is_torchvisions_and_its_failure_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision import datasets

    def fetch(root: str, download: bool) -> None:
        assert download
        write_files(Path(root) / "FashionMNIST" / "raw", packed=False)

    monkeypatch.setattr(datasets, "FashionMNIST", fetch)
    assert len(open_source("fashion-mnist", data_dir=tmp_path, download=True).train) == 7

    def fail(root: str, download: bool) -> None:
        raise RuntimeError("Error downloading\nno network")

    monkeypatch.setattr(datasets, "FashionMNIST", fail)
    assert "cannot open 'fashion-mnist' in" in refused(data_dir=tmp_path / "new", download=True)


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="the Debian package dataset-fashion-mnist is absent")
def test_the_bundled_images_are_the_first_of_the_whole() -> None:
    (images, labels, _), whole = bundled_images("test"), open_source("fashion-mnist", splits=("val",)).val
    assert len(whole) == 10_000
    numbers = np.array(whole.targets)
    first = np.sort(np.concatenate([np.flatnonzero(numbers == number)[:200] for number in range(10)]))
    assert np.array_equal(whole.images[first], images)
    assert np.array_equal(numbers[first], labels)
