"""`parhelion evaluate DIR_OR_CHECKPOINT --data SOURCE`."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from parhelion.cli.arguments import check_writable, parsed, refuse_options
from parhelion.errors import UserError

CLASSIFIER_BATCH, DETECTOR_BATCH = 128, 8


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Score a trained classifier or detector on the validation images of a source."""

    checkpoint: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR_OR_CHECKPOINT")]
    """Run folder or .safetensors file that parhelion train wrote."""
    data: str
    """Images. Of a classifier: a folder with val/ of class folders, `bundled`, `fashion-mnist`, or a dataset as timm
    names it (torch/..., hfds/..., wds/..., tfds/...). Of a detector: coco:DIR. The classes must be the checkpoint's."""
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
    """What a detector does with annotations that cannot be: refuse: stop and list them; drop: leave them out."""
    exif: Literal["upright", "stored"] | None = None
    """How a detector's photos are read that EXIF says were taken with the camera turned; upright: turned as it says;
    stored: as their pixels are stored, for annotations made that way; if not given, as in training."""
    results: Path | None = None
    """A detector's findings go to this file, as COCO's results."""
    json: bool = False
    """Print the scores as JSON."""


def run(arguments: list[str]) -> None:
    """Evaluate as `arguments` say."""
    chosen = parsed(Arguments, arguments, prog="parhelion evaluate")
    if chosen.batch is not None and chosen.batch < 1:
        raise UserError(f"batch is {chosen.batch}; it must be at least 1")
    if chosen.image_px < 0:
        raise UserError(f"image_px is {chosen.image_px}; it must be at least 1, or 0 for that of training")
    check_writable("--results", chosen.results)
    # Brings torch, which a help text need not wait for.
    from parhelion.evaluate.saved_detector import holds_detector

    if holds_detector(chosen.checkpoint):
        refuse_options(chosen, "a classifier", data_dir=None, download=False)
        _detector(chosen)
    else:
        refuse_options(chosen, "a detector", results=None, on_bad_annotation="refuse", exif=None)
        _classifier(chosen)


def _classifier(chosen: Arguments) -> None:
    from parhelion.data.sources import open_source
    from parhelion.evaluate.saved import load_classifier, on_fastest_device
    from parhelion.evaluate.validate import validate

    classifier = on_fastest_device(load_classifier(chosen.checkpoint))
    source = open_source(
        chosen.data,
        data_dir=chosen.data_dir,
        download=chosen.download,
        in_chans=classifier.preprocessing.in_chans,
        splits=("val",),
    )
    if chosen.image_px:
        classifier = replace(classifier, preprocessing=replace(classifier.preprocessing, image_px=chosen.image_px))
    outcome = validate(
        classifier,
        source,
        batch=CLASSIFIER_BATCH if chosen.batch is None else chosen.batch,
        workers=chosen.workers,
        on_bad_image=chosen.on_bad_image,
        quiet=chosen.json,
    )
    scores = outcome.metrics()
    if chosen.json:
        print(json.dumps({"model": classifier.name, "data": chosen.data, **scores}, indent=2))
    else:
        _show_skipped(f"{classifier.name} on {source.name}", scores["images"], outcome.skipped)
        print(f"loss   {scores['loss']:.4f}")
        print(f"top-1  {100 * scores['top1']:.2f}%")
        print(f"top-5  {100 * scores['top5']:.2f}%")


def _detector(chosen: Arguments) -> None:
    from parhelion.data.coco import open_coco
    from parhelion.evaluate.detect import detect
    from parhelion.evaluate.saved import on_fastest_device
    from parhelion.evaluate.saved_detector import load_detector, with_image_px
    from parhelion.train.atomic import write_json

    detector = on_fastest_device(load_detector(chosen.checkpoint))
    source = open_coco(
        chosen.data,
        in_chans=detector.in_chans,
        splits=("val",),
        masks=detector.masks,
        on_bad_annotation=chosen.on_bad_annotation,
        exif=chosen.exif or detector.exif,
    )
    assert source.val is not None
    if chosen.image_px:
        detector = with_image_px(detector, chosen.image_px)
    results = detect(
        detector,
        source.val,
        source=source.name,
        batch=DETECTOR_BATCH if chosen.batch is None else chosen.batch,
        workers=chosen.workers,
        on_bad_image=chosen.on_bad_image,
        quiet=chosen.json,
    )
    if chosen.results is not None:
        write_json(chosen.results, results.entries)
    scores = results.scores(source.val, masks=detector.masks)
    dropped = {kind: list(ids) for kind, ids in source.val.dropped.items()}
    if chosen.json:
        facts: dict[str, Any] = {"model": detector.name, "data": chosen.data, "images": len(results.image_ids)}
        left_out = {"skipped": len(results.skipped), "dropped": dropped, "notes": source.val.report.notes()}
        print(json.dumps({**facts, **left_out, **scores.as_dict()}, indent=2, ensure_ascii=False))
    else:
        for sentence in source.val.report.notes():
            print(sentence)
        _show_skipped(f"{detector.name} on {source.name}", len(results.image_ids), results.skipped)
        print(scores.text())


def _show_skipped(title: str, images: Any, skipped: Any) -> None:
    for sentence in skipped:
        print(f"skipped: {sentence}")
    print(f"{title}: {images} images" + (f", {len(skipped)} skipped" if skipped else ""))
