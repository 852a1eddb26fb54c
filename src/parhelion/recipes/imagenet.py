"""ImageNet from scratch: the HaloNet family and its hybrids, backbones for detection, GSA networks and their twins."""

from dataclasses import replace

from parhelion.classification.recipe import ClassificationRecipe
from parhelion.recipes.entry import IMAGENET, Entry, Tag

HALONET = "arXiv 2103.12731"
GSA = "recalled from arXiv 2010.03019"
# As timm's and torchvision's weights have them.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def halonet_imagenet(model: str, image_px: int) -> ClassificationRecipe:
    """What all long runs of the HaloNet paper share, without augmentation and dropping.

    What of it is given and what is ours: see `family`.
    """
    return ClassificationRecipe(
        model=model,
        image_px=image_px,
        epochs=350,
        batch=4096,
        optimizer="sgd",
        lr_per_256=0.1,
        warmup_epochs=10,
        lr_end_ratio=1 / 128,
        weight_decay=2e-5,
        label_smoothing=0.1,
        precision="bf16",
        mean=MEAN,
        std=STD,
        eval_crop_ratio=0.875,
        workers=8,
    )


# fmt: off
FAMILY = {  # image_px and RandAugment as printed; dropout and drop_path are ours
    "halonet_h0": (256,  6, 0.2, 0.0),
    "halonet_h1": (256,  8, 0.2, 0.0),
    "halonet_h2": (256, 10, 0.3, 0.0),
    "halonet_h3": (320, 14, 0.3, 0.0),
    "halonet_h4": (384, 17, 0.4, 0.2),
    "halonet_h5": (448, 19, 0.4, 0.2),
    "halonet_h6": (512, 24, 0.5, 0.2),
    "halonet_h7": (600, 31, 0.5, 0.2),
}
# fmt: on


def family(model: str) -> ClassificationRecipe:
    """One of H0 to H7, as the paper trains them all.

    Given: batch 4096, Nesterov, learning rate 1.6 (0.1 per 256 images), 10 epochs of linear warm-up, a cosine that ends
    at 1/128 of the peak, 350 epochs, weight decay 2e-5, label smoothing, and RandAugment from 6 for H0 to 31 for H7.

    The paper names dropout, and stochastic depth for the larger models, but gives no rates; we take those of the
    EfficientNet that each is compared with: dropout 0.2 to 0.5, and stochastic depth 0.2 from H4 on. It does not give
    the momentum, the share of label smoothing, the training crop, the crop of the evaluation and the precision; we take
    0.9, 0.1, the usual random crops and mirror images, 7/8, and bf16. Results of H0 to H6 are points of a figure only.

    On few devices a batch of 4096 needs --accumulate.
    """
    image_px, randaugment, dropout, drop_path = FAMILY[model]
    shared = halonet_imagenet(model, image_px)
    return replace(shared, randaugment=randaugment, dropout=dropout, drop_path=drop_path)


def hybrid(model: str) -> ClassificationRecipe:
    """H7 with convolutions in its first stages, trained as halonet_h7_imagenet is.

    The paper does not say that anything else changes; whatever it leaves open for H7 is chosen as there:
    `parhelion recipes halonet_h7_imagenet`.
    """
    return replace(family("halonet_h7"), model=model)


def detection_backbone(model: str, *choices: str) -> ClassificationRecipe:
    """A backbone for Mask R-CNN, trained on ImageNet before COCO.

    Given: 350 epochs at 512 pixels, RandAugment 15, stochastic depth 0.1, label smoothing, and squeeze and excitation
    with reduction 1/8. The paper gives no more; we take everything else from the HaloNet family, but no dropout:
    `parhelion recipes halonet_h0_imagenet`.
    """
    shared = halonet_imagenet(model, 512)
    return replace(shared, choices=choices, randaugment=15, drop_path=0.1)


