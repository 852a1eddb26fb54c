"""Recipes for small images, about 32 pixels, from scratch."""

from dataclasses import replace

from parhelion.classification.recipe import ClassificationRecipe
from parhelion.recipes.entry import BUNDLED, CIFAR, Entry


def small_images(model: str, *choices: str) -> ClassificationRecipe:
    """A small network in minutes on a CPU: 4 epochs with AdamW, and only mirror images at random.

    Ours, chosen for two cores; no crops, which cost accuracy in so few epochs: --crop padded has them. The networks
    differ, everything else is equal.
    """
    return ClassificationRecipe(
        model=model,
        image_px=32,
        choices=choices,
        epochs=4,
        batch=64,
        optimizer="adamw",
        lr_per_256=6e-3,
        weight_decay=0.05,
        warmup_epochs=0.5,
        label_smoothing=0.1,
        crop="center",
    )


def small_images_long(model: str, *choices: str) -> ClassificationRecipe:
    """A small network in some hours on a CPU: 60 epochs with AdamW, and images moved and mirrored at random.

    Ours, untuned. The networks differ, everything else is equal.
    """
    short = small_images(model, *choices)
    return replace(short, epochs=60, batch=128, lr_per_256=4e-3, warmup_epochs=3, crop="padded")


def _short(name: str, title: str, *model: str, seen: str = "", counted: int = 0) -> Entry:
    return Entry(
        name=name,
        make=small_images,
        of=model,
        title=f"{title}, for 32-pixel images, in minutes.",
        source="ours",
        expected=f"{seen}% top-1 with --image-px 28" if seen else "",
        tag="measured" if seen else None,
        images=BUNDLED,
        counted=counted,
        data="bundled",
    )


def _long(model: str, title: str) -> Entry:
    return Entry(
        name=f"{model}_long",
        make=small_images_long,
        of=(model,),
        title=f"{title}, for 32-pixel images, in hours.",
        source="ours",
        images=CIFAR,
        data="torch/cifar10 --data-dir DIR --download",
    )


ENTRIES = (
    _short("gsa_tiny", "A GSA network: global attention in every stage", "gsa_tiny", seen="85.60"),
    _short("halonet_tiny", "A HaloNet: halo attention in every stage", "halonet_tiny", seen="86.15"),
    _short("resnet_tiny", "The convolutional twin of gsa_tiny and halonet_tiny", "resnet_tiny", seen="87.60"),
    _short(
        "hybrid_tiny",
        "A hybrid: convolutions in stage 1, halo attention after it",
        "halonet_tiny",
        "conv_stages=[1]",
        counted=13_539_328,
    ),
    _short(
        "gsa_tiny_content",
        "gsa_tiny attending by content only",
        "gsa_tiny",
        "position=false",
        counted=14_239_744,
    ),
    _short(
        "gsa_tiny_position",
        "gsa_tiny attending by position only",
        "gsa_tiny",
        "content=false",
        counted=14_895_104,
    ),
    _long("gsa_tiny", "A GSA network: global attention in every stage"),
    _long("halonet_tiny", "A HaloNet: halo attention in every stage"),
    _long("resnet_tiny", "The convolutional twin of gsa_tiny and halonet_tiny"),
)
