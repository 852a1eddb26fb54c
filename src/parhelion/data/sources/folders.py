"""A folder of images as a source: train/ and val/, in each a folder per class."""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path

from torch.utils.data import Dataset

from parhelion.data.images import BadImage, endings, open_image
from parhelion.data.samples import VAL_NAMES, Sample, Source, Split, few
from parhelion.data.sources.class_folders import counted, find_images, natural_order
from parhelion.errors import UserError, printable

SPLIT_NAMES = ("train", *VAL_NAMES)


class FolderImages(Dataset[Sample]):
    """The images below the class folders of one split, named by their path.

    An image belongs to the class folder at the top, however deep it lies. Hidden files and folders do not count,
    nor do files beside the class folders. Classes and files are in natural order (img2 before img10).
    """

    def __init__(self, folder: Path, in_chans: int) -> None:
        self.folder, self.in_chans = folder, in_chans
        self.class_names = tuple(sorted((child.name for child in _subfolders(folder)), key=natural_order))
        _refuse_bytes(folder, self.class_names)
        self.found = find_images(folder, self.class_names)
        self.files = self.found.files

    def class_numbers(self) -> list[int]:
        """The class number of every image."""
        return [number for _, number in self.files]

    def empty_classes(self) -> list[str]:
        """The class folders without images."""
        present = set(self.class_numbers())
        return [name for number, name in enumerate(self.class_names) if number not in present]

    def remarks(self) -> list[str]:
        """A clause about classes without images, and about what is left out."""
        empty, left_out = self.empty_classes(), self.found.left_out()
        clauses = [f"no images of {few(empty)} in '{self.folder}'"] if empty else []
        return clauses + ([f"left out in '{self.folder}': {', '.join(left_out)}"] if left_out else [])

    def relative(self, file: str) -> str:
        """The name of one of the files, from the folder on, with slashes."""
        return Path(file).relative_to(self.folder).as_posix()

    def where(self, keeps: Callable[[str], bool]) -> "FolderImages":
        """The images whose files `keeps` says yes to."""
        some = copy.copy(self)
        some.files = [(file, number) for file, number in self.files if keeps(file)]
        return some

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
    _refuse_file(folder)
    train = _train_images(folder, in_chans) if "train" in splits else None
    val = _val_images(folder, in_chans) if "val" in splits else None
    test = _test_images(folder, in_chans) if "test" in splits else None
    if train and val:
        _refuse_different_classes(train, val)
    opened = [images for images in (train, val, test) if images]
    remarks = [remark for images in opened for remark in images.remarks()]
    return Source(str(folder), train, val, opened[0].class_names if opened else (), test, remarks=tuple(remarks))


def open_unsplit(folder: Path, *, in_chans: int) -> FolderImages:
    """The images of a folder that holds the class folders itself. Raises UserError, also where it is split already."""
    _refuse_file(folder)
    present = [child.name for name in SPLIT_NAMES if (child := _split_folder(folder, name))]
    if present:
        advice = "leave val_share out" if len(present) > 1 else f"give '{folder / present[0]}'"
        raise UserError(
            f"val_share splits a folder that holds the class folders itself, but '{folder}' holds "
            f"{', '.join(f'{name}/' for name in present)}; {advice}"
        )
    images = _images(folder, in_chans)
    _refuse_nothing_to_learn(images)
    return images


def _train_images(folder: Path, in_chans: int) -> FolderImages:
    train = _split_folder(folder, "train")
    if train is None:
        flat = [child for child in _subfolders(folder) if child.name.casefold() not in SPLIT_NAMES]
        advice = "; if these are class folders, --val-share 0.2 validates on a fifth of each" if len(flat) > 1 else ""
        raise UserError(f"the data folder '{folder}' has no train/ inside; it holds {_contents(folder)}{advice}")
    images = _images(train, in_chans)
    _refuse_nothing_to_learn(images)
    return images


