"""`parhelion evaluate DIR_OR_CHECKPOINT --data SOURCE`."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from parhelion.cli.arguments import parsed


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Score a trained model on the validation images of a source."""

    checkpoint: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR_OR_CHECKPOINT")]
    """Run folder or .safetensors file that parhelion train wrote."""
    data: str
    """Images: a folder with val/ of class folders, `bundled`, `fashion-mnist`, or a dataset as timm names it
    (torch/..., hfds/..., wds/..., tfds/...); its classes must be the checkpoint's."""
    data_dir: Path | None = None
    """Where fashion-mnist or a torch/, hfds/, wds/ or tfds/ dataset lies on disk."""
    download: bool = False
    """Allow the dataset to be downloaded."""
    batch: int = 128
    """Images at a time."""
    image_px: int = 0
    """Height and width of the images, in pixels; 0: as the checkpoint was evaluated in training."""
    workers: int = 0
    """Processes that read images; 0 reads them in this process."""
    on_bad_image: Literal["refuse", "skip"] = "refuse"
    """What to do with an unreadable image: refuse: stop and name it; skip: leave it out and count it."""
    json: bool = False
    """Print the scores as JSON."""


def run(arguments: list[str]) -> None:
    """Evaluate as `arguments` say."""
    chosen = parsed(Arguments, arguments, prog="parhelion evaluate")
    # Bring torch, which a help text need not wait for.
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
        batch=chosen.batch,
        workers=chosen.workers,
        on_bad_image=chosen.on_bad_image,
        quiet=chosen.json,
    )
    scores = outcome.metrics()
    if chosen.json:
        print(json.dumps({"model": classifier.name, "data": chosen.data, **scores}, indent=2))
    else:
        _show(f"{classifier.name} on {source.name}", scores, outcome.skipped)


def _show(title: str, scores: dict[str, Any], skipped: tuple[str, ...]) -> None:
    for sentence in skipped:
        print(f"skipped: {sentence}")
    counts = f"{scores['images']} images" + (f", {len(skipped)} skipped" if skipped else "")
    print(f"{title}: {counts}")
    print(f"loss   {scores['loss']:.4f}")
    print(f"top-1  {100 * scores['top1']:.2f}%")
    print(f"top-5  {100 * scores['top5']:.2f}%")
