"""Images with annotated objects in COCO's format, checked when they are opened."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from parhelion.data.annotated.annotations import Checks
from parhelion.data.annotated.file import content, usable_annotations, usable_images
from parhelion.data.annotated.headers import size_mismatch
from parhelion.data.annotated.instances import Instances, Texts, mask_area
from parhelion.data.annotated.mask_drawing import mask_library
from parhelion.data.annotated.paths import BESIDE_THE_IMAGES, ImageFiles, images_folder
from parhelion.data.annotated.report import Report, by_problem, sharing_ids
from parhelion.data.images import BadImage, Exif, check_channels, try_open_image
from parhelion.data.samples import VAL_NAMES, Split, split_name, split_names
from parhelion.data.spelling import coco_folder
from parhelion.errors import UserError, few

DetectionSample: TypeAlias = tuple[Image.Image | BadImage, Instances, str]
"""The image, or why it cannot be used; what is annotated in it; its path."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class CocoImages(Dataset[DetectionSample]):
    """The images of one annotation file, in its order, those without objects included; N images, M annotations.

    An image is a BadImage when it cannot be read or has not the size that the file says. What is annotated is in a
    few arrays, the annotations of an image in a row, so that worker processes share it (see `Texts`).
    """

    file: Path
    folder: Path
    in_chans: int
    exif: Exif
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    image_ids: np.ndarray
    """(N,) int64."""
    sizes: np.ndarray
    """(N, 2) int64: h, w."""
    file_names: Texts
    starts: np.ndarray
    """(N + 1,) int64: where the annotations of each image start."""
    annotation_ids: np.ndarray
    """(M,) int64."""
    labels: np.ndarray
    """(M,) int64, from 1."""
    crowd: np.ndarray
    """(M,) bool."""
    boxes: np.ndarray
    """(M, 4) float64: left, top, width, height, as in the file, also where they leave the image."""
    matchable: np.ndarray
    """(M,) bool: whether a detection can match it; the others count in scores alone, see `Report.unmatchable`."""
    areas: np.ndarray
    """(M,) float64 as in the file; NaN where it does not say."""
    segmentations: Texts
    """(M,) JSON; null for those without, and for all when masks were not asked."""
    report: Report
    """What is left out, and what is not used as it stands."""

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> DetectionSample:
        number = range(len(self))[index]
        instances, path = self._instances(number), self.path(number)
        image = try_open_image(path, self.in_chans, exif=self.exif)
        if isinstance(image, BadImage):
            return image, instances, path
        if (image.height, image.width) != instances.size:
            return size_mismatch(path, (image.height, image.width), instances.size), instances, path
        return image, instances, path

    def path(self, number: int) -> str:
        """That of an image on disk."""
        return str(self.folder / self.name(number))

    def name(self, number: int) -> str:
        """Its path below the folder of images."""
        return os.fsdecode(self.file_names[number])

    @property
    def dropped(self) -> Mapping[str, tuple[int | str, ...]]:
        """`Report.dropped`."""
        return self.report.dropped

    def _instances(self, number: int) -> Instances:
        here = slice(*self.starts[number : number + 2].tolist())
        rows = here.start + np.flatnonzero(self.matchable[here])
        h, w = self.sizes[number].tolist()
        left, top, width, height = self.boxes[rows].T
        edges = np.stack([left, top, left + width, top + height], axis=1)
        return Instances(
            image_id=int(self.image_ids[number]),
            size=(h, w),
            boxes=edges.clip(0, [w, h, w, h]).astype(np.float32),
            labels=self.labels[rows],
            crowd=self.crowd[rows],
            segmentations=tuple(json.loads(self.segmentations[row]) for row in rows.tolist()),
        )

    def counts(self) -> dict[str, int]:
        """How many there are: images, images without annotations, annotations, crowds among them."""
        return {
            "images": len(self),
            "images without annotations": int((np.diff(self.starts) == 0).sum()),
            "annotations": len(self.annotation_ids),
            "crowds": int(self.crowd.sum()),
        }

    def ground_truth(self) -> dict[str, Any]:
        """What is here in COCO's format, as pycocotools and faster-coco-eval take it, dropped things left out.

        Boxes, areas and segmentations are the file's own, not clipped. Areas that the file does not give are those of
        the masks, or of the boxes when masks were not asked. Annotations are numbered from 1 where two share an id or
        one has the id 0, which for an evaluation means "nothing found".
        """
        images = [
            {"id": identifier, "file_name": self.name(number), "height": h, "width": w}
            for number, (identifier, (h, w)) in enumerate(
                zip(self.image_ids.tolist(), self.sizes.tolist(), strict=True)
            )
        ]
        of_image = np.repeat(np.arange(len(self)), np.diff(self.starts)).tolist()
        identifiers = self.annotation_ids.tolist()
        if 0 in identifiers or len(set(identifiers)) < len(identifiers):
            identifiers = list(range(1, len(identifiers) + 1))
        annotations = [
            {"id": identifier, **self._annotation(row, number)}
            for row, (identifier, number) in enumerate(zip(identifiers, of_image, strict=True))
        ]
        categories = zip(self.category_ids, self.class_names, strict=True)
        return {
            "info": {},
            "images": images,
            "annotations": annotations,
            "categories": [{"id": identifier, "name": name} for identifier, name in categories],
        }

    def _annotation(self, row: int, number: int) -> dict[str, Any]:
        box, area = self.boxes[row].tolist(), float(self.areas[row])
        segmentation = json.loads(self.segmentations[row])
        if np.isnan(area):
            h, w = self.sizes[number].tolist()
            area = float(mask_area(segmentation, (h, w))) if segmentation else box[2] * box[3]
        annotation = {
            "image_id": int(self.image_ids[number]),
            "category_id": self.category_ids[self.labels[row] - 1],
            "bbox": box,
            "area": area,
            "iscrowd": int(self.crowd[row]),
        }
        return {**annotation, "segmentation": segmentation} if segmentation else annotation


