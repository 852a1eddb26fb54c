"""`parhelion predict DIR_OR_CHECKPOINT IMAGE...`."""

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from parhelion.cli.arguments import check_writable, parsed, refuse_options
from parhelion.errors import UserError, printable

if TYPE_CHECKING:
    from parhelion.detection.found import Found
    from parhelion.evaluate.predict import Prediction
    from parhelion.evaluate.saved_detector import Detector

TOP_CLASSES, TOP_OBJECTS = 5, 100
CLASSIFIER_BATCH = 64
MIN_SCORE = 0.5


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Say what is in image files, or where: a table on a terminal, tab-separated lines elsewhere."""

    checkpoint: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR_OR_CHECKPOINT")]
    """Run folder or .safetensors file that parhelion train wrote."""
    images: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE...")] = ()
    """Image files."""
    top: int | None = None
    """Classes to name for each image, 5 if not given; of a detector, the most objects, 100 if not given."""
    batch: int | None = None
    """Images at a time, 64 if not given; a detector takes one."""
    min_score: float | None = None
    """Smallest score of an object that a detector names, 0.5 if not given."""
    out: Path | None = None
    """A detector draws what it found into pictures in this folder."""
    results: Path | None = None
    """A detector's findings go to this file, as COCO's results; images are numbered from 1."""
    on_bad_image: Literal["refuse", "skip"] = "refuse"
    """What to do with an unreadable image: refuse: stop and name it; skip: say so and go on."""
    json: bool = False
    """Print the predictions as JSON."""


def run(arguments: list[str]) -> None:
    """Predict as `arguments` say."""
    chosen = parsed(Arguments, arguments, prog="parhelion predict")
    if not chosen.images:
        raise UserError("parhelion predict needs one IMAGE or more after the checkpoint")
    check_writable("--results", chosen.results)
    # Bring torch, which a help text need not wait for.
    from parhelion.evaluate.predict import check_images
    from parhelion.evaluate.saved_detector import holds_detector

    check_images(chosen.images)
    if holds_detector(chosen.checkpoint):
        refuse_options(chosen, "a classifier", batch=None)
        _objects(chosen)
    else:
        refuse_options(chosen, "a detector", min_score=None, out=None, results=None)
        _classes(chosen)


def _classes(chosen: Arguments) -> None:
    from parhelion.evaluate.predict import Prediction, predictions
    from parhelion.evaluate.saved import load_classifier, on_fastest_device

    classifier = on_fastest_device(load_classifier(chosen.checkpoint))
    top = TOP_CLASSES if chosen.top is None else chosen.top
    batch = CLASSIFIER_BATCH if chosen.batch is None else chosen.batch
    said: list[Prediction] = []
    for answer in predictions(classifier, chosen.images, top=top, batch=batch, on_bad_image=chosen.on_bad_image):
        if isinstance(answer, Prediction):
            said.append(answer)
        else:
            print(f"skipped: {answer}", file=sys.stderr)
    if chosen.json:
        print(printable(json.dumps([_as_json(prediction) for prediction in said], indent=2, ensure_ascii=False)))
    elif sys.stdout.isatty():
        _print_table(said)
    else:
        for prediction in said:
            print(*_cells(prediction), sep="\t")


def _as_json(prediction: "Prediction") -> dict[str, Any]:
    ranked = zip(prediction.classes, prediction.probabilities, strict=True)
    return {
        "image": prediction.image,
        "predictions": [{"class": name, "probability": round(share, 6)} for name, share in ranked],
    }


def _cells(prediction: "Prediction") -> list[str]:
    ranked = zip(prediction.classes, prediction.probabilities, strict=True)
    return [prediction.image, *(cell for name, share in ranked for cell in (name, f"{share:.4f}"))]


def _print_table(said: Iterable["Prediction"]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("image", "class", "probability", "others", header_style="bold", box=None, pad_edge=False)
    for prediction in said:
        ranked = list(zip(prediction.classes, prediction.probabilities, strict=True))
        others = ", ".join(f"{name} {100 * share:.1f}%" for name, share in ranked[1:])
        (name, share), *_ = ranked
        row = (prediction.image, Text(name, style="bold"), f"{100 * share:.1f}%", Text(others, style="dim"))
        table.add_row(Text(row[0]), *row[1:])
    Console().print(table)


def _objects(chosen: Arguments) -> None:
    from parhelion.evaluate.detection_pictures import draw_found
    from parhelion.evaluate.predict_objects import Objects, objects
    from parhelion.evaluate.saved import on_fastest_device
    from parhelion.evaluate.saved_detector import load_detector
    from parhelion.train.atomic import replacement, write_json

    detector = on_fastest_device(load_detector(chosen.checkpoint))
    top = TOP_OBJECTS if chosen.top is None else chosen.top
    min_score = MIN_SCORE if chosen.min_score is None else chosen.min_score
    pictures = _pictures(chosen.out, chosen.images) if chosen.out is not None else {}
    said, results = [], []
    for answer in objects(detector, chosen.images, min_score=min_score, top=top, on_bad_image=chosen.on_bad_image):
        if not isinstance(answer, Objects):
            print(f"skipped: {answer}", file=sys.stderr)
            continue
        said.append(_objects_as_json(str(answer.path), answer.found, detector))
        results += answer.found.results(detector.category_ids) if chosen.results is not None else []
        if answer.path in pictures:
            drawn = draw_found(answer.image, answer.found, detector.class_names, min_score=min_score, top=top)
            with replacement(pictures[answer.path]) as temporary:
                drawn.save(temporary)
    if chosen.results is not None:
        write_json(chosen.results, results)
    if chosen.json:
        print(printable(json.dumps(said, indent=2, ensure_ascii=False)))
        return
    for image in said:
        for thing in image["objects"]:
            print(image["image"], thing["class"], f"{thing['score']:.4f}", *thing["box"], sep="\t")
        if not image["objects"]:
            print(image["image"], "nothing found", sep="\t")


def _objects_as_json(image: str, found: "Found", detector: "Detector") -> dict[str, Any]:
    h, w = found.size
    columns = (found.names(detector.class_names), found.scores.tolist(), found.boxes.tolist())
    things = [
        {"class": name, "score": round(score, 6), "box": [round(edge, 1) for edge in box]}
        for name, score, box in zip(*columns, strict=True)
    ]
    return {"image": image, "height": h, "width": w, "objects": things}


def _pictures(folder: Path, images: Sequence[Path]) -> dict[Path, Path]:
    """Where the picture of each image goes: its name with .png, and its number in front if two share a name.

    Makes the folder. Raises UserError where that cannot be, or a picture would take the place of an image.
    """
    numbered = len({image.stem for image in images}) < len(images)
    pictures = {
        image: folder / (f"{number}_{image.stem}.png" if numbered else f"{image.stem}.png")
        for number, image in enumerate(images, start=1)
    }
    originals = {image.resolve() for image in images}
    for picture in pictures.values():
        if picture.resolve() in originals:
            raise UserError(f"--out {folder} would write a picture over the image {picture}; name another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {folder} cannot be made: {error.strerror}") from error
    return pictures
