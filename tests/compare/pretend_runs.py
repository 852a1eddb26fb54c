"""Run folders as `parhelion train` leaves them, without training."""

import json
import math
from pathlib import Path
from typing import Any

from parhelion.classification.recipe import ClassificationRecipe
from parhelion.classification.saved import Classifier, save_classifier
from parhelion.detection.recipe import DetectionRecipe
from parhelion.detection.saved import Detector, built, save_detector
from parhelion.files.run_folder import RunRecord
from parhelion.models.catalog import create_model
from parhelion.runs.recipe import Recipe

DETECTED = ("a", "b", "c")


def pretend_run(
    folder: Path,
    model: str = "resnet_tiny",
    *,
    done: int | None = None,
    best: float = 0.9,
    data: str = "fashion-mnist",
    **fields: Any,
) -> Path:
    """A run of which `done` epochs (all if None) are over, whose accuracy rises towards `best`."""
    small = {"image_px": 28, "in_chans": 1, "epochs": 3, "lr_per_256": 0.1}
    recipe = ClassificationRecipe(model=model, **{**small, **fields})
    return pretend(recipe, folder, done=done, best=best, data=data)


def pretend_detection(
    folder: Path,
    model: str = "resnet_tiny",
    *,
    best: float = 0.4,
    data: str = "coco:scenes",
    init_from: str | None = None,
    **fields: Any,
) -> Path:
    """A run of a small detector, all its epochs over, whose average precision rises towards `best`."""
    small = {"image_px": 64, "epochs": 3, "lr_per_256": 0.1, "fpn_width": 8, "box_width": 16, "mask_width": 8}
    recipe = DetectionRecipe(model=model, **{**small, **fields})
    record = _record(recipe, folder, data=data, init_from=init_from)
    for epoch in range(1, recipe.epochs + 1):
        box = best * (1 - 0.4 * math.exp(-4 * epoch / recipe.epochs)) + 0.002 * math.sin(7 * epoch + recipe.seed)
        row = {"epoch": epoch, "train_loss": 2 - box, "box_ap": box, "box_ap50": 1.5 * box}
        row |= {"mask_ap": 0.9 * box, "mask_ap50": 1.3 * box} if recipe.masks else {}
        record.add({**row, "seconds": 60.0 + recipe.seed, "images_per_second": 10.0})
    arguments = json.loads(json.dumps(recipe.detector(len(DETECTED))))
    detector = Detector(
        model=built(arguments), arguments=arguments, class_names=DETECTED, category_ids=(3, 7, 90), metrics={}
    )
    save_detector(folder / "weights.safetensors", detector)
    return folder


def pretend(recipe: ClassificationRecipe, folder: Path, *, done: int | None, best: float, data: str) -> Path:
    """A run of `recipe`, as `pretend_run` makes it."""
    record = _record(recipe, folder, data=data)
    seed, epochs = recipe.seed, recipe.epochs
    for epoch in range(1, (epochs if done is None else done) + 1):
        top1 = best * (1 - 0.4 * math.exp(-4 * epoch / epochs)) + 0.002 * math.sin(7 * epoch + seed)
        row = {"epoch": epoch, "train_loss": 2 - top1, "val_loss": 1.5 - top1, "top1": top1, "top5": 0.5 + top1 / 2}
        record.add({**row, "seconds": 50.0 + seed + 9 * len(recipe.model), "images_per_second": 900.0 + seed})
    arguments = {"num_classes": 10, "in_chans": recipe.in_chans, "image_size": recipe.image_px}
    arguments |= recipe.model_choices()
    classifier = Classifier(
        model=create_model(recipe.model, **arguments),
        name=recipe.model,
        arguments=json.loads(json.dumps(arguments)),
        class_names=tuple("abcdefghij"),
        preprocessing=recipe.preprocessing(),
        epoch=epochs,
        metrics={},
    )
    save_classifier(folder / "weights.safetensors", classifier)
    return folder


def _record(recipe: Recipe, folder: Path, *, data: str, init_from: str | None = None) -> RunRecord:
    environment = {"hardware": {"cpu": "one like any other", "gpus": []}}
    resolved = {**recipe.as_dict(), "data": data, "data_dir": None, "init_from": init_from}
    return RunRecord(folder, recipe=resolved, environment=environment)
