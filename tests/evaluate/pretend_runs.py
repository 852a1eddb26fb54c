"""Run folders as `parhelion train` leaves them, without training."""

import json
import math
from pathlib import Path
from typing import Any

from parhelion.evaluate.saved import Classifier, save_classifier
from parhelion.models.catalog import create_model
from parhelion.recipes.classification_recipe import ClassificationRecipe
from parhelion.train.record import RunRecord


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


def pretend(recipe: ClassificationRecipe, folder: Path, *, done: int | None, best: float, data: str) -> Path:
    """A run of `recipe`, as `pretend_run` makes it."""
    environment = {"hardware": {"cpu": "one like any other", "gpus": []}}
    resolved = {**recipe.as_dict(), "data": data, "data_dir": None, "init_from": None}
    record = RunRecord(folder, recipe=resolved, environment=environment)
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