def _val_images(folder: Path, in_chans: int) -> FolderImages:
    for name in VAL_NAMES:
        if val := _split_folder(folder, name):
            return _images(val, in_chans)
    if train := _split_folder(folder, "train"):
        wanted = ", ".join(f"{name}/" for name in VAL_NAMES)
        raise UserError(
            f"the data folder '{folder}' has no evaluation images: it holds {_contents(folder)}, but should hold one "
            f"of {wanted}; or train on '{train}' with --val-share 0.2, which holds out a fifth of each class"
        )
    return _images(folder, in_chans)


def _test_images(folder: Path, in_chans: int) -> FolderImages:
    test = _split_folder(folder, "test")
    if test is None:
        raise UserError(f"the data folder '{folder}' has no test/ inside; it holds {_contents(folder)}")
    return _images(test, in_chans)


def _split_folder(folder: Path, name: str) -> Path | None:
    """The folder `name` inside `folder`, written so or with capitals."""
    if (folder / name).is_dir():
        return folder / name
    alike = [child for child in _subfolders(folder) if child.name.casefold() == name]
    if len(alike) > 1:
        raise UserError(f"'{folder}' holds {few([child.name for child in alike])}, but only one can be {name}/")
    return alike[0] if alike else None


def _images(folder: Path, in_chans: int) -> FolderImages:
    images = FolderImages(folder, in_chans)
    if not images.class_names:
        raise UserError(
            f"'{folder}' holds {_contents(folder)}, but it should hold a folder per class with the images of that class"
        )
    if not images.files:
        raise UserError(
            f"no images in '{folder}', whose class folders are {few(images.class_names)}; {_what_images_are(images)}"
        )
    return images


def _refuse_file(folder: Path) -> None:
    if not folder.is_dir():
        raise UserError(f"the data source '{folder}' is a file, but it should be a folder with train/ and val/")


def _refuse_nothing_to_learn(images: FolderImages) -> None:
    """Raise UserError where there is one class only, or a class without images."""
    if len(images.class_names) == 1:
        only = images.folder / images.class_names[0]
        deeper = [child.name for child in _subfolders(only)]
        advice = f"; if its folders are the classes ({few(deeper)}), move them up into '{images.folder}'"
        raise UserError(
            f"'{images.folder}' holds one class folder, {only.name}, and with one class there is nothing to learn"
            + (advice if deeper else "; give at least two")
        )
    if empty := images.empty_classes():
        raise UserError(
            f"{counted(len(empty), 'class folder')} without images in '{images.folder}': {few(empty)}; "
            f"{_what_images_are(images)}"
        )


def _refuse_different_classes(train: FolderImages, val: FolderImages) -> None:
    lacking = [name for name in train.class_names if name not in val.class_names]
    extra = [name for name in val.class_names if name not in train.class_names]
    clauses = []
    if lacking:
        clauses.append(
            f"'{val.folder}' lacks {len(lacking)} of the {len(train.class_names)} class folders of '{train.folder}': "
            f"{', '.join(lacking)} (where a class has no images, an empty folder is enough)"
        )
    if extra:
        clauses.append(f"'{val.folder}' holds class folders that '{train.folder}' does not have: {', '.join(extra)}")
    if clauses:
        raise UserError("; ".join(clauses))


def _refuse_bytes(folder: Path, names: Sequence[str]) -> None:
    """Raise UserError for class names that are no text: they could be neither printed nor compared."""
    if odd := [name for name in names if printable(name) != name]:
        raise UserError(
            f"'{folder}' holds class folders whose names are not UTF-8: {few(odd)}; rename them (files may keep theirs)"
        )


def _what_images_are(images: FolderImages) -> str:
    """How images are told, and what was found instead."""
    left_out = images.found.left_out()
    held = f"; there are {', '.join(left_out)}" if left_out else ""
    return f"images are files that end in {' '.join(endings())}{held}"


def _subfolders(folder: Path) -> list[Path]:
    return sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))


def _contents(folder: Path) -> str:
    """What is in `folder`, for a sentence."""
    inside = sorted(f"{p.name}/" if p.is_dir() else p.name for p in folder.iterdir() if not p.name.startswith("."))
    return few(inside) if inside else "nothing"
