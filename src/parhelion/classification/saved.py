"""Classifiers as `parhelion train` saves them: weights, class names and preprocessing in one file."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import nn

from parhelion.data.transforms import Preprocessing
from parhelion.errors import UserError
from parhelion.files.run_folder import RECIPE
from parhelion.files.weights import read_saved, save_weights, weights_file, why_not_fit
from parhelion.models.catalog import create_model
from parhelion.models.trained import timm_config


class WithModel(Protocol):
    """Whatever is saved has a model."""

    @property
    def model(self) -> nn.Module: ...


Saved = TypeVar("Saved", bound=WithModel)


@dataclass(frozen=True, kw_only=True)
class Classifier:
    """A model with all that is needed to use it on an image file."""

    model: nn.Module
    name: str
    # What `create_model` was given besides the name.
    arguments: dict[str, Any]
    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    # Complete epochs of training behind the weights, and the scores after the last of them.
    epoch: int
    metrics: dict[str, float]


def save_classifier(path: Path, classifier: Classifier) -> None:
    """Write `classifier` to `path` in one step."""
    facts = {
        "model": classifier.name,
        "model_arguments": classifier.arguments,
        "class_names": list(classifier.class_names),
        "preprocessing": classifier.preprocessing.as_dict(),
        "epoch": classifier.epoch,
        "metrics": classifier.metrics,
    }
    save_weights(path, classifier.model.state_dict(), facts)


def load_classifier(path: str | Path) -> Classifier:
    """The classifier in a run folder or a .safetensors file, in evaluation mode on the CPU.

    `data.transforms.eval_transform(classifier.preprocessing)` makes tensors of images for it, and
    `evaluate.predict.predictions(classifier, paths)` says what is in image files. The model's `pretrained_cfg` tells
    timm the same preprocessing and class names.

    Raises UserError where there is none, the file is damaged or a pickle, or the weights are those of another
    architecture than they, or the recipe beside them, name.
    """
    path = Path(path)
    file = weights_file(path)
    weights, facts = read_saved(file)
    missing = [key for key in ("model", "model_arguments", "class_names", "preprocessing") if key not in facts]
    if missing:
        raise UserError(f"{file} is no classifier: its header lacks {', '.join(missing)}")
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
    return Classifier(
        # In the memory layout of training, so that scores agree to the last bit.
        model=model.eval().to(memory_format=torch.channels_last),
        name=facts["model"],
        arguments=facts["model_arguments"],
        class_names=names,
        preprocessing=preprocessing,
        epoch=facts.get("epoch", 0),
        metrics=facts.get("metrics", {}),
    )


def on_fastest_device(saved: Saved) -> Saved:
    """`saved` with its model moved to the first GPU, if there is one."""
    if torch.cuda.is_available():
        saved.model.to("cuda")
    return saved


def _recipe_model(path: Path) -> str | None:
    """The model that the recipe of the run folder `path` names, if it is one."""
    recipe = path / RECIPE
    if not recipe.is_file():
        return None
    try:
        return json.loads(recipe.read_text(encoding="utf-8"))["model"]
    except (json.JSONDecodeError, KeyError, TypeError, OSError) as error:
        raise UserError(f"{recipe} is damaged ({error})") from error
