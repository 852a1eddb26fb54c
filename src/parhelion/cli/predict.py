"""`parhelion predict DIR_OR_CHECKPOINT IMAGE...`."""

import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from parhelion.cli.arguments import parsed
from parhelion.errors import UserError

if TYPE_CHECKING:
    from parhelion.evaluate.predict import Prediction


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Say what is in image files: a table on a terminal, tab-separated lines elsewhere."""

    checkpoint: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR_OR_CHECKPOINT")]
    """Run folder or .safetensors file that parhelion train wrote."""
    images: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE...")] = ()
    """Image files."""
    top: int = 5
    """Classes to name for each image."""
    batch: int = 64
    """Images at a time."""
    on_bad_image: Literal["refuse", "skip"] = "refuse"
    """What to do with an unreadable image: refuse: stop and name it; skip: say so and go on."""
    json: bool = False
    """Print the predictions as JSON."""


def run(arguments: list[str]) -> None:
    """Predict as `arguments` say."""
    chosen = parsed(Arguments, arguments, prog="parhelion predict")
    if not chosen.images:
        raise UserError("parhelion predict needs one IMAGE or more after the checkpoint")
    # Brings torch, which a help text need not wait for.
    from parhelion.evaluate.predict import Prediction, check_images, predictions
    from parhelion.evaluate.saved import load_classifier, on_fastest_device

    check_images(chosen.images)
    classifier = on_fastest_device(load_classifier(chosen.checkpoint))
    found = predictions(classifier, chosen.images, top=chosen.top, batch=chosen.batch, on_bad_image=chosen.on_bad_image)
    said: list[Prediction] = []
    for answer in found:
        if isinstance(answer, Prediction):
            said.append(answer)
        else:
            print(f"skipped: {answer}", file=sys.stderr)
    if chosen.json:
        print(json.dumps([_as_json(prediction) for prediction in said], indent=2, ensure_ascii=False))
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