def resnet_imagenet(model: str) -> ClassificationRecipe:
    """A GSA network, or the ResNet whose 3x3 convolutions it replaces, on ImageNet: 90 epochs at 224 pixels.

    All of it is recalled: batch 2048, SGD with momentum 0.9, weight decay 1e-4, a base learning rate of 0.1, cosine,
    label smoothing 0.1, random crops and mirror images.

    That 0.1 holds for 256 images is our reading. Warm-up, the end of the cosine and the precision are not known; we
    take 5 epochs, zero and bf16. One recipe serves both kinds, so that only the model differs.
    """
    return ClassificationRecipe(
        model=model,
        image_px=224,
        epochs=90,
        batch=2048,
        optimizer="momentum",
        lr_per_256=0.1,
        warmup_epochs=5,
        lr_end_ratio=0.0,
        weight_decay=1e-4,
        label_smoothing=0.1,
        precision="bf16",
        mean=MEAN,
        std=STD,
        eval_crop_ratio=0.875,
        workers=8,
    )


def _family_entry(model: str, *, expected: str = "", tag: Tag | None = None) -> Entry:
    return Entry(
        name=f"{model}_imagenet",
        make=family,
        of=(model,),
        title=f"HaloNet-{model[-2:].upper()} on ImageNet, {FAMILY[model][0]} pixels.",
        source=HALONET,
        expected=expected,
        tag=tag,
        images=IMAGENET,
    )


def _hybrid_entry(model: str, stages: str, top1: float) -> Entry:
    return Entry(
        name=f"{model}_imagenet",
        make=hybrid,
        of=(model,),
        title=f"HaloNet-H7 with convolutions in {stages}, on ImageNet, 600 pixels.",
        source=HALONET,
        expected=f"{top1}% top-1",
        tag="paper",
        images=IMAGENET,
    )


def _detection_entry(name: str, title: str, model: str, *choices: str, counted: int = 0) -> Entry:
    return Entry(
        name=f"{name}_imagenet",
        make=detection_backbone,
        of=(model, *choices),
        title=f"{title}, on ImageNet at 512 pixels, as a backbone for detection.",
        source=HALONET,
        images=IMAGENET,
        counted=counted,
    )


def _resnet_entry(model: str, title: str, *, expected: str = "", tag: Tag | None = None) -> Entry:
    return Entry(
        name=f"{model}_imagenet",
        make=resnet_imagenet,
        of=(model,),
        title=f"{title} on ImageNet, 224 pixels.",
        source=GSA,
        expected=expected,
        tag=tag,
        images=IMAGENET,
    )


ENTRIES = (
    *(_family_entry(model) for model in FAMILY if model != "halonet_h7"),
    _family_entry("halonet_h7", expected="84.9% top-1, 74.7% on ImageNet-V2", tag="paper"),
    _hybrid_entry("halonet_h7_conv1", "stage 1", 84.6),
    _hybrid_entry("halonet_h7_conv12", "stages 1 and 2", 84.7),
    _hybrid_entry("halonet_h7_conv123", "stages 1 to 3", 83.8),
    _resnet_entry("gsa_resnet38", "GSA-ResNet-38"),
    _resnet_entry("gsa_resnet50", "GSA-ResNet-50", expected="78.5% top-1", tag="recalled"),
    _resnet_entry(
        "gsa_resnet50_groups234",
        "GSA-ResNet-50 that attends in groups 2 to 4",
        expected="1.8 points above resnet50_imagenet",
        tag="recalled",
    ),
    _resnet_entry("gsa_resnet101", "GSA-ResNet-101", expected="79.6% top-1", tag="recalled"),
    _resnet_entry("resnet38", "ResNet-38"),
    _resnet_entry("resnet50", "ResNet-50", expected="76.9% top-1", tag="cited"),
    _resnet_entry("resnet101", "ResNet-101"),
    _detection_entry("resnet50_se", "SE-ResNet-50", "resnet50_se"),
    _detection_entry("halo_resnet50_se", "SE-ResNet-50 with attention in blocks of 8", "halo_resnet50_se"),
    _detection_entry(
        "halo_resnet50_se_block32",
        "SE-ResNet-50 with attention in blocks of 32",
        "halo_resnet50_se",
        "block=32",
        counted=24_006_623_232,
    ),
    _detection_entry("resnet101_se", "SE-ResNet-101", "resnet101_se"),
    _detection_entry("halo_resnet101_se", "SE-ResNet-101 with attention in blocks of 8", "halo_resnet101_se"),
)
