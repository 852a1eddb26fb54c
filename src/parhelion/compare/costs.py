"""What the model of a run folder costs, counted on the network that its weights are of."""

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import device as torch_device

from parhelion.detection.saved import TASK, built
from parhelion.errors import UserError
from parhelion.files.run_folder import WEIGHTS
from parhelion.files.weights import read_facts
from parhelion.models.catalog import create_model
from parhelion.models.count import multiply_adds, parameters


def costs(folder: Path) -> tuple[int, int]:
    """Parameters of the model whose weights lie in `folder`, and multiply-adds of one image as it is evaluated.

    Those of a detector are of its backbone, for a square image; what its heads do depends on what they find. Raises
    UserError where the weights are damaged or describe no model that can be built.
    """
    facts = read_facts(folder / WEIGHTS)
    try:
        if facts.get("task") == TASK:
            return _of_detector(_frozen(facts["detector"]))
        return _of_classifier(facts["model"], _frozen(facts["model_arguments"]), facts["preprocessing"]["image_px"])
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"the header of {folder / WEIGHTS} describes no model that can be built ({error})") from error


def _frozen(arguments: Mapping[str, Any]) -> str:
    """`arguments` as what a cache can remember: seeds of one recipe are counted once."""
    return json.dumps(arguments, sort_keys=True)


@lru_cache
def _of_classifier(model: str, arguments: str, image_px: int) -> tuple[int, int]:
    # Rows of the catalogue hold tuples, which JSON does not know.
    given: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in json.loads(arguments).items()}
    with torch_device("meta"):
        network = create_model(model, **given)
    return parameters(network), multiply_adds(network, (image_px, image_px))


@lru_cache
def _of_detector(arguments: str) -> tuple[int, int]:
    given = json.loads(arguments)
    with torch_device("meta"):
        detector: Any = built(given)
    return parameters(detector), multiply_adds(detector.backbone.body, (given["image_px"],) * 2)
