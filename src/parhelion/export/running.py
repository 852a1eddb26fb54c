"""An exported file opened in its own runtime: `opened`, and as a classifier like any other: `exported_classifier`."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from parhelion.classification.saved import Classifier
from parhelion.errors import UserError, first_line
from parhelion.export.facts import Facts
from parhelion.export.formats import FORMATS, check_installed, check_usable, format_of
from parhelion.shapes import Tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

# The module of this room that writes and opens files of a format.
MODULES = {"onnx": "onnx_files", "openvino": "openvino_files", "torch-export": "program_files"}


class RuntimeRefusalError(RuntimeError):
    """What a runtime said when it was given images; its first line."""


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A file in its runtime."""

    facts: Facts
    # From images to what the file answers, logits or probabilities (`Facts.prepares`).
    answer: Callable[["NDArray[Any]"], "NDArray[Any]"]
    # The sizes of the images that the file itself says it takes; None where any will do.
    shape: tuple[int | None, ...]

    def __call__(self, images: Tensor) -> Tensor:
        """The answers to a batch of images. Raises RuntimeRefusalError where the runtime does not take them."""
        try:
            answers = self.answer(images.contiguous().cpu().numpy())
        # Each runtime has errors of its own, which have no common ancestor.
        except Exception as error:
            reason = first_line(error)
            raise RuntimeRefusalError(reason) from error
        return torch.from_numpy(answers)


def module_of(name: str) -> Any:
    """What writes and opens files of the format `name`: write(program, path), tell(path, facts), opened(path)."""
    return import_module(f"parhelion.export.{MODULES[name]}")


def opened(file: Path) -> Opened:
    """The exported file `file` in its own runtime, with as many threads as PyTorch has.

    Raises UserError where there is none, its runtime is not installed, or it is damaged or none of ours.
    """
    name = format_of(file)
    if name is None:
        raise UserError(f"{file} is no exported file: these end in {', '.join(f.suffix for f in FORMATS.values())}")
    if not file.is_file():
        raise UserError(f"there is no file {file}")
    check_installed(f"to run {file}", FORMATS[name].runs_with)
    return module_of(name).opened(file)


def exported_classifier(file: Path) -> Classifier:
    """The classifier in an exported file, which answers by the file's own runtime, on the CPU.

    Raises UserError as `opened` does, and for a program of torch.export: to open one may run what is pickled in it.
    """
    check_usable(file)
    found = opened(file)
    facts = found.facts
    return Classifier(
        model=InRuntime(found),
        name=f"{facts.model} ({file.name})",
        arguments={},
        class_names=facts.class_names,
        preprocessing=facts.preprocessing,
        epoch=0,
        metrics={},
        takes_files=facts.prepares,
    )


class InRuntime(nn.Module):
    """An opened file in the place of a network: images to logits; of a file that prepares them, to log probabilities.

    A file of a fixed batch is given as many images at a time, the last ones filled up with copies.
    """

    def __init__(self, found: Opened) -> None:
        super().__init__()
        self.found = found
        # Tells callers where images go.
        self.device_is = nn.Parameter(torch.empty(0), requires_grad=False)

    def forward(self, images: Tensor) -> Tensor:
        """The answers to `images`. Raises UserError where the file does not take them."""
        facts = self.found.facts
        sides = tuple(images.shape[1:3] if facts.prepares else images.shape[2:4])
        wanted = facts.fixed[1:] if facts.fixed else (facts.smallest,) * 2
        if (facts.fixed and sides != wanted) or min(sides) < min(wanted):
            least = "" if facts.fixed else "at least "
            raise UserError(
                f"images of {sides[0]}x{sides[1]} pixels were given to a file of {facts.model} that takes {least}"
                f"{wanted[0]}x{wanted[1]}"
            )
        batch = facts.fixed[0] if facts.fixed else len(images)
        answers = torch.cat([self._some(part, batch) for part in images.split(batch)])
        return answers.log() if facts.prepares else answers

    def _some(self, images: Tensor, batch: int) -> Tensor:
        filled = images[torch.arange(batch).clamp(max=len(images) - 1)]
        return self.found(filled)[: len(images)]
