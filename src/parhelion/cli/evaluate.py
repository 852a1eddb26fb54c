"""`parhelion evaluate DIR_OR_CHECKPOINT --data SOURCE`."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from parhelion.cli.arguments import check_folder, check_writable, make_folder, parsed, refuse_options
from parhelion.cli.checkpoints import is_detector, load_classifier
from parhelion.cli.devices import move_to_fastest_device
from parhelion.data.spelling import check_source, coco_folder
from parhelion.errors import UserError, printable
from parhelion.files.run_folder import RECIPE

CLASSIFIER_BATCH, DETECTOR_BATCH = 128, 8


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Score a trained classifier or detector on the validation images of a source, or on another split.

    Of a classifier: loss, top-1 and top-5; precision, recall and F1 of each class; the confusion matrix. Of a detector:
    COCO's numbers for boxes and masks.
    """

    checkpoint: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR_OR_CHECKPOINT")]
    """Run folder or .safetensors file that parhelion train wrote, or a .onnx or .xml file of parhelion export."""
    data: str
    """Images. Of a classifier: a folder with val/ of class folders, `bundled`, `fashion-mnist`, or a dataset as timm
    names it (torch/..., hfds/..., wds/..., tfds/...). Of a detector: coco:DIR. The classes must be the checkpoint's."""
    split: Literal["train", "val", "test"] = "val"
    """Which images: val: those that training evaluates on (val/, validation/, valid/ or test/, the first there is);
    test: those of test/, of a detector those in instances_test*.json or, without annotations, image_info_test*.json;
    train: the training images, as they are."""
    data_dir: Path | None = None
    """Where fashion-mnist or a torch/, hfds/, wds/ or tfds/ dataset lies on disk."""
    download: bool = False
    """Allow the dataset to be downloaded."""
    batch: int | None = None
    """Images at a time, 128 if not given; of a detector, 8 if not given."""
    image_px: int = 0
    """Height and width of the images, of a detector their longer side, in pixels; 0: as in training."""
    workers: int = 0
    """Processes that read images; 0 reads them in this process."""
    on_bad_image: Literal["refuse", "skip"] = "refuse"
    """What to do with an unreadable image: refuse: stop and name it; skip: leave it out and count it."""
    on_bad_annotation: Literal["refuse", "drop"] = "refuse"
    """What a detector does with invalid annotations; refuse: stop and list them; drop: leave out those that
    cannot be scored and count them; those that nothing can match stay, as COCO's programs count them."""
    exif: Literal["upright", "stored"] | None = None
    """How a detector's photos are read that EXIF says were taken with the camera turned; upright: turned as it says;
    stored: as their pixels are stored, for annotations made that way; if not given, as in training."""
    out: Path | None = None
    """A classifier's confusion matrix is drawn into this folder, as confusion_matrix.png."""
    masks: bool = True
    """Score what a detector segments, too; otherwise its boxes only, for which no segmentations need be annotated."""
    max_found: int = 0
    """Most objects that a detector finds in an image, of which so many of each class count in the scores, at least
    COCO's 100; 0: as in training."""
    results: Path | None = None
    """A detector's findings go to this file, as COCO's results; of images without annotations there is nothing else."""
    json: bool = False
    """Print the scores as JSON, those of every class and the confusion matrix with them."""


def run(arguments: list[str]) -> None:
    """Evaluate as `arguments` say."""
    chosen = parsed(Arguments, arguments, prog="parhelion evaluate")
    if chosen.batch is not None and chosen.batch < 1:
        raise UserError(f"batch is {chosen.batch}; it must be at least 1")
    if chosen.image_px < 0:
        raise UserError(f"image_px is {chosen.image_px}; it must be at least 1, or 0 for that of training")
    if chosen.max_found < 0:
        raise UserError(f"max_found is {chosen.max_found}; it must be at least 1, or 0 for that of training")
    check_writable("--results", chosen.results)
    _check_out(chosen.out)
    if is_detector(chosen.checkpoint):
        refuse_options(chosen, "a classifier", data_dir=None, download=False, out=None)
        coco_folder(chosen.data)
        _detector(chosen)
    else:
        refuse_options(
            chosen, "a detector", results=None, on_bad_annotation="refuse", exif=None, masks=True, max_found=0
        )
        check_source(chosen.data, data_dir=chosen.data_dir, download=chosen.download)
        _classifier(chosen)


