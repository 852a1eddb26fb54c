"""The recipes against the papers' numbers, written down here a second time and not taken from the recipes."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from recipes.makers import one_of_each_maker

from parhelion.detection.pyramid import named_backbone
from parhelion.models import create_model
from parhelion.models.catalog import IMAGENET_MEAN, IMAGENET_STD
from parhelion.models.count import multiply_adds, parameters
from parhelion.recipes.imagenet import MEAN, STD
from parhelion.recipes.table import ENTRIES, RECIPES, recipe

FIELDS = (
    "image_px", "epochs", "batch", "lr", "warmup_epochs", "lr_end_ratio", "weight_decay", "randaugment",
    "label_smoothing", "optimizer",
)  # fmt: skip
# fmt: off
LONG = {  # arXiv 2103.12731, appendix; lr as printed, for the whole batch
    "halonet_h0_imagenet":         (256, 350, 4096, 1.6, 10, 1 / 128, 2e-5,  6, 0.1, "sgd"),
    "halonet_h1_imagenet":         (256, 350, 4096, 1.6, 10, 1 / 128, 2e-5,  8, 0.1, "sgd"),
    "halonet_h2_imagenet":         (256, 350, 4096, 1.6, 10, 1 / 128, 2e-5, 10, 0.1, "sgd"),
    "halonet_h3_imagenet":         (320, 350, 4096, 1.6, 10, 1 / 128, 2e-5, 14, 0.1, "sgd"),
    "halonet_h4_imagenet":         (384, 350, 4096, 1.6, 10, 1 / 128, 2e-5, 17, 0.1, "sgd"),
    "halonet_h5_imagenet":         (448, 350, 4096, 1.6, 10, 1 / 128, 2e-5, 19, 0.1, "sgd"),
    "halonet_h6_imagenet":         (512, 350, 4096, 1.6, 10, 1 / 128, 2e-5, 24, 0.1, "sgd"),
    "halonet_h7_imagenet":         (600, 350, 4096, 1.6, 10, 1 / 128, 2e-5, 31, 0.1, "sgd"),
    "halonet_h7_conv1_imagenet":   (600, 350, 4096, 1.6, 10, 1 / 128, 2e-5, 31, 0.1, "sgd"),
    "halonet_h7_conv12_imagenet":  (600, 350, 4096, 1.6, 10, 1 / 128, 2e-5, 31, 0.1, "sgd"),
    "halonet_h7_conv123_imagenet": (600, 350, 4096, 1.6, 10, 1 / 128, 2e-5, 31, 0.1, "sgd"),
}
LARGE = {
    f"halonet_h4_base128{kind}_{run}": row
    for kind in ("", "_patch", "_conv12")
    for run, row in {
        "imagenet21k":  (256, 90, 4096, 0.16,  2,   1 / 128, 8e-5, 0, 0.0, "sgd"),
        "finetune_384": (384,  8,  512, 0.016, 0.5, 1 / 128, 0.0,  0, 0.1, "sgd"),
        "finetune_512": (512,  8,  512, 0.016, 0.5, 1 / 128, 0.0,  0, 0.1, "sgd"),
    }.items()
}
DETECTION = {
    f"{backbone}_imagenet": (512, 350, 4096, 1.6, 10, 1 / 128, 2e-5, 15, 0.1, "sgd")
    for backbone in (
        "resnet50_se", "resnet101_se", "halo_resnet50_se", "halo_resnet50_se_block32", "halo_resnet101_se")
}
DETECTORS = {  # arXiv 2103.12731, COCO: backbone, choices, box AP, mask AP
    "mask_rcnn_resnet50_se_coco":               ("resnet50_se",       {},            44.5, 39.6),
    "mask_rcnn_halo_resnet50_se_coco":          ("halo_resnet50_se",  {},            45.2, 40.3),
    "mask_rcnn_halo_resnet50_se_block32_coco":  ("halo_resnet50_se",  {"block": 32}, 45.4, 40.5),
    "mask_rcnn_resnet101_se_coco":              ("resnet101_se",      {},            45.9, 40.6),
    "mask_rcnn_halo_resnet101_se_coco":         ("halo_resnet101_se", {},            46.8, 41.2),
}
GSA = {  # recalled, not printed
    f"{kind}resnet{layers}_imagenet": (224, 90, 2048, 0.8, 5, 0.0, 1e-4, 0, 0.1, "momentum")
    for kind in ("", "gsa_") for layers in ("38", "50", "101")
} | {"gsa_resnet50_groups234_imagenet": (224, 90, 2048, 0.8, 5, 0.0, 1e-4, 0, 0.1, "momentum")}
STUDY = {  # weight decay, magnitude, smoothing; choices; top-1 of HaloNet-50 and of ResNet-50
    "baseline":      (8e-5,  0, 0.0, {},                           78.6, 77.6),
    "ls":            (8e-5,  0, 0.1, {},                           79.7, 78.1),
    "ls_ra":         (4e-5, 10, 0.1, {},                           79.9, 78.4),
    "se":            (8e-5,  0, 0.0, {"se": 1 / 8},                78.6, 78.6),
    "se_silu":       (8e-5,  0, 0.0, {"se": 1 / 8, "act": "silu"}, 79.0, 78.9),
    "ls_se":         (8e-5,  0, 0.1, {"se": 1 / 8},                79.7, 78.9),
    "ls_se_silu":    (8e-5,  0, 0.1, {"se": 1 / 8, "act": "silu"}, 79.9, 79.1),
    "ls_ra_se_silu": (4e-5, 10, 0.1, {"se": 1 / 8, "act": "silu"}, 80.5, 79.5),
}
WIDER = {  # choices; millions of parameters without squeeze and excitation, "about 30" in the paper; top-1
    "blocks":      ({"blocks": (3, 4, 22, 3)},                                  29.6, 81.4),
    "value_ratio": ({"value_ratio": 3.0},                                       30.6, 81.0),
    "width":       ({"widths": (80, 160, 320, 640), "heads": (5, 10, 20, 40)},  27.5, 80.9),
    "bottleneck":  ({"bottleneck": 6.5},                                        29.7, 80.6),
    "qk_ratio":    ({"qk_ratio": 6.5},                                          31.9, 80.3),
}
PRINTED = {  # results, in percent
    "halonet_h7_imagenet": "84.9% top-1, 74.7% on ImageNet-V2",
    "halonet_h7_conv1_imagenet": "84.6% top-1",
    "halonet_h7_conv12_imagenet": "84.7% top-1",
    "halonet_h7_conv123_imagenet": "83.8% top-1",
    "halonet_h4_base128_finetune_384": "85.6% top-1",
    "halonet_h4_base128_finetune_512": "85.8% top-1",
    "halonet_h4_base128_patch_finetune_384": "85.4% top-1",
    "halonet_h4_base128_patch_finetune_512": "85.4% top-1",
    "halonet_h4_base128_conv12_finetune_384": "85.5% top-1",
    "halonet_h4_base128_conv12_finetune_512": "85.8% top-1",
} | {name: f"{box} box AP, {mask} mask AP" for name, (_, _, box, mask) in DETECTORS.items()}
RECALLED = {
    "gsa_resnet50_imagenet": "78.5% top-1",
    "gsa_resnet101_imagenet": "79.6% top-1",
    "gsa_resnet50_groups234_imagenet": "1.8 points above resnet50_imagenet",
    "gsa_resnet38_cifar100": "2.5 points above resnet38_cifar100",
    "gsa_resnet50_cifar100": "2.7 points above resnet50_cifar100",
    "gsa_resnet101_cifar100": "1.6 points above resnet101_cifar100",
}
# fmt: on


@pytest.mark.parametrize(("name", "row"), (LONG | LARGE | DETECTION | GSA).items())
def test_schedule_and_augmentation_are_the_papers(name, row):
    found = recipe(name)
    values = found.as_dict() | {"lr": found.lr_per_256 * found.batch / 256}
    assert {field: values[field] for field in FIELDS} == pytest.approx(dict(zip(FIELDS, row, strict=True)))
    assert (found.momentum, found.crop, found.flip, found.ema_decay) == (0.9, "resized", 0.5, 0.0)


@pytest.mark.parametrize(("name", "row"), DETECTORS.items())
def test_detection_on_coco_is_the_papers(name, row):
    model, choices, *_ = row
    entry, found = RECIPES[name], recipe(name)
    assert (found.task, found.model, found.model_choices()) == ("detection", model, choices)
    assert (found.masks, found.image_px, found.jitter) == (True, 1024, (0.8, 1.25))
    assert (found.updates, found.batch, found.schedule, found.drop_updates) == (67_500, 64, "step", (60_000, 65_000))
    # lr_per_256 is that of a batch of 256; printed is the rate of a batch of 64.
    assert found.lr_per_256 * 64 / 256 == pytest.approx(0.1)
    assert (found.optimizer, found.momentum, found.weight_decay) == ("momentum", 0.9, 4e-5)
    per_epoch = 118_287 // 64
    assert round(found.warmup_epochs * per_epoch) == 500
    assert (found.epochs - 1) * per_epoch < found.updates <= found.epochs * per_epoch
    assert (entry.images, entry.passes) == (118_287, pytest.approx(36.52, abs=0.01))
    # The backbone was trained on ImageNet with the same choices.
    assert entry.start == name.removeprefix("mask_rcnn_").replace("_coco", "_imagenet")
    before = recipe(entry.start)
    assert (before.model, before.model_choices()) == (found.model, found.model_choices())
    assert (found.mean, found.std) == (before.mean, before.std)


@pytest.mark.parametrize(("components", "row"), STUDY.items())
@pytest.mark.parametrize(
    ("stem", "model", "ratio", "place"),
    [("halonet_50", "halonet_50", "se_ratio_halo", 0), ("resnet_50", "resnet50", "se_ratio", 1)],
)
def test_the_component_table_is_the_papers(components, row, stem, model, ratio, place):
    weight_decay, randaugment, smoothing, choices, *tops = row
    entry, found = RECIPES[f"{stem}_{components}"], recipe(f"{stem}_{components}")
    assert (found.model, found.image_px, found.epochs, found.lr_per_256) == (model, 256, 150, 0.1)
    assert (found.weight_decay, found.randaugment, found.label_smoothing) == (weight_decay, randaugment, smoothing)
    assert found.model_choices() == {ratio if key == "se" else key: value for key, value in choices.items()}
    assert (entry.expected, entry.tag) == (f"{tops[place]}% top-1", "paper")


@pytest.mark.parametrize(("axis", "row"), WIDER.items())
def test_the_scaling_table_is_the_papers(axis, row):
    choices, millions, top1 = row
    base, found = recipe("halonet_50_ls_ra_se_silu"), recipe(f"halonet_50_{axis}")
    assert replace(found, choices=base.choices) == base
    assert found.model_choices() == {"se_ratio_halo": 1 / 8, "act": "silu", **choices}
    assert RECIPES[f"halonet_50_{axis}"].expected == f"{top1}% top-1"
    with torch.device("meta"):
        model = create_model(found.model, **found.model_choices() | {"se_ratio_halo": 0.0})
    assert parameters(model) / 1e6 == pytest.approx(millions, abs=0.05)


def test_fine_tuning_from_imagenet_21k_changes_the_window():
    for kind in ("", "_patch", "_conv12"):
        model = f"halonet_h4_base128{kind}"
        assert recipe(f"{model}_finetune_384").model_choices() == {"block": 12, "halo": 2}
        assert recipe(f"{model}_finetune_512").model_choices() == {"block": 16, "halo": 1}
        assert RECIPES[f"{model}_finetune_384"].start == recipe(f"{model}_imagenet21k").model + "_imagenet21k"


def test_cifar_takes_10000_updates_with_a_tenth_of_the_rate_every_3000():
    names = [name for name in RECIPES if name.endswith("_cifar100")]
    assert len(names) == 6
    for name in names:
        found = recipe(name)
        assert (found.updates, found.schedule, found.step_updates) == (10_000, "step", 3_000)
        assert (found.image_px, found.batch, found.lr_per_256 * found.batch / 256) == (224, 128, 5e-3)
        assert (found.optimizer, found.momentum, found.weight_decay) == ("momentum", 0.9, 1e-4)
        # A loader that drops the last, smaller batch has the fewest updates.
        assert found.epochs * (50_000 // found.batch) >= found.updates


def test_only_the_papers_numbers_are_printed_and_recalled_ones_say_so():
    studies = {name for name in RECIPES if name.startswith(("halonet_50_", "resnet_50_"))}
    assert {entry.name: entry.expected for entry in ENTRIES if entry.tag == "recalled"} == RECALLED
    printed = {entry.name: entry.expected for entry in ENTRIES if entry.tag == "paper" and entry.name not in studies}
    assert printed == PRINTED
    assert {entry.name for entry in ENTRIES if entry.tag == "cited"} == {"resnet50_imagenet"}
    # A source that was not read is not cited as one.
    assert all("recalled" in entry.source for entry in ENTRIES if "2010.03019" in entry.source)
    for number in range(7):
        assert not RECIPES[f"halonet_h{number}_imagenet"].expected


def test_imagenets_mean_and_deviation_are_those_of_the_models():
    assert (MEAN, STD) == (IMAGENET_MEAN, IMAGENET_STD)


def test_every_entry_is_whole():
    assert len(RECIPES) == len(ENTRIES)
    for entry in ENTRIES:
        assert bool(entry.expected) == (entry.tag is not None)
        assert entry.headline.endswith((".", ")."))
        assert entry.command in entry.text
        assert max(map(len, entry.text.splitlines()[4:])) <= 120
        assert entry.start in {"", "EARLIER", *RECIPES}
        assert entry.images or entry.name in {"finetune", "mask_rcnn_finetune"}


@cache
def counted(task, model, image_px, choices):
    with torch.device("meta"):
        if task == "detection":
            # Of a detector the backbone counts, whose last maps take the place of the classifier.
            network = named_backbone(model, in_chans=3, image_px=image_px, drop_path=0.0, choices=dict(choices))
        else:
            network = create_model(model, image_size=image_px, **dict(choices))
    return multiply_adds(network, (image_px, image_px))


@pytest.mark.parametrize("name", one_of_each_maker(RECIPES))
def test_every_recipe_builds_the_network_that_its_cost_is_counted_on(name):
    found = recipe(name)
    choices = tuple(found.model_choices().items())
    assert counted(found.task, found.model, found.image_px, choices) == RECIPES[name].multiply_adds
