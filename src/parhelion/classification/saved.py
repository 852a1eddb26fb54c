"""`Classifier`: a network with all that is needed to use it, saved in one file with its weights."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from parhelion.data.transforms import Preprocessing, Transform, as_stored, eval_transform
from parhelion.errors import UserError
from parhelion.files.run_folder import RECIPE
from parhelion.files.weights import read_saved, save_weights, weights_file, why_not_fit
from parhelion.models import create_model
from parhelion.models.count import multiply_adds, parameters
from parhelion.models.trained import timm_config

FACTS = ("model", "model_arguments", "class_names", "preprocessing")


@dataclass(frozen=True, kw_only=True)
class Classifier:
    """A classifier with all that is needed to use it on an image file."""

    model: nn.Module
    name: str
    # What `create_model` was given besides the name.
    arguments: dict[str, Any]
    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    # Complete epochs of training behind the weights, and the scores after the last of them.
    epoch: int
    metrics: dict[str, float]
    # True: the model takes images as files have them, (B, H, W, C) uint8 of any size, and prepares them itself.
    takes_files: bool = False

    @property
    def transform(self) -> Transform:
        """What makes a tensor for the model of a PIL image."""
        return as_stored if self.takes_files else eval_transform(self.preprocessing)

    @classmethod
    def load(cls, path: str | Path) -> "Classifier":
        """The classifier in a run folder or a .safetensors file, in evaluation mode on the CPU.

        `classifier.transform` makes tensors of images for it, and
        `classification.predict.predictions(classifier, paths)` classifies image files. The model's `pretrained_cfg`
        tells timm the same preprocessing and class names.

        Raises UserError where there is none, the file is damaged or a pickle, or its weights are of another
        architecture than the file, or the recipe beside it, says.
        """
        path = Path(path)
        file = weights_file(path)
        weights, facts = read_saved(file, kind="classifier", needed=FACTS)
        expected = _recipe_model(path) or facts["model"]
        model = create_model(expected, **facts["model_arguments"])
        misfit = why_not_fit(model, weights)
        if misfit or expected != facts["model"]:
            written = f" (written for {facts['model']})" if expected != facts["model"] else ""
            detail = misfit or "the names differ, though the tensors fit"
            raise UserError(f"{file}{written} is a checkpoint of another architecture than {expected}: {detail}")
        model.load_state_dict(weights)
        names, preprocessing = tuple(facts["class_names"]), Preprocessing.from_dict(facts["preprocessing"])
        config: Any = model.pretrained_cfg
        config.update(timm_config(preprocessing, names))
        return cls(
            # In the memory layout of training, so that scores agree to the last bit.
            model=model.eval().to(memory_format=torch.channels_last),
            name=facts["model"],
            arguments=facts["model_arguments"],
            class_names=names,
            preprocessing=preprocessing,
            epoch=facts.get("epoch", 0),
            metrics=facts.get("metrics", {}),
        )

    def save(self, path: Path) -> None:
        """Write the classifier to the file `path` in one step."""
        facts = {
            "model": self.name,
            "model_arguments": self.arguments,
            "class_names": list(self.class_names),
            "preprocessing": self.preprocessing.as_dict(),
            "epoch": self.epoch,
            "metrics": self.metrics,
        }
        save_weights(path, self.model.state_dict(), facts)

    def with_image_px(self, image_px: int) -> "Classifier":
        """The same classifier, its network shared, for images of `image_px` pixels a side."""
        return replace(self, preprocessing=replace(self.preprocessing, image_px=image_px))


def costs(facts: Mapping[str, Any]) -> tuple[int, int]:
    """Parameters, and multiply-adds of one image in evaluation, of the classifier with the header `facts`."""
    side = facts["preprocessing"]["image_px"]
    with torch.device("meta"):
        model = create_model(facts["model"], **facts["model_arguments"])
    return parameters(model), multiply_adds(model, (side, side))


def _recipe_model(path: Path) -> str | None:
    """The model that the recipe in the run folder `path` names; None if `path` is no run folder."""
    recipe = path / RECIPE
    if not recipe.is_file():
        return None
    try:
        return json.loads(recipe.read_text(encoding="utf-8"))["model"]
    except (json.JSONDecodeError, KeyError, TypeError, OSError) as error:
        raise UserError(f"{recipe} is damaged ({error})") from error
