"""A small classifier with weights that tell images apart, and files of it that are no files."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from parhelion.classification.saved import Classifier
from parhelion.data.sources import open_source
from parhelion.data.transforms import Preprocessing
from parhelion.export.facts import Facts
from parhelion.export.running import Opened
from parhelion.speed import turns

ONE_CALL = replace(turns.CPU_CLOCK, turn_seconds=0.0, pause_seconds=0.0)
CLASSES = open_source("bundled", splits=("val",)).class_names


@cache
def classifier() -> Classifier:
    """One convolution, which sees directions and colours, for images of 16x16 pixels."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        convolution = nn.Conv2d(3, 32, (5, 3), stride=4)
        model = nn.Sequential(
            convolution, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, len(CLASSES))
        )
    with torch.no_grad():
        model[-1].weight.mul_(20)
    return Classifier(
        model=model.eval(),
        name="one convolution",
        arguments={},
        class_names=CLASSES,
        preprocessing=Preprocessing(image_px=16, mean=(0.3, 0.4, 0.5), std=(0.2, 0.3, 0.25)),
        epoch=0,
        metrics={},
    )


def facts(**changes: Any) -> Facts:
    """What a file of it says; `changes` differ."""
    found = classifier()
    told: dict[str, Any] = {
        "model": found.name,
        "weights": "run",
        "class_names": found.class_names,
        "preprocessing": found.preprocessing,
        "prepares": False,
        "fixed": None,
        "smallest": 9,
        "versions": {},
    }
    return Facts(**(told | changes))


def opened(answer: Callable[[Tensor], Tensor], shape: tuple[int | None, ...] = (None, 3, None, None)) -> Opened:
    """A file that answers as `answer` does."""

    def run(images: Any) -> Any:
        with torch.inference_mode():
            return answer(torch.from_numpy(images)).numpy()

    return Opened(facts=facts(), answer=run, shape=shape)