@dataclass(frozen=True)
class DetectionSource:
    """Images to train and evaluate a detector on; a split that was not asked for is None."""

    name: str
    train: CocoImages | None
    val: CocoImages | None
    class_names: tuple[str, ...]
    """Label k is class_names[k - 1]."""
    category_ids: tuple[int, ...]
    """The id of label k in the annotation files is category_ids[k - 1]; they rise, and may have gaps."""
    test: CocoImages | None = None

    def images(self, split: Split) -> CocoImages:
        """The images of a split that was asked for."""
        found = {"train": self.train, "val": self.val, "test": self.test}[split]
        assert found is not None, f"open the source with its {split} split"
        return found


def open_coco(
    spec: str,
    *,
    in_chans: int,
    splits: Sequence[Split],
    masks: bool,
    on_bad_annotation: Literal["refuse", "drop"],
    exif: Exif = "upright",
) -> DetectionSource:
    """The asked splits of "coco:DIR"; the images come in RGB (`in_chans` 3) or grey (1), upright or as stored.

    Either DIR/annotations/instances_train2017.json and the like (any digits or none), with the images in DIR/train2017,
    DIR/images/train2017, DIR/train, DIR/images/train, DIR/images or DIR, the first where one is found; or
    DIR/train/_annotations.coco.json with the images beside it. For evaluation `val` takes the place of `train`,
    or validation, valid, test, the first that exists. Of several years side by side "coco:DIR:2017" names one. The
    split `test` may have no annotations: then DIR/annotations/image_info_test2017.json, or that of test-dev, lists it.

    All images and annotations are checked. What cannot be used is refused, in one sentence for all, or dropped; of an
    object with good polygons beside bad ones the good ones stay. What nothing can match, such as a box of no size, is
    dropped from training only: COCO's programs count it. `CocoImages.report` lists all that. Boxes that leave the image
    are clipped for training; one that disagrees with its mask stays. Annotations that share an id all stay; of images
    that do none is kept, for nobody can tell which one the annotations mean. Without `masks` segmentations are neither
    kept nor checked, except to find a box that is missing. Polygons are not drawn here (see `segmentation_problem`),
    and images are not opened (see `headers.misfits`).

    Raises UserError.
    """
    folder, year = coco_folder(spec)
    check_channels(in_chans)
    if on_bad_annotation not in ("refuse", "drop"):
        raise UserError(f"on_bad_annotation is {on_bad_annotation!r}, but it should be 'refuse' or 'drop'")
    if exif not in ("upright", "stored"):
        raise UserError(f"exif is {exif!r}, but it should be 'upright' or 'stored'")
    if masks:
        # Early, not with the first mask.
        mask_library()
    files = {split: _annotation_file(folder, split, year) for split in dict.fromkeys(splits)}
    opened = {
        split: _read(
            file,
            folder,
            in_chans=in_chans,
            masks=masks,
            exif=exif,
            keep_unmatchable=split != "train" and on_bad_annotation == "drop",
            annotated=split != "test",
        )
        for split, file in files.items()
    }
    train, val = opened.get("train"), opened.get("val")
    if train and val:
        _refuse_different_categories(train, val)
    if on_bad_annotation == "refuse":
        _refuse_dropped(list(opened.values()))
    for images in opened.values():
        if not len(images):
            raise UserError(f"no image of '{images.file}' can be used: {images.report.described()}")
    first = next(iter(opened.values()), None)
    names, ids = (first.class_names, first.category_ids) if first else ((), ())
    return DetectionSource(spec, train, val, names, ids, test=opened.get("test"))


