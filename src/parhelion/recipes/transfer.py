"""From one set of images to another: ImageNet-21k to ImageNet, ImageNet to CIFAR-100, anything to one's own images."""

from dataclasses import replace

from parhelion.classification.recipe import ClassificationRecipe
from parhelion.recipes.entry import CIFAR, IMAGENET, IMAGENET_21K, Entry
from parhelion.recipes.imagenet import GSA, HALONET, MEAN, STD, halonet_imagenet


def imagenet_21k(model: str) -> ClassificationRecipe:
    """HaloNet-H4 with base width 128 on ImageNet-21k, to be fine-tuned.

    Given: 14.2 million images of 21,000 classes, 256 pixels, block 8 and halo 2, 90 epochs, batch 4096, Nesterov,
    learning rate 0.16, 2 epochs of warm-up, cosine, weight decay 8e-5.

    The paper does not say where the cosine ends, nor whether labels are smoothed; we end at 1/128, as for the family,
    and do not smooth. No RandAugment, dropout or stochastic depth is named, and we have none. Momentum, crops and
    precision are those of the family: `parhelion recipes halonet_h4_imagenet`.
    """
    return replace(
        halonet_imagenet(model, 256),
        epochs=90,
        lr_per_256=0.01,
        warmup_epochs=2,
        weight_decay=8e-5,
        label_smoothing=0.0,
    )


WINDOWS = {384: ("block=12", "halo=2"), 512: ("block=16", "halo=1")}


def imagenet_after_21k(model: str, image_px: int) -> ClassificationRecipe:
    """HaloNet-H4 with base width 128 from ImageNet-21k to ImageNet, on larger images with a larger block.

    Given: 8 epochs, batch 512, learning rate 0.016, half an epoch of warm-up, cosine, label smoothing 0.1 and no other
    regularisation; block 12 and halo 2 at 384 pixels, block 16 and halo 1 at 512; relative tables interpolated, a
    classifier that starts at zero (--init-from does both).

    That this leaves out weight decay, too, is our reading. The paper does not name the optimiser, the crops and the end
    of the cosine; we take Nesterov, the usual random crops and mirror images, and 1/128.
    """
    return replace(
        halonet_imagenet(model, image_px),
        choices=WINDOWS[image_px],
        epochs=8,
        batch=512,
        lr_per_256=0.008,
        warmup_epochs=0.5,
        weight_decay=0.0,
    )


def cifar100(model: str) -> ClassificationRecipe:
    """CIFAR-100 at 224 pixels from ImageNet weights: 10,000 updates, the learning rate divided by 10 every 3,000.

    All of it is recalled: batch 128, SGD with momentum 0.9, weight decay 1e-4, learning rate 5e-3.

    Label smoothing, warm-up and crops are not known; we take none, none, and the usual random crops and mirror images.
    Mean and deviation stay ImageNet's, since the weights were trained with them.
    """
    return ClassificationRecipe(
        model=model,
        image_px=224,
        # Enough for the updates, whether or not the loader keeps the last, smaller batch.
        epochs=26,
        updates=10_000,
        batch=128,
        optimizer="momentum",
        # 5e-3 for a batch of 128.
        lr_per_256=0.01,
        warmup_epochs=0,
        schedule="step",
        step_updates=3_000,
        weight_decay=1e-4,
        label_smoothing=0.0,
        mean=MEAN,
        std=STD,
        workers=4,
    )


def finetune() -> ClassificationRecipe:
    """Your own images, from the weights of an earlier run (--init-from RUN, with --model as there).

    Late layers move fast and early ones slowly (layer_decay), the saved weights are an average over up to a hundred
    updates (fewer in a short run, see ema_decay), and images are mixed and augmented: made for some hundred to some ten
    thousand images. With very few, --freeze 2 or more keeps the early stages as they are.

    Mean and deviation are ImageNet's; give --mean and --std of the earlier run where they differ (0.5 and 0.25 after
    the small recipes), which the run tells. Ours; batch and learning rate were chosen on 99 images of 28 pixels with
    halonet_tiny and gsa_tiny, the rest is untuned.
    """
    return ClassificationRecipe(
        model="halonet_h1",
        image_px=256,
        epochs=30,
        # A hundred images are three updates an epoch.
        batch=32,
        optimizer="adamw",
        # 1e-3 for a batch of 32.
        lr_per_256=8e-3,
        warmup_epochs=2,
        lr_end_ratio=0.01,
        layer_decay=0.8,
        weight_decay=0.05,
        clip_norm=1.0,
        ema_decay=0.99,
        label_smoothing=0.1,
        drop_path=0.1,
        dropout=0.2,
        crop_scale=(0.35, 1.0),
        randaugment=7,
        mixup=0.2,
        mean=MEAN,
        std=STD,
        eval_crop_ratio=0.875,
        workers=4,
    )


# fmt: off
LARGE = {  # model: what it is, then by image_px multiply-adds of one image and top-1
    "halonet_h4_base128": (
        "HaloNet-H4 with base width 128", {384: (50_035_326_976, 85.6), 512: (91_372_290_048, 85.8)}),
    "halonet_h4_base128_patch": (
        "HaloNet-H4 with base width 128 on patches", {384: (49_716_822_016, 85.4), 512: (90_806_059_008, 85.4)}),
    "halonet_h4_base128_conv12": (
        "HaloNet-H4 with base width 128 and convolutions in stages 1 and 2",
        {384: (52_356_874_240, 85.5), 512: (94_052_450_304, 85.8)}),
}
GAINS = {  # layers: points that GSA gains over convolutions on CIFAR-100
    38: 2.5,
    50: 2.7,
    101: 1.6,
}
# fmt: on


def _large_entries(model: str) -> tuple[Entry, ...]:
    title, runs = LARGE[model]
    before = f"{model}_imagenet21k"
    pretraining = Entry(
        name=before,
        make=imagenet_21k,
        of=(model,),
        title=f"{title}, on ImageNet-21k, 256 pixels.",
        source=HALONET,
        images=IMAGENET_21K,
    )
    fine_tunings = (
        Entry(
            name=f"{model}_finetune_{image_px}",
            make=imagenet_after_21k,
            of=(model, image_px),
            title=f"{title}, from ImageNet-21k to ImageNet at {image_px} pixels.",
            source=HALONET,
            expected=f"{top1}% top-1",
            tag="paper",
            images=IMAGENET,
            counted=counted,
            start=before,
        )
        for image_px, (counted, top1) in runs.items()
    )
    return (pretraining, *fine_tunings)


def _cifar_entry(model: str, title: str, expected: str = "") -> Entry:
    return Entry(
        name=f"{model}_cifar100",
        make=cifar100,
        of=(model,),
        title=f"{title} from ImageNet to CIFAR-100, 224 pixels.",
        source=GSA,
        expected=expected,
        tag="recalled" if expected else None,
        images=CIFAR,
        data="torch/cifar100 --data-dir DIR --download",
        start=f"{model}_imagenet",
    )


ENTRIES = (
    *(entry for model in LARGE for entry in _large_entries(model)),
    *(
        _cifar_entry(f"gsa_resnet{layers}", f"GSA-ResNet-{layers}", f"{gain} points above resnet{layers}_cifar100")
        for layers, gain in GAINS.items()
    ),
    *(_cifar_entry(f"resnet{layers}", f"ResNet-{layers}") for layers in GAINS),
)
OWN = Entry(name="finetune", make=finetune, source="ours", start="EARLIER")
