"""The classifier that a command is given: of a run, a weights file, or a file of `parhelion export`."""

from pathlib import Path
from typing import TYPE_CHECKING

from parhelion.cli.devices import move_to_fastest_device
from parhelion.detection.recipe import DetectionRecipe
from parhelion.export.formats import check_usable, format_of
from parhelion.files.weights import is_of_task

if TYPE_CHECKING:
    from parhelion.classification.saved import Classifier


def is_detector(checkpoint: Path) -> bool:
    """Whether `checkpoint` is of a detector; no exported file is. Raises UserError where it is damaged or no run."""
    if format_of(checkpoint) is not None:
        check_usable(checkpoint)
        return False
    return is_of_task(checkpoint, DetectionRecipe.task)


def load_classifier(checkpoint: Path) -> "Classifier":
    """The classifier in `checkpoint`, on the fastest device that it runs on. Raises UserError."""
    if format_of(checkpoint) is not None:
        from parhelion.export.running import exported_classifier

        return exported_classifier(checkpoint)
    from parhelion.classification.saved import Classifier

    classifier = Classifier.load(checkpoint)
    move_to_fastest_device(classifier.model)
    return classifier
