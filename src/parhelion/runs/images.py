"""What any task asks of a run's images: the same ones after a resume, shared among processes, until somebody stops."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from accelerate import Accelerator
from torch.utils.data import DataLoader

from parhelion.data.loaders import end_workers
from parhelion.data.samples import few
from parhelion.errors import UserError
from parhelion.runs.recipe import Recipe
from parhelion.train import loop
from parhelion.train.stopping import Stopped, StopRequest

# So many classes are named where classes differ.
NAMED = 50


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


def this_process(accelerator: Accelerator) -> dict[str, int]:
    """Which process this is, and of how many, as a `Share` wants it."""
    return {"process": accelerator.process_index, "processes": accelerator.num_processes}


def check_same_images(
    begun: Mapping[str, Any], now: Mapping[str, Any], source: str, note: Callable[[str], None]
) -> None:
    """Raise UserError where a run would go on with other classes, or with more or fewer training images.

    begun, now: what `image_facts` said when the run began, or nothing if it begins now, and what it says now.
    note: hears a sentence where the shards of a stream are dealt out to more or fewer readers.
    """
    if not begun:
        return
    check_classes(begun["class_names"], now["class_names"], source)
    if begun["train_images"] != now["train_images"]:
        raise UserError(
            f"the run was begun with {begun['train_images']} training images, but {source} has {now['train_images']}; "
            "resume with the images it was begun with, or start another run"
        )
    # Runs of older versions have none.
    if begun.get("digest", now["digest"]) != now["digest"]:
        raise UserError(
            f"the run was begun with other training images than those of {source}: they are as many, but names or "
            "sizes of files differ; resume with the images it was begun with, or start another run"
        )
    if begun["readers"] != now["readers"]:
        note(
            f"the shards of {source} are dealt out anew, {now['readers']} ways instead of {begun['readers']} "
            "(processes times workers): the epoch under way repeats some images and misses others"
        )


def until_stopped(loader: DataLoader[Any], stop: StopRequest) -> Iterator[loop.Batch]:
    """The batches; Stopped where somebody asks: a resumed run evaluates the epoch's checkpoint anew."""
    batches = iter(loader)
    try:
        while True:
            with stop.waiting():
                batch = next(batches, None)
            if batch is None:
                return
            stop.obey()
            yield batch
    except Stopped:
        end_workers(loader)
        raise


def check_classes(trained: Sequence[str], given: Sequence[str], source: str) -> None:
    """Raise UserError where the classes of `source` are not those that were trained, in the same order."""
    if len(trained) != len(given):
        lacking, extra = (_only(names, others) for names, others in ((trained, given), (given, trained)))
        clauses = [f"{few(lacking, NAMED)} missing (a folder of a class may be empty)"] if lacking else []
        clauses += [f"{few(extra, NAMED)} not known to the checkpoint"] if extra else []
        details = "; ".join(clauses) or "some have the same name"
        raise UserError(f"the checkpoint knows {len(trained)} classes, but {source} has {len(given)}: {details}")
    for number, (ours, theirs) in enumerate(zip(trained, given, strict=True)):
        if ours != theirs:
            raise UserError(
                f"class {number} of the checkpoint is {ours!r}, but in {source} it is {theirs!r}; "
                "the classes must have the same names in the same order"
            )


def _only(names: Sequence[str], others: Sequence[str]) -> list[str]:
    known = set(others)
    return [name for name in names if name not in known]


def nothing_to_evaluate(skipped: Sequence[str]) -> str:
    """Why there is no score: a sentence, where `skipped` are those for the images left out."""
    if not skipped:
        return "there is no image to evaluate"
    return f"none of the {len(skipped)} images could be used; the first: {skipped[0]}"
