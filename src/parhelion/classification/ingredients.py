"""What a recipe is made of: its network, its batches, and the images that they come from."""

from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader

from parhelion.classification.recipe import ClassificationRecipe
from parhelion.classification.saved import Classifier
from parhelion.data.balance import Balanced, class_numbers
from parhelion.data.identity import digest
from parhelion.data.loaders import make_loader
from parhelion.data.samples import Share, Stream, image_count
from parhelion.data.sources import Source
from parhelion.data.transforms import eval_transform, train_transform
from parhelion.errors import UserError, nearest
from parhelion.models.catalog import create_model, model_info
from parhelion.runs.images import choices_in_words, this_process


def untrained(recipe: ClassificationRecipe, source: Source) -> Classifier:
    """The network of `recipe` for the classes of `source`, with the weights it starts from. Raises UserError."""
    arguments: dict[str, Any] = {
        "num_classes": len(source.class_names),
        "in_chans": recipe.in_chans,
        "image_size": recipe.image_px,
        **_choices(recipe),
    }
    model = _built(recipe, arguments)
    # As a constant to the type checker: attributes of modules may be tensors.
    min_px = cast("int", model.min_px)
    for name, side in (("image_px", recipe.image_px), ("eval_px", recipe.eval_px or recipe.image_px)):
        if side < min_px:
            raise UserError(f"{name} is {side}; {recipe.model} takes images of at least {min_px} pixels")
    return Classifier(
        # Attention reads channels-last maps as they are, and convolutions are faster on them.
        model=model.to(memory_format=torch.channels_last),
        name=recipe.model,
        arguments=arguments,
        class_names=tuple(source.class_names),
        preprocessing=recipe.preprocessing(),
        epoch=0,
        metrics={},
    )


def _choices(recipe: ClassificationRecipe) -> dict[str, Any]:
    """The choices of the recipe's model. Raises UserError for what is none, such as what other fields say."""
    given, known = recipe.model_choices(), model_info(recipe.model).choices
    for name in given.keys() - known.keys():
        offer = nearest(name, known) or f"; it takes {', '.join(sorted(known))}"
        raise UserError(f"choices holds {name!r}, but {recipe.model} has no such choice{offer}")
    return given


def _built(recipe: ClassificationRecipe, arguments: dict[str, Any]) -> nn.Module:
    """The network, without trained weights."""
    with choices_in_words(recipe):
        model = create_model(recipe.model, drop_path=recipe.drop_path, drop_rate=recipe.dropout, **arguments)
        if recipe.choices:
            # What cannot be is seen at the first image only, such as a bottleneck of no channels.
            _look_once(model, (1, recipe.in_chans, *[max(recipe.image_px, cast("int", model.min_px))] * 2))
    return model


@torch.inference_mode()
def _look_once(model: nn.Module, size: tuple[int, ...]) -> None:
    model.eval()(torch.zeros(size))
    model.train()


def train_loader(recipe: ClassificationRecipe, source: Source, accelerator: Accelerator) -> DataLoader[Any]:
    """This process's training batches, to be moved through with `go_to`."""
    samples = source.images("train")
    if recipe.sampling == "balanced":
        samples = Balanced(samples, class_numbers(samples, source=source.name, field="sampling"))
    return make_loader(
        samples,
        train_transform(recipe.preprocessing(recipe.image_px), recipe.augmentation()),
        batch=recipe.batch,
        train=True,
        workers=recipe.workers,
        seed=recipe.seed,
        on_bad_image=recipe.on_bad_image,
        share=Share(parts=recipe.accumulate, **this_process(accelerator)),
    )


def val_loader(recipe: ClassificationRecipe, source: Source, share: Share) -> DataLoader[Any]:
    """The validation batches of one process."""
    return make_loader(
        source.images("val"),
        eval_transform(recipe.preprocessing()),
        batch=recipe.batch,
        train=False,
        workers=recipe.workers,
        on_bad_image=recipe.on_bad_image,
        share=share,
    )


def image_facts(recipe: ClassificationRecipe, source: Source, accelerator: Accelerator) -> dict[str, Any]:
    """What tells a run's images from others without reading them, ready for JSON.

    readers: how many the shards of a stream are dealt out to; None where the images have an order of their own.
    digest: of the training images' files; None where they have none.
    """
    assert source.train is not None, "open the source with its train split"
    readers = accelerator.num_processes * max(1, recipe.workers) if isinstance(source.train, Stream) else None
    return {
        "train_images": image_count(source.train),
        "class_names": list(source.class_names),
        "readers": readers,
        "digest": digest(source.train),
    }


def check_some_images(source: Source) -> None:
    """Raise UserError where there is no image to train or to evaluate on."""
    for images, kind in ((source.train, "training"), (source.val, "validation")):
        if not image_count(images):
            raise UserError(f"{source.name} has no {kind} image")
