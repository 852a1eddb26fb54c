"""`parhelion predict DIR_OR_CHECKPOINT IMAGE...`."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import tyro

from parhelion.cli.answers import Entry, Table, json_array, json_line, tab_separated
from parhelion.cli.arguments import check_writable, make_folder, parsed, refuse_options
from parhelion.cli.checkpoints import is_detector, load_classifier
from parhelion.cli.devices import move_to_fastest_device
from parhelion.errors import UserError

if TYPE_CHECKING:
    from parhelion.classification.predict import Prediction as Classes
    from parhelion.classification.saved import Classifier
    from parhelion.data.images import BadImage
    from parhelion.detection.predict import Prediction as Objects
    from parhelion.detection.saved import Detector

Answer = TypeVar("Answer")

TOP_CLASSES, TOP_OBJECTS = 5, 100
CLASSIFIER_BATCH = 64
MIN_SCORE = 0.5


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Say what is in image files, or where: a table on a terminal, tab-separated lines elsewhere.

    Each answer is printed when it is known. An unreadable image is named on standard error, and the others are answered
    all the same.
    """

    checkpoint: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR_OR_CHECKPOINT")]
    """Run folder or .safetensors file that parhelion train wrote, or a .onnx or .xml file of parhelion export."""
    images: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE...")] = ()
    """Image files, and folders: all images below them."""
    top: int | None = None
    """Classes to name for each image, 5 if not given; of a detector, the most objects, 100 if not given."""
    batch: int | None = None
    """Images at a time, 64 if not given; a detector takes one."""
    min_score: float | None = None
    """Smallest score of an object that a detector names, 0.5 if not given."""
    out: Path | None = None
    """A detector draws what it found into pictures in this folder, which is passed over where it lies in one of
    IMAGE."""
    results: Path | None = None
    """A detector's findings go to this file, as COCO's results; images are numbered from 1."""
    on_bad_image: Literal["refuse", "skip"] = "refuse"
    """What an unreadable image means, once all others are answered: refuse: exit code 2; skip: exit code 0."""
    json: bool = False
    """Print the predictions as JSON: one array, whose entries are written as they come."""
    jsonl: bool = False
    """Print the predictions as JSON lines: one object in a line for each image."""


def run(arguments: list[str]) -> None:
    """Predict as `arguments` say."""
    chosen = parsed(Arguments, arguments, prog="parhelion predict")
    if not chosen.images:
        raise UserError("parhelion predict needs one IMAGE or more after the checkpoint")
    if chosen.json and chosen.jsonl:
        raise UserError("--json prints one array and --jsonl a line for each image; choose one of them")
    check_writable("--results", chosen.results)
    # Brings Pillow and numpy, which a help text need not wait for.
    from parhelion.data.image_files import image_files

    found = image_files(chosen.images, without=chosen.out)
    detects = is_detector(chosen.checkpoint)
    if detects:
        refuse_options(chosen, "a classifier", batch=None)
    else:
        refuse_options(chosen, "a detector", min_score=None, out=None, results=None)
    sentence = found.left_out()
    if sentence:
        _tell(f"parhelion: {sentence}")
    unreadable = (_objects if detects else _classes)(chosen, found.files)
    if unreadable and chosen.on_bad_image == "refuse":
        raise UserError(
            f"{unreadable} of {len(found.files)} images could not be read; with --on-bad-image skip they are left out"
        )


def _classes(chosen: Arguments, images: Sequence[Path]) -> int:
    """Print the classes of each image; return how many images could not be read."""
    from parhelion.classification.predict import predictions
    from parhelion.data.images import BadImage

    classifier = load_classifier(chosen.checkpoint)
    top = TOP_CLASSES if chosen.top is None else chosen.top
    batch = CLASSIFIER_BATCH if chosen.batch is None else chosen.batch
    unreadable = 0
    with _printer(chosen, _classes_as_json, lambda: _class_rows(classifier, images)) as show:
        for prediction in predictions(classifier, images, top=top, batch=batch, on_bad_image="skip"):
            if isinstance(prediction, BadImage):
                unreadable += 1
                _tell_unreadable(chosen, prediction)
            else:
                show(prediction)
    return unreadable


