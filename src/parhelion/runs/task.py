"""`Task`: what differs between runs by what they train for; and the data that it hands to the trainer."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader

from parhelion.data.samples import Share
from parhelion.errors import UserError
from parhelion.models.adapt import Adaptation
from parhelion.runs.lone_images import Size
from parhelion.runs.recipe import Recipe
from parhelion.train import loop


@dataclass(frozen=True, kw_only=True)
class Images:
    """What is known of a run's images before any of them is read."""

    # As --data names them.
    source: str
    # What tells them from others, ready for JSON: train_images, class_names, digest (of the training files; None where
    # there are no files), readers (among which a stream's shards are shared; None without shards), and perhaps more.
    facts: Mapping[str, Any]
    val_images: int
    # What was found, in a line.
    found: str | None = None
    # What a user should know before training starts, a sentence each.
    notes: tuple[str, ...] = ()
    # By name, the content of JSON files about the images in the run's folder.
    files: Mapping[str, Any] = field(default_factory=dict)


def _unchanged(size: Size) -> Size:
    return size


@dataclass(frozen=True, kw_only=True)
class Network:
    """A network with the weights that it starts from."""

    # A `setup.Trainee`.
    model: nn.Module
    # From the model and a batch to its losses.
    losses: loop.Losses
    # The part of the model that takes images (B, C, H, W).
    backbone: nn.Module
    # From the height and width of an image to those at which the backbone sees it in training, in pixels.
    padded: Callable[[Size], Size] = _unchanged
    # How the weights of --init-from were fitted in; None without them.
    adaptation: Adaptation | None = None


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What an evaluation on all validation images came to."""

    # By name, all that is saved with the weights.
    metrics: Mapping[str, float]
    # Those in metrics.jsonl, under the names that they have there.
    row: Mapping[str, float]
    # The most telling ones, in words.
    line: str
    # A sentence for each image left out.
    skipped: tuple[str, ...] = ()
    # What else a user should know; told once.
    notes: tuple[str, ...] = ()


class Task(ABC):
    """What a run does in its own way: opens images, builds a network, scores it, saves it and draws pictures.

    `Recipe.open` makes one, with the images open. `outcome` is whatever the task makes of it: the trainer hands it on.
    """

    images: Images
    # Name of the score, in `Scores.row`, by which an epoch is the best so far.
    best_by: str
    # The last of a run's pictures: where it is, the run is finished.
    last_picture: str

    def check_files(self, accelerator: Accelerator, note: Callable[[str], None]) -> None:  # noqa: B027  optional
        """Raise UserError, in all processes, where image files are known to be of no use without reading their pixels.

        note: called with a sentence about those that will be skipped.
        """

    @abstractmethod
    def network(self, init_from: str | None) -> Network:
        """The network, with random weights or those of `init_from`. Raises UserError where it cannot be built."""

    @abstractmethod
    def loader(self, split: Literal["train", "val"], share: Share) -> DataLoader[Any]:
        """The batches of one process: augmented ones to train on, or those to evaluate on."""

    @abstractmethod
    def outcome(self, model: nn.Module, batches: Iterable[loop.Batch]) -> Any:
        """What `model` says of one process's validation batches; another process can read it."""

    @abstractmethod
    def scores(self, outcomes: Sequence[Any], epoch: int) -> Scores:
        """The scores after `epoch` epochs, from the outcomes of all processes; UserError where there are none."""

    @abstractmethod
    def save(self, path: Path, model: nn.Module, *, epoch: int, metrics: Mapping[str, float]) -> None:
        """Write `model` to `path` with all that is needed to use it, and the scores after `epoch` epochs."""

    @abstractmethod
    def draw(self, out: Path, rows: Sequence[Mapping[str, Any]], model: nn.Module, outcome: Any) -> None:
        """Leave the pictures in the folder `out`.

        rows: those of metrics.jsonl.
        outcome: the last one on all validation images in their order; None where several processes shared them.
        """

    def costs(self, model: nn.Module) -> dict[str, int]:
        """What a table of runs says of the network's size."""
        return {"params": sum(parameter.numel() for parameter in model.parameters())}


@contextmanager
def choices_in_words(recipe: Recipe) -> Iterator[None]:
    """Build a network in this: what its choices make impossible becomes a UserError."""
    try:
        yield
    except UserError:
        raise
    # What a wrong choice raises depends on where in the network it is used.
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        if not recipe.choices:
            raise
        given, reason = " ".join(recipe.choices), " ".join(str(error).split())
        raise UserError(f"{recipe.model} cannot be built with the choices {given}: {reason}") from error