def _annotation_file(folder: Path, split: Split, year: str = "") -> Path:
    """The file of a split, of several the one whose name ends in `year`; raises UserError unless there is just one."""
    found: dict[str, list[Path]] = {}
    for file in sorted(folder.glob(f"annotations/instances_*{year}.json")):
        found.setdefault(_subset(file).rstrip("0123456789"), []).append(file)
    if split == "test":
        # COCO lists a part of the test images again as test-dev: those only where there is nothing else.
        for subset in ("test", "test-dev"):
            listed = sorted(folder.glob(f"annotations/image_info_{subset}*{year}.json"))
            if listed := [file for file in listed if _subset(file).rstrip("0123456789") == subset]:
                found.setdefault("test", listed)
    for subset in ("train", *VAL_NAMES):
        if (folder / subset / BESIDE_THE_IMAGES).is_file():
            found.setdefault(subset, []).append(folder / subset / BESIDE_THE_IMAGES)
    name = split_name(split, found)
    if name is None:
        there = sorted(str(path.relative_to(folder)) for path in (*folder.glob("*"), *folder.glob("annotations/*")))
        raise UserError(
            f"'{folder}' has no annotations for {split}: it holds {few(there) or 'nothing'}, but should hold "
            f"annotations/instances_NAME{year}.json or NAME/{BESIDE_THE_IMAGES}, where NAME is {split_names(split)}"
        )
    if len(found[name]) > 1:
        files = [str(file.relative_to(folder)) for file in found[name]]
        years = [digits for file in found[name] if (digits := _subset(file).removeprefix(name)).isdigit()]
        choice = f"choose by the digits, as in coco:{folder}:{years[-1]}, or " if years and not year else ""
        raise UserError(
            f"'{folder}' has several annotation files for {split}, {few(files)}, but there should be one: {choice}"
            "rename the others"
        )
    return found[name][0]


def _subset(file: Path) -> str:
    return file.stem.removeprefix("instances_").removeprefix("image_info_")


def _read(
    file: Path, folder: Path, *, in_chans: int, masks: bool, exif: Exif, keep_unmatchable: bool, annotated: bool
) -> CocoImages:
    said = content(file, annotated=annotated)
    categories = sorted((entry["id"], entry["name"]) for entry in said["categories"])
    # The images of test-dev lie among those of test.
    subset = _subset(file).replace("test-dev", "test")
    subsets = (_subset(file), subset, subset.rstrip("0123456789"))
    place = images_folder(file, folder, subsets, said["images"])
    dropped: dict[str, list[int | str]] = {}
    images = usable_images(said["images"], ImageFiles(place), dropped)
    checks = Checks(
        images={image.identifier: (row, image.size) for row, image in enumerate(images)},
        known={entry["id"] for entry in said["images"]},
        labels={identifier: label for label, (identifier, _) in enumerate(categories, start=1)},
        masks=masks,
        keep_unmatchable=keep_unmatchable,
    )
    rows = usable_annotations(said["annotations"], checks, dropped)
    return CocoImages(
        file=file,
        folder=place,
        in_chans=in_chans,
        exif=exif,
        class_names=tuple(name for _, name in categories),
        category_ids=tuple(identifier for identifier, _ in categories),
        image_ids=np.array([image.identifier for image in images], np.int64),
        sizes=np.array([image.size for image in images], np.int64).reshape(-1, 2),
        file_names=Texts([os.fsencode(image.path) for image in images]),
        starts=np.searchsorted([row.image for row in rows], np.arange(len(images) + 1)),
        annotation_ids=np.array([row.identifier for row in rows], np.int64),
        labels=np.array([row.label for row in rows], np.int64),
        crowd=np.array([row.crowd for row in rows], bool),
        boxes=np.array([row.box for row in rows], np.float64).reshape(-1, 4),
        matchable=np.array([row.unmatchable is None for row in rows], bool),
        areas=np.array([row.area for row in rows], np.float64),
        segmentations=Texts([row.segmentation for row in rows]),
        report=Report(
            file=file,
            folder=place,
            annotations=len(rows),
            dropped={kind: tuple(which) for kind, which in dropped.items()},
            bad_polygons=by_problem((problem, row) for row in rows for problem in row.bad_polygons),
            unmatchable=by_problem((row.unmatchable, row) for row in rows),
            reaching_out=tuple(row.identifier for row in rows if row.reaches_out),
            sharing_ids=sharing_ids(rows),
            respelled=tuple(image.respelled for image in images if image.respelled is not None),
            federated=any("not_exhaustive_category_ids" in entry for entry in said["images"]),
        ),
    )


def _refuse_different_categories(train: CocoImages, val: CocoImages) -> None:
    ours, theirs = (
        [f"{identifier} ({name})" for identifier, name in zip(images.category_ids, images.class_names, strict=True)]
        for images in (train, val)
    )
    lacking = [category for category in ours if category not in theirs]
    extra = [category for category in theirs if category not in ours]
    if lacking or extra:
        found = [f"{few(lacking)} only in '{train.file}'"] if lacking else []
        found += [f"{few(extra)} only in '{val.file}'"] if extra else []
        raise UserError(f"training and evaluation should have the same categories, but {' and '.join(found)}")


def _refuse_dropped(opened: Sequence[CocoImages]) -> None:
    bad = [(images.file, refusal) for images in opened if (refusal := images.report.refusal())]
    if bad:
        found = " and ".join(f"'{file}' has {refusal}" for file, refusal in bad)
        hint = next(filter(None, (images.report.hint for images in opened)), "")
        raise UserError(f"{found}, but there should be none of these; on_bad_annotation 'drop' leaves them out{hint}")
