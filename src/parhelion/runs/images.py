"""Whether images are those of a run: the same classes, and where training goes on the same images."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from parhelion.errors import UserError, few

# So many classes are named where classes differ.
NAMED = 50
# Facts that images with annotated objects have besides.
ANNOTATED = ("category_ids", "annotations")


def check_same_images(
    begun: Mapping[str, Any], now: Mapping[str, Any], source: str, note: Callable[[str], None]
) -> None:
    """Raise UserError where a run would go on with other classes, training images or annotations.

    begun, now: `Images.facts` when the run's checkpoint was written, and today.
    note: called with a sentence where the shards of a stream are shared among more or fewer readers than before.
    """
    check_classes(begun["class_names"], now["class_names"], source)
    if begun["train_images"] != now["train_images"]:
        raise UserError(
            f"the run was begun with {begun['train_images']} training images, but {source} has {now['train_images']}; "
            "resume with the images it was begun with, or start another run"
        )
    if begun["digest"] != now["digest"]:
        raise UserError(
            f"the run was begun with other training images than those of {source}: they are as many, but names or "
            "sizes of files differ; resume with the images it was begun with, or start another run"
        )
    if begun["readers"] != now["readers"]:
        note(
            f"the shards of {source} are dealt out anew, {now['readers']} ways instead of {begun['readers']} "
            "(processes times workers): the epoch under way repeats some images and misses others"
        )
    for name in ANNOTATED:
        if name in now and begun[name] != now[name]:
            raise UserError(
                f"the run was begun with other annotations than those of {source}: {name} was {begun[name]} and is "
                f"{now[name]}; resume with those it was begun with, or start another run"
            )


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
