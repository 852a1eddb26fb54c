"""hfds/NAME: data sets of the Hugging Face hub, or a local folder in its layout, read through timm."""

import io
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

from torch.utils.data import Dataset

from parhelion.data.images import BadImage, open_image
from parhelion.data.samples import Sample, Source, Split, few, numbered, opening_error, split_name, split_names
from parhelion.errors import UserError

# What Dataset.save_to_disk leaves in its folder, and DatasetDict.save_to_disk in those of its splits.
SAVED = "state.json"


class SavedRows:
    """The rows of a data set without splits, with what timm's reader offers for one with splits."""

    def __init__(self, dataset: Any, image_column: str, label_column: str) -> None:
        import datasets

        self.label_key, self._image_key = label_column, image_column
        names = getattr(dataset.features[label_column], "names", ())
        self.class_to_idx = {name: number for number, name in enumerate(names)}
        self.dataset = dataset.cast_column(image_column, datasets.Image(decode=False))

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[IO[bytes], int]:
        row = self.dataset[index]
        image = row[self._image_key]
        stream = io.BytesIO(image["bytes"]) if image["bytes"] else open(image["path"], "rb")  # noqa: SIM115
        return stream, row[self.label_key]


class HuggingFaceImages(Dataset[Sample]):
    """One split; a sample is named by its file or, where the data set holds the bytes, `hfds/NAME:split/17`."""

    def __init__(self, spec: str, split: str, reader: Any, in_chans: int) -> None:
        self.spec, self.split, self.reader, self.in_chans = spec, split, reader, in_chans

    def class_names(self) -> tuple[str, ...]:
        """Those of the label column, or the class numbers. Raises UserError for labels that are no class numbers."""
        labels = self.reader.dataset.unique(self.reader.label_key)
        wrong = [label for label in labels if not isinstance(label, int) or label < 0]
        if wrong:
            raise UserError(
                f"column '{self.reader.label_key}' of '{self.spec}', split {self.split}, should hold a class number "
                f"for every image, but it also holds {few([repr(label) for label in wrong])}"
            )
        return tuple(self.reader.class_to_idx) or numbered(max(labels, default=-1) + 1)

    def class_numbers(self) -> list[int]:
        """The class number of every image."""
        return list(self.reader.dataset[self.reader.label_key])

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, index: int) -> Sample:
        name = f"{self.spec}:{self.split}/{index}"
        try:
            stream, target = self.reader[index]
        except (OSError, TypeError) as error:
            # TypeError: an empty cell, which timm's reader does not expect.
            return BadImage(f"cannot read the image {name}: {str(error) or 'no image'}"), -1, name
        with stream:
            name = getattr(stream, "name", name)
            try:
                return open_image(stream, self.in_chans, name=name), target, name
            except BadImage as bad:
                return bad.with_traceback(None), target, name


def open_hugging_face(
    spec: str, *, data_dir: Path | None, download: bool, in_chans: int, splits: Sequence[Split]
) -> Source:
    """The data set `spec` as a source, cached in `data_dir`; raises UserError.

    The library fetches by itself what its cache lacks, whatever `download` says; timm offers no other way. What
    `Dataset.save_to_disk` wrote has no splits, so it is for evaluation only.
    """
    if getattr(find_spec("datasets"), "origin", None) is None:
        raise UserError(f"'{spec}' needs the package datasets, which is not installed: pip install datasets")
    import datasets

    if (Path(spec.partition("/")[2]) / SAVED).is_file():
        return _open_saved(spec, in_chans, splits)
    try:
        found = datasets.load_dataset(spec.partition("/")[2], cache_dir=data_dir and str(data_dir))
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise opening_error(spec, data_dir, error) from error
    images = {split: _images(spec, split, found, data_dir, in_chans) for split in splits}
    class_names = [part.class_names() for part in images.values()]
    return Source(
        spec, images.get("train"), images.get("val"), max(class_names, key=len, default=()), images.get("test")
    )


def _open_saved(spec: str, in_chans: int, splits: Sequence[Split]) -> Source:
    import datasets

    folder = spec.partition("/")[2]
    if "train" in splits:
        raise UserError(
            f"'{spec}' is one data set without splits, as Dataset.save_to_disk writes it, which can be evaluated only; "
            f"to train, split it first, in Python: datasets.load_from_disk('{folder}').train_test_split(0.2)"
            f".save_to_disk('{folder.rstrip('/')}-split'), then give {spec.rstrip('/')}-split"
        )
    try:
        dataset = datasets.load_from_disk(folder)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise opening_error(spec, None, error) from error
    images = HuggingFaceImages(spec, "all", SavedRows(dataset, *_columns(spec, dataset.features)), in_chans)
    return Source(spec, None, images, images.class_names())


def _images(spec: str, split: Split, found: Any, data_dir: Path | None, in_chans: int) -> HuggingFaceImages:
    # Takes seconds, and only named sources need it.
    from timm.data import create_dataset

    name = split_name(split, found)
    if name is None:
        raise UserError(f"'{spec}' has the splits {', '.join(found)}, but it should have {split_names(split)}")
    image_column, label_column = _columns(spec, found[name].features)
    dataset = create_dataset(
        spec, root=data_dir and str(data_dir), split=name, input_key=image_column, target_key=label_column
    )
    return HuggingFaceImages(spec, name, dataset.reader, in_chans)


def _columns(spec: str, features: Any) -> tuple[str, str]:
    """The columns of images and labels: `image` and `label`, else the only one of the kind. Raises UserError."""
    images = [name for name, feature in features.items() if type(feature).__name__ == "Image"]
    labels = [name for name, feature in features.items() if type(feature).__name__ == "ClassLabel"]
    image = "image" if "image" in images else images[0] if len(images) == 1 else None
    label = "label" if "label" in features else labels[0] if len(labels) == 1 else None
    if image is None or label is None:
        raise UserError(
            f"'{spec}' has the columns {', '.join(features)}, but it should have one column of images, "
            "named image if there are several, and one of class labels, named label if there are several"
        )
    return image, label
