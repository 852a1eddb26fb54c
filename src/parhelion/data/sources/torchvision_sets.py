"""torch/NAME: torchvision's data sets, opened by timm under timm's names."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from parhelion.data.images import BadImage, as_mode, open_image
from parhelion.data.samples import Sample, Source, Split, few, opening_error
from parhelion.errors import UserError, nearest

NAMES = (
    "cifar10",
    "cifar100",
    "fashion_mnist",
    "folder",
    "image_folder",
    "imagenet",
    "inat",
    "inaturalist",
    "kmnist",
    "mnist",
    "places365",
    "qmnist",
)
"""What timm calls them; it answers an unknown name with a bare assertion."""

FOLDERS = ("folder", "image_folder")
NO_TEST_LABELS = ("imagenet", "inat", "inaturalist", "places365")
"""Whose test images have no classes; those of the others are what they are evaluated on."""


class TorchvisionImages(Dataset[Sample]):
    """One split of a torchvision data set; a sample is named by its file or, without one, `torch/NAME:split/17`."""

    def __init__(self, spec: str, split: Split, dataset: Any, in_chans: int) -> None:
        self.spec, self.split, self.dataset, self.in_chans = spec, split, dataset, in_chans
        self.files: list[tuple[str, int]] | None = getattr(dataset, "samples", getattr(dataset, "imgs", None))
        if hasattr(dataset, "loader"):
            # torchvision's own turns transparency black, and its errors do not name the file.
            dataset.loader = partial(open_image, in_chans=in_chans)

    def class_names(self) -> tuple[str, ...]:
        """ImageNet's classes have several names each, which are joined; iNaturalist's are called categories."""
        names = getattr(self.dataset, "classes", None) or self.dataset.all_categories
        return tuple(name if isinstance(name, str) else ", ".join(name) for name in names)

    def class_numbers(self) -> list[int]:
        """The class number of every image."""
        if self.files is not None:
            return [int(number) for _, number in self.files]
        # iNaturalist's are pairs of a class and a file.
        numbers = self.dataset.targets if hasattr(self.dataset, "targets") else [row[0] for row in self.dataset.index]
        columns = torch.as_tensor(numbers)
        # QMNIST's first column; the others say who wrote the digit.
        return (columns if columns.ndim == 1 else columns[:, 0]).tolist()

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        name = str(self.files[index][0]) if self.files else f"{self.spec}:{self.split}/{index}"
        try:
            image, target = self.dataset[index]
            return as_mode(image, self.in_chans, name=name), int(target), name
        except BadImage as bad:
            return bad.with_traceback(None), -1, name


def open_torchvision(
    spec: str, *, data_dir: Path | None, download: bool, in_chans: int, splits: Sequence[Split]
) -> Source:
    """The torchvision data set `spec` as a source; raises UserError."""
    name = spec.partition("/")[2].lower()
    if name not in NAMES:
        raise UserError(
            f"'{spec}' is not a torchvision data set that timm opens{nearest(name, NAMES) or ':'} "
            f"the names after torch/ are {', '.join(NAMES)}"
        )
    if data_dir is None:
        raise UserError(f"'{spec}' needs a data_dir: the folder where its files are or should be downloaded to")
    images = {split: _images(spec, split, data_dir, download, in_chans) for split in splits}
    class_names = {split: found.class_names() for split, found in images.items()}
    if len(set(class_names.values())) > 1:
        raise UserError(
            f"training and evaluation images of '{spec}' in {data_dir} differ in their classes: "
            f"{few(class_names['train'])} and {few(class_names['val'])}"
        )
    return Source(
        spec, images.get("train"), images.get("val"), next(iter(class_names.values()), ()), images.get("test")
    )


def _images(spec: str, split: Split, data_dir: Path, download: bool, in_chans: int) -> TorchvisionImages:
    # Takes seconds, and only named sources need it.
    from timm.data import create_dataset

    if split == "test":
        _check_test(spec, data_dir)
    timm_split = {"train": "train", "val": "validation", "test": "test"}[split]
    try:
        dataset = create_dataset(spec, root=str(data_dir), split=timm_split, download=download)
    except (OSError, RuntimeError) as error:
        raise opening_error(spec, data_dir, error) from error
    return TorchvisionImages(spec, split, dataset, in_chans)


def _check_test(spec: str, data_dir: Path) -> None:
    name = spec.partition("/")[2].lower()
    if name in NO_TEST_LABELS:
        raise UserError(f"the test images of '{spec}' come without their classes; evaluate on val")
    # timm would take the whole folder instead.
    if name in FOLDERS and not (data_dir / "test").is_dir():
        raise UserError(f"'{spec}' has no test/ in {data_dir}")
