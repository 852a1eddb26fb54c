"""Images with annotated objects in COCO's format, checked when they are opened."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from parhelion.data.annotations import OF_LEFT_OUT, Checks
from parhelion.data.coco_file import content, usable_annotations, usable_images
from parhelion.data.images import MODES, BadImage, open_image
from parhelion.data.instances import Instances, Texts, mask_area
from parhelion.data.mask_drawing import mask_library
from parhelion.data.samples import VAL_NAMES, Split, few, val_name
from parhelion.errors import UserError

DetectionSample: TypeAlias = tuple[Image.Image | BadImage, Instances, str]
"""The image, or why it cannot be used; what is annotated in it; its path."""

BESIDE_THE_IMAGES = "_annotations.coco.json"


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class CocoImages(Dataset[DetectionSample]):
    """The images of one annotation file, in its order, those without objects included; N images, M annotations.

    An image is a BadImage when it cannot be read or has not the size that the file says, upright. What is annotated
    is in a few arrays, the annotations of an image in a row, so that worker processes share it (see `Texts`).
    """

    file: Path
    folder: Path
    in_chans: int
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
    """(M, 4) float64: left, top, width, height, as in the file; those in `clipped` are clipped."""
    areas: np.ndarray
    """(M,) float64 as in the file; NaN where it does not say."""
    segmentations: Texts
    """(M,) JSON; null for those without, and for all when masks were not asked."""
    dropped: Mapping[str, tuple[int, ...]]
    """Ids of what cannot be used, for each kind of problem; an annotation counts for the first that it has."""
    clipped: tuple[int, ...]
    """Ids of annotations whose box reached out of the image by more than a pixel."""

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> DetectionSample:
        number = range(len(self))[index]
        instances, path = self._instances(number), str(self.folder / self.file_names[number].decode())
        try:
            image = open_image(path, self.in_chans)
        except BadImage as bad:
            return bad.with_traceback(None), instances, path
        h, w = instances.size
        if image.size != (w, h):
            sentence = f"the image {path} is {image.width} x {image.height} pixels, but its annotations say {w} x {h}"
            return BadImage(sentence), instances, path
        return image, instances, path

    def _instances(self, number: int) -> Instances:
        here = slice(*self.starts[number : number + 2].tolist())
        h, w = self.sizes[number].tolist()
        left, top, width, height = self.boxes[here].T
        edges = np.stack([left, top, left + width, top + height], axis=1)
        return Instances(
            image_id=int(self.image_ids[number]),
            size=(h, w),
            boxes=edges.clip(0, [w, h, w, h]).astype(np.float32),
            labels=self.labels[here].copy(),
            crowd=self.crowd[here].copy(),
            segmentations=tuple(json.loads(self.segmentations[row]) for row in range(here.start, here.stop)),
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

        Areas that the file does not give are those of the masks, or of the boxes when masks were not asked. Ids of
        annotations are one higher where one of them is 0, which for an evaluation means "nothing found".
        """
        images = [
            {"id": identifier, "file_name": self.file_names[number].decode(), "height": h, "width": w}
            for number, (identifier, (h, w)) in enumerate(
                zip(self.image_ids.tolist(), self.sizes.tolist(), strict=True)
            )
        ]
        of_image = np.repeat(np.arange(len(self)), np.diff(self.starts)).tolist()
        identifiers = (self.annotation_ids + (0 in self.annotation_ids)).tolist()
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


def open_coco(
    spec: str,
    *,
    in_chans: int,
    splits: Sequence[Split],
    masks: bool,
    on_bad_annotation: Literal["refuse", "drop"],
) -> DetectionSource:
    """The asked splits of "coco:DIR"; the images come in RGB (`in_chans` 3) or grey (1).

    Either DIR/annotations/instances_train2017.json and the like (any digits or none), with the images in DIR/train2017,
    DIR/images/train2017, DIR/train, DIR/images/train, DIR/images or DIR, the first where one is found; or
    DIR/train/_annotations.coco.json with the images beside it. For evaluation `val` takes the place of `train`,
    or validation, valid, test, the first that exists.

    All images and annotations are checked. What cannot be used is refused, in one sentence for all, or dropped and
    listed in `CocoImages.dropped`. Boxes that reach out of the image are clipped; a box that disagrees with its mask
    stays. Of annotations whose id comes twice the first is kept, of images none: nobody can tell which one the
    annotations mean. Without `masks` segmentations are neither kept nor checked, except to find a box that is missing.
    Polygons are not drawn here (see `segmentation_problem`), and images are not opened.

    Raises UserError.
    """
    kind, _, place = spec.partition(":")
    folder = Path(place)
    if kind != "coco" or not place or not folder.is_dir():
        raise UserError(f"there is no data source '{spec}': it should be coco:DIR, where DIR is an existing folder")
    if in_chans not in MODES:
        raise UserError(f"in_chans is {in_chans}, but images are read with 3 channels (RGB) or 1 (grey)")
    if on_bad_annotation not in ("refuse", "drop"):
        raise UserError(f"on_bad_annotation is {on_bad_annotation!r}, but it should be 'refuse' or 'drop'")
    if masks:
        # Early, not with the first mask.
        mask_library()
    files = {split: _annotation_file(folder, split) for split in ("train", "val") if split in splits}
    opened = {split: _read(file, folder, in_chans, masks) for split, file in files.items()}
    train, val = opened.get("train"), opened.get("val")
    if train and val:
        _refuse_different_categories(train, val)
    if on_bad_annotation == "refuse":
        _refuse_dropped(list(opened.values()))
    for images in opened.values():
        if not len(images):
            raise UserError(f"no image of '{images.file}' can be used: {_described(images.dropped)}")
    either = train or val
    return DetectionSource(
        spec, train, val, either.class_names if either else (), either.category_ids if either else ()
    )