def _classifier(chosen: Arguments) -> None:
    from parhelion.classification.plots import CONFUSION, confusion_matrix
    from parhelion.classification.scores import CLASSES_WITH_MATRIX, class_scores, evaluate
    from parhelion.data.sources import open_source
    from parhelion.data.sources.held_out import of_run

    classifier = load_classifier(chosen.checkpoint)
    names = classifier.class_names
    if chosen.out is not None and len(names) > CLASSES_WITH_MATRIX:
        raise UserError(
            f"--out draws the confusion matrix of up to {CLASSES_WITH_MATRIX} classes; this has {len(names)}"
        )
    source = open_source(
        chosen.data,
        data_dir=chosen.data_dir,
        download=chosen.download,
        in_chans=classifier.preprocessing.in_chans,
        splits=(chosen.split,),
    )
    # Of a folder that the run split itself, what it was not trained on.
    source = of_run(source, chosen.checkpoint if chosen.checkpoint.is_dir() else chosen.checkpoint.parent)
    if not chosen.json:
        print(source.line())
    if chosen.image_px:
        if classifier.takes_files:
            raise UserError(f"{chosen.checkpoint} resizes images itself; leave --image-px out")
        classifier = classifier.with_image_px(chosen.image_px)
    outcome = evaluate(
        classifier,
        source,
        split=chosen.split,
        batch=CLASSIFIER_BATCH if chosen.batch is None else chosen.batch,
        workers=chosen.workers,
        on_bad_image=chosen.on_bad_image,
        quiet=chosen.json,
    )
    scores, title = outcome.metrics(), _title(classifier.name, source.name, chosen.split)
    by_class = class_scores(outcome, names)
    if chosen.out is not None:
        make_folder("--out", chosen.out)
        confusion_matrix(outcome.confusion(len(names)), names, chosen.out / CONFUSION, title)
    if chosen.json:
        facts = {"model": classifier.name, "data": chosen.data, "split": chosen.split, "remarks": source.remarks}
        print(printable(_as_json({**facts, **scores, **by_class.as_dict()})))
    else:
        _show_skipped(title, scores["images"], outcome.skipped)
        print(f"loss   {scores['loss']:.4f}")
        print(f"top-1  {100 * scores['top1']:.2f}%")
        print(f"top-5  {100 * scores['top5']:.2f}%")
        print(f"\n{by_class.text()}")
        if chosen.out is not None:
            print(f"\nthe confusion matrix is in {chosen.out / CONFUSION}")


def _detector(chosen: Arguments) -> None:
    from parhelion.data.annotated.coco import open_coco
    from parhelion.data.annotated.counts import object_counts
    from parhelion.detection.saved import Detector
    from parhelion.detection.scores import evaluate
    from parhelion.files.atomic import write_json

    detector = Detector.load(chosen.checkpoint)
    move_to_fastest_device(detector.model)
    masks = detector.masks and chosen.masks
    source = open_coco(
        chosen.data,
        in_chans=detector.in_chans,
        splits=(chosen.split,),
        masks=masks,
        on_bad_annotation=chosen.on_bad_annotation,
        exif=chosen.exif or detector.exif,
    )
    images = source.images(chosen.split)
    counts = object_counts(images)
    if chosen.results is None:
        counts.require_objects("to score what is found against (--results FILE keeps what is found, without scores)")
    if chosen.image_px:
        detector = detector.with_image_px(chosen.image_px)
    if chosen.max_found:
        detector = detector.with_max_found(chosen.max_found)
    notes = [*images.report.notes(), *filter(None, [counts.too_full(detector.max_found)])]
    if not chosen.json:
        for sentence in (counts.text(), *notes):
            print(sentence, flush=True)
    outcome = evaluate(
        detector,
        source,
        split=chosen.split,
        batch=DETECTOR_BATCH if chosen.batch is None else chosen.batch,
        workers=chosen.workers,
        on_bad_image=chosen.on_bad_image,
        quiet=chosen.json,
    )
    if chosen.results is not None:
        write_json(chosen.results, outcome.entries)
    scores = outcome.scores(images, masks=masks, most=detector.max_found) if counts.objects else None
    if chosen.json:
        facts: dict[str, Any] = {"model": detector.name, "data": chosen.data, "split": chosen.split}
        facts |= {"file": str(images.file)}
        facts |= {"images": len(outcome.image_ids), "objects": counts.of_class, "skipped": len(outcome.skipped)}
        facts |= {"dropped": {kind: list(ids) for kind, ids in images.dropped.items()}, "notes": notes}
        print(printable(json.dumps({**facts, **(scores.as_dict() if scores else {})}, indent=2, ensure_ascii=False)))
        return
    _show_skipped(_title(detector.name, source.name, chosen.split), len(outcome.image_ids), outcome.skipped)
    print(scores.text() if scores else f"nothing is scored: {images.file} has no annotated objects")
    if chosen.results is not None:
        print(f"what was found is in {chosen.results}")


def _check_out(folder: Path | None) -> None:
    """Raise UserError, before anything is evaluated, where pictures could not be written or would replace a run's."""
    if folder is None:
        return
    check_folder("--out", folder)
    if (folder / RECIPE).exists():
        raise UserError(f"--out {folder} holds a run, whose pictures would be written over; name another folder")


def _title(model: str, source: str, split: str) -> str:
    return f"{model} on {source}" + (f", split {split}" if split != "val" else "")


def _as_json(facts: dict[str, Any]) -> str:
    """`facts` as indented JSON with each row of the confusion matrix on one line."""
    # JSON escapes line breaks in text, so only lists match.
    return re.sub(
        r"\[\n[\d,\s]+\]",
        lambda row: " ".join(row[0].split()).replace("[ ", "[").replace(" ]", "]"),
        json.dumps(facts, indent=2, ensure_ascii=False),
    )


def _show_skipped(title: str, images: Any, skipped: Any) -> None:
    for sentence in skipped:
        print(f"skipped: {sentence}")
    print(f"{title}: {images} images" + (f", {len(skipped)} skipped" if skipped else ""))