def _objects(chosen: Arguments, images: Sequence[Path]) -> int:
    """Print the objects in each image, draw and keep them as asked; return how many images could not be read."""
    from parhelion.data.images import BadImage
    from parhelion.detection.predict import predictions
    from parhelion.detection.saved import Detector
    from parhelion.files.atomic import write_json

    detector = Detector.load(chosen.checkpoint)
    move_to_fastest_device(detector.model)
    top = TOP_OBJECTS if chosen.top is None else chosen.top
    min_score = MIN_SCORE if chosen.min_score is None else chosen.min_score
    pictures = _pictures(chosen.out, images) if chosen.out is not None else {}
    results: list[dict[str, Any]] = []
    unreadable = 0
    with _printer(
        chosen, partial(_objects_as_json, detector=detector), lambda: partial(_object_lines, detector=detector)
    ) as show:
        for prediction in predictions(detector, images, min_score=min_score, top=top, on_bad_image="skip"):
            if isinstance(prediction, BadImage):
                unreadable += 1
                _tell_unreadable(chosen, prediction)
                continue
            if chosen.results is not None:
                results += prediction.found.results(detector.category_ids)
            if prediction.path in pictures:
                _draw(prediction, detector, pictures[prediction.path], min_score=min_score, top=top)
            show(prediction)
    if chosen.results is not None:
        write_json(chosen.results, results)
    return unreadable


@contextmanager
def _printer(
    chosen: Arguments, as_json: Callable[[Answer], Entry], as_text: Callable[[], Callable[[Answer], None]]
) -> Iterator[Callable[[Answer], None]]:
    """Prints each answer as `chosen` says; `as_text` gets ready to print them for people, or line by line."""
    if chosen.json:
        with json_array() as add:
            yield lambda answer: add(as_json(answer))
    elif chosen.jsonl:
        yield lambda answer: json_line(as_json(answer))
    else:
        yield as_text()


def _classes_as_json(prediction: "Classes") -> dict[str, Any]:
    ranked = zip(prediction.classes, prediction.probabilities, strict=True)
    return {
        "image": str(prediction.path),
        "predictions": [{"class": name, "probability": round(share, 6)} for name, share in ranked],
    }


def _class_rows(classifier: "Classifier", images: Sequence[Path]) -> "Callable[[Classes], None]":
    """Prints a prediction as a row of a table on a terminal, as a tab-separated line elsewhere."""
    if not sys.stdout.isatty():
        return lambda prediction: tab_separated(prediction.path, *_cells(prediction))
    widths = (max(len(str(image)) for image in images), max(map(len, classifier.class_names)), 0)
    table = Table(("image", "class", "probability", "others"), widths)

    def show(prediction: "Classes") -> None:
        (name, share), *rest = zip(prediction.classes, prediction.probabilities, strict=True)
        others = ", ".join(f"{name} {100 * share:.1f}%" for name, share in rest)
        table.row([(str(prediction.path), ""), (name, "bold"), (f"{100 * share:.1f}%", ""), (others, "dim")])

    return show


def _cells(prediction: "Classes") -> Iterator[str]:
    for name, share in zip(prediction.classes, prediction.probabilities, strict=True):
        yield from (name, f"{share:.4f}")


def _objects_as_json(prediction: "Objects", *, detector: "Detector") -> dict[str, Any]:
    found = prediction.found
    h, w = found.size
    columns = (found.names(detector.class_names), found.scores.tolist(), found.boxes.tolist())
    objects = [
        {"class": name, "score": round(score, 6), "box": [round(edge, 1) for edge in box]}
        for name, score, box in zip(*columns, strict=True)
    ]
    return {"image": str(prediction.path), "height": h, "width": w, "objects": objects}


def _object_lines(prediction: "Objects", *, detector: "Detector") -> None:
    """Print a tab-separated line for each object of an image."""
    entry = _objects_as_json(prediction, detector=detector)
    for one in entry["objects"]:
        tab_separated(entry["image"], one["class"], f"{one['score']:.4f}", *one["box"])
    if not entry["objects"]:
        tab_separated(entry["image"], "nothing found")


def _draw(prediction: "Objects", detector: "Detector", file: Path, *, min_score: float, top: int) -> None:
    from parhelion.detection.plots import draw_found
    from parhelion.files.atomic import replacement

    drawn = draw_found(prediction.image, prediction.found, detector.class_names, min_score=min_score, top=top)
    with replacement(file) as temporary:
        drawn.save(temporary)


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
    make_folder("--out", folder)
    return pictures


def _tell_unreadable(chosen: Arguments, image: "BadImage") -> None:
    _tell(f"{'parhelion' if chosen.on_bad_image == 'refuse' else 'skipped'}: {image}")


def _tell(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)