def _annotation_file(folder: Path, split: Split) -> Path:
    """The file of a split; raises UserError when there is none, or more than one."""
    found: dict[str, list[Path]] = {}
    for file in sorted(folder.glob("annotations/instances_*.json")):
        found.setdefault(_subset(file).rstrip("0123456789"), []).append(file)
    for subset in ("train", *VAL_NAMES):
        if (folder / subset / BESIDE_THE_IMAGES).is_file():
            found.setdefault(subset, []).append(folder / subset / BESIDE_THE_IMAGES)
    name = val_name(found) if split == "val" else "train" if "train" in found else None
    if name is None:
        names = ("train",) if split == "train" else VAL_NAMES
        there = sorted(str(path.relative_to(folder)) for path in (*folder.glob("*"), *folder.glob("annotations/*")))
        raise UserError(
            f"'{folder}' has no annotations for {split}: it holds {few(there) or 'nothing'}, but should hold "
            f"annotations/instances_NAME.json or NAME/{BESIDE_THE_IMAGES}, where NAME is {' or '.join(names)}"
        )
    if len(found[name]) > 1:
        files = few([str(file.relative_to(folder)) for file in found[name]])
        raise UserError(f"'{folder}' has several annotation files for {split}, {files}, but there should be one")
    return found[name][0]


def _subset(file: Path) -> str:
    return file.stem.removeprefix("instances_")


def _read(file: Path, folder: Path, in_chans: int, masks: bool) -> CocoImages:
    said = content(file)
    categories = sorted((entry["id"], entry["name"]) for entry in said["categories"])
    images_folder = _images_folder(file, folder, [entry["file_name"] for entry in said["images"]])
    dropped: dict[str, list[int]] = {}
    images = usable_images(said["images"], images_folder, dropped)
    checks = Checks(
        {entry["id"]: (row, (int(entry["height"]), int(entry["width"]))) for row, entry in enumerate(images)},
        {entry["id"] for entry in said["images"]},
        {identifier: label for label, (identifier, _) in enumerate(categories, start=1)},
        masks,
    )
    rows = usable_annotations(said["annotations"], checks, dropped)
    return CocoImages(
        file=file,
        folder=images_folder,
        in_chans=in_chans,
        class_names=tuple(name for _, name in categories),
        category_ids=tuple(identifier for identifier, _ in categories),
        image_ids=np.array([entry["id"] for entry in images], np.int64),
        sizes=np.array([(entry["height"], entry["width"]) for entry in images], np.int64).reshape(-1, 2),
        file_names=Texts([entry["file_name"].encode() for entry in images]),
        starts=np.searchsorted([row.image for row in rows], np.arange(len(images) + 1)),
        annotation_ids=np.array([row.identifier for row in rows], np.int64),
        labels=np.array([row.label for row in rows], np.int64),
        crowd=np.array([row.crowd for row in rows], bool),
        boxes=np.array([row.box for row in rows], np.float64).reshape(-1, 4),
        areas=np.array([row.area for row in rows], np.float64),
        segmentations=Texts([row.segmentation for row in rows]),
        dropped={kind: tuple(dict.fromkeys(ids)) for kind, ids in dropped.items()},
        clipped=tuple(row.identifier for row in rows if row.clipped),
    )


def _images_folder(file: Path, folder: Path, names: list[str]) -> Path:
    """The first folder in which one of the images lies; raises UserError."""
    if file.name == BESIDE_THE_IMAGES:
        places = [file.parent]
    else:
        subsets = dict.fromkeys((_subset(file), _subset(file).rstrip("0123456789")))
        places = [folder / above / subset for subset in subsets for above in ("", "images")]
        places += [folder / "images", folder]
    for name in names:
        for place in places:
            if (place / name).is_file():
                return place
    raise UserError(f"none of the images in '{file}' is there: {few(names)} should be in {few(places, len(places))}")


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
    bad = [images for images in opened if images.dropped]
    if bad:
        found = " and ".join(f"'{images.file}' has {_described(images.dropped)}" for images in bad)
        raise UserError(f"{found}, but there should be none of these; on_bad_annotation 'drop' leaves them out")


def _described(dropped: Mapping[str, tuple[int, ...]]) -> str:
    """Each kind of problem with how often and where, but not what follows from another one."""
    return ", ".join(f"{kind}: {len(ids)} ({few(ids)})" for kind, ids in dropped.items() if kind != OF_LEFT_OUT)
