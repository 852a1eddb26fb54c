"""A folder of images as a source: train/ and val/, in each a folder per class."""

from collections.abc import Sequence
from pathlib import Path

from torch.utils.data import Dataset

from parhelion.data.images import ENDINGS, BadImage, open_image
from parhelion.data.samples import VAL_NAMES, Sample, Source, Split, few
from parhelion.errors import UserError


class FolderImages(Dataset[Sample]):
    """The images below the class folders of one split, named by their path.

    An image belongs to the class folder at the top, however deep it lies. Hidden files and folders do not count,
    nor do files beside the class folders. Classes and files are in timm's natural order (img2 before img10).
    """

    def __init__(self, folder: Path, in_chans: int) -> None:
        # Takes seconds, and only folders need it.
        from timm.data.readers.reader_image_folder import find_images_and_targets
        from timm.utils.misc import natural_key

        names = [child.name for child in _subfolders(folder)]
        self.folder, self.in_chans = folder, in_chans
        self.class_names = tuple(sorted(names, key=lambda name: (natural_key(name), name)))
        self.files: list[tuple[str, int]] = []
        for number, name in enumerate(self.class_names):
            found, _ = find_images_and_targets(str(folder / name), types=ENDINGS)
            self.files += [(file, number) for file, _ in found if not _hidden(Path(file).relative_to(folder))]

    def class_numbers(self) -> list[int]:
        """The class number of every image."""
        return [number for _, number in self.files]

    def empty_classes(self) -> list[str]:
        """The class folders without images."""
        present = {number for _, number in self.files}
        return [name for number, name in enumerate(self.class_names) if number not in present]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Sample:
        file, number = self.files[index]
        try:
            return open_image(file, self.in_chans), number, file
        except BadImage as bad:
            return bad.with_traceback(None), number, file


def open_folder(folder: Path, *, in_chans: int, splits: Sequence[Split]) -> Source:
    """`folder` as a source; raises UserError when it is not laid out as `open_source` describes."""
    if not folder.is_dir():
        raise UserError(f"the data source '{folder}' is a file, but it should be a folder with train/ and val/")
    train = _train_images(folder, in_chans) if "train" in splits else None
    val = _val_images(folder, in_chans) if "val" in splits else None
    test = _test_images(folder, in_chans) if "test" in splits else None
    if train and val:
        _refuse_different_classes(train, val)
    either = train or val or test
    return Source(str(folder), train, val, either.class_names if either else (), test)


def _train_images(folder: Path, in_chans: int) -> FolderImages:
    if not (folder / "train").is_dir():
        raise UserError(f"the data folder '{folder}' has no train/ inside; it holds {_contents(folder)}")
    images = _images(folder / "train", in_chans)
    if empty := images.empty_classes():
        raise UserError(
            f"{_class_folders(len(empty))} without images in '{images.folder}': {few(empty)}; "
            f"images are files that end in {' '.join(ENDINGS)}"
        )
    return images


def _val_images(folder: Path, in_chans: int) -> FolderImages:
    for name in VAL_NAMES:
        if (folder / name).is_dir():
            return _images(folder / name, in_chans)
    if (folder / "train").is_dir():
        wanted = ", ".join(f"{name}/" for name in VAL_NAMES)
        raise UserError(
            f"the data folder '{folder}' has no evaluation images: it holds {_contents(folder)}, "
            f"but should hold one of {wanted}"
        )
    return _images(folder, in_chans)


def _test_images(folder: Path, in_chans: int) -> FolderImages:
    if not (folder / "test").is_dir():
        raise UserError(f"the data folder '{folder}' has no test/ inside; it holds {_contents(folder)}")
    return _images(folder / "test", in_chans)


def _images(folder: Path, in_chans: int) -> FolderImages:
    images = FolderImages(folder, in_chans)
    if not images.class_names:
        raise UserError(
            f"'{folder}' holds {_contents(folder)}, but it should hold a folder per class with the images of that class"
        )
    if not images.files:
        raise UserError(
            f"no images in '{folder}', whose class folders are {few(images.class_names)}; "
            f"images are files that end in {' '.join(ENDINGS)}"
        )
    return images


def _refuse_different_classes(train: FolderImages, val: FolderImages) -> None:
    lacking = [name for name in train.class_names if name not in val.class_names]
    extra = [name for name in val.class_names if name not in train.class_names]
    if lacking or extra:
        found = [f"{few(lacking)} only in '{train.folder}'"] if lacking else []
        found += [f"{few(extra)} only in '{val.folder}'"] if extra else []
        raise UserError(f"training and evaluation should have the same class folders, but {' and '.join(found)}")


def _subfolders(folder: Path) -> list[Path]:
    return sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _class_folders(count: int) -> str:
    return f"{count} class folder{'s' if count > 1 else ''}"


def _contents(folder: Path) -> str:
    """What is in `folder`, for a sentence."""
    inside = sorted(f"{p.name}/" if p.is_dir() else p.name for p in folder.iterdir() if not p.name.startswith("."))
    return few(inside) if inside else "nothing"
