"""Run folders as `parhelion train` leaves them, without training."""

import json
import math
from pathlib import Path
from typing import Any

import torch

from parhelion.data.transforms import Preprocessing
from parhelion.evaluate.saved import Classifier, save_classifier
from parhelion.models.catalog import create_model
from parhelion.recipes.recipe import Recipe
from parhelion.train.record import RunRecord


def pretend_run(
    folder: Path,
    model: str = "resnet_tiny",
    *,
    seed: int = 0,
    epochs: int = 3,
    done: int | None = None,
    best: float = 0.9,
    data: str = "fashion-mnist",
    image_px: int = 28,
    **fields: Any,
) -> Path:
    """A run of `epochs` of which `done` are over, whose accuracy rises towards `best`."""
    recipe = Recipe(model=model, image_px=image_px, in_chans=1, epochs=epochs, lr_per_256=0.1, seed=seed, **fields)
    environment = {"hardware": {"cpu": "one like any other", "gpus": []}}
    record = RunRecord(folder, recipe={**recipe.as_dict(), "data": data}, environment=environment)
    for epoch in range(1, (epochs if done is None else done) + 1):
        top1 = best * (1 - 0.4 * math.exp(-4 * epoch / epochs)) + 0.002 * math.sin(7 * epoch + seed)
        row = {"epoch": epoch, "train_loss": 2 - top1, "val_loss": 1.5 - top1, "top1": top1, "top5": 0.5 + top1 / 2}
        record.add({**row, "seconds": 50.0 + seed + 9 * len(model), "images_per_second": 900.0 + seed})
    arguments = {"num_classes": 10, "in_chans": 1, "image_size": image_px, **recipe.model_choices()}
    classifier = Classifier(
        model=create_model(model, **arguments),
        name=model,
        arguments=json.loads(json.dumps(arguments)),
        class_names=tuple("abcdefghij"),
        preprocessing=Preprocessing(image_px=image_px, in_chans=1, mean=(0.5,), std=(0.25,)),
        epoch=epochs,
        metrics={},
    )
    with torch.no_grad():
        save_classifier(folder / "weights.safetensors", classifier)
    return folder
