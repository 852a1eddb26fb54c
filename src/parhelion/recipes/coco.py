"""Mask R-CNN: the paper's on COCO, one for one's own images, and small ones for a CPU."""

from parhelion.detection.recipe import DetectionRecipe
from parhelion.recipes.entry import COCO, Entry
from parhelion.recipes.imagenet import HALONET, MEAN, STD


def mask_rcnn_coco(model: str, *choices: str) -> DetectionRecipe:
    """Mask R-CNN with a feature pyramid on COCO, the backbone from ImageNet at 512 pixels.

    Given: 67,500 updates of batch 64, SGD with momentum 0.9, learning rate 0.1, a tenth of it after 60,000 updates and
    of that after 65,000, 500 updates of warm-up, weight decay 4e-5, 1024 x 1024 pixels, scale jitter 0.8 to 1.25.

    The paper contradicts itself on the length, 32 epochs against the 36.5 that the updates make; we take the updates.
    It does not say what becomes of batch norms, whether momentum is Nesterov's, the widths of pyramid and heads, the
    precision, and what is dropped or cut out; we train batch norms with the statistics of all processes, take the
    plain momentum, torchvision's widths, bf16 and the stochastic depth of the backbone's training, and cut at random.
    Departs from the paper: images are padded to the largest of a batch, not to 1024 x 1024.
    """
    return DetectionRecipe(
        model=model,
        image_px=1024,
        choices=choices,
        epochs=37,
        updates=67_500,
        batch=64,
        optimizer="momentum",
        # 0.1 for a batch of 64.
        lr_per_256=0.4,
        # Of 1848 updates each, with the 118,287 images of 2017.
        warmup_epochs=500 / 1848,
        schedule="step",
        drop_updates=(60_000, 65_000),
        weight_decay=4e-5,
        drop_path=0.1,
        precision="bf16",
        jitter=(0.8, 1.25),
        mean=MEAN,
        std=STD,
        workers=8,
    )


def mask_rcnn_finetune() -> DetectionRecipe:
    """Your own images, annotated in COCO's format, from a detector (--init-from RUN, with --model and widths as there).

    From a classification run the backbone alone is filled, which takes longer: give it three times the --epochs. Batch
    norms are fixed, since so few images are in a batch, and the stem and the first stage stay as they are; late
    layers move fast and early ones slowly. Made for some hundred to some thousand images. Ours, untuned.
    """
    return DetectionRecipe(
        model="halo_resnet50_se",
        image_px=1024,
        freeze=2,
        epochs=12,
        batch=8,
        optimizer="adamw",
        lr_per_256=6.4e-3,
        warmup_epochs=0.5,
        layer_decay=0.9,
        weight_decay=0.05,
        clip_norm=1.0,
        drop_path=0.1,
        norm="frozen",
        jitter=(0.7, 1.5),
        mean=MEAN,
        std=STD,
        workers=4,
        on_bad_annotation="drop",
    )


# The backbones of classification's small networks, with a stem for larger images: maps of 1/4, 1/8 and 1/16.
SMALL = ("stem=conv7",)


def mask_rcnn_small(model: str, *choices: str) -> DetectionRecipe:
    """A small Mask R-CNN in minutes on a CPU, for objects of some 30 to 80 pixels in images of about 150.

    Ours, chosen for two cores. The backbones differ, everything else is equal.
    """
    return DetectionRecipe(
        model=model,
        image_px=160,
        choices=(*SMALL, *choices),
        epochs=4,
        batch=8,
        optimizer="adamw",
        lr_per_256=0.032,
        warmup_epochs=0.3,
        weight_decay=0.05,
        clip_norm=5.0,
        fpn_width=64,
        box_width=256,
        mask_width=64,
        proposals=200,
        sampled_boxes=32,
    )


# fmt: off
PAPER = {  # recipe: model and choices, what it is, box and mask AP, multiply-adds of the backbone at 1024 pixels
    "resnet50_se": (("resnet50_se",), "SE-ResNet-50", (44.5, 39.6), 85_417_836_544),
    "halo_resnet50_se": (
        ("halo_resnet50_se",), "SE-ResNet-50 with attention in blocks of 8", (45.2, 40.3), 82_835_193_856),
    "halo_resnet50_se_block32": (
        ("halo_resnet50_se", "block=32"), "SE-ResNet-50 with attention in blocks of 32", (45.4, 40.5), 86_798_811_136),
    "resnet101_se": (("resnet101_se",), "SE-ResNet-101", (45.9, 40.6), 163_000_139_776),
    "halo_resnet101_se": (
        ("halo_resnet101_se",), "SE-ResNet-101 with attention in blocks of 8", (46.8, 41.2), 160_417_497_088),
}
# fmt: on


def _paper_entry(name: str) -> Entry:
    model, title, (box_ap, mask_ap), counted = PAPER[name]
    return Entry(
        name=f"mask_rcnn_{name}_coco",
        make=mask_rcnn_coco,
        of=model,
        title=f"Mask R-CNN over {title}, on COCO.",
        source=HALONET,
        expected=f"{box_ap} box AP, {mask_ap} mask AP",
        tag="paper",
        images=COCO,
        counted=counted,
        data="coco:DIR",
        start=f"{name}_imagenet",
    )


def _small_entry(name: str, title: str, *model: str, counted: int) -> Entry:
    return Entry(
        name=f"mask_rcnn_{name}",
        make=mask_rcnn_small,
        of=model,
        title=f"Mask R-CNN over {title}, for small scenes, in minutes.",
        source="ours",
        images=2000,
        counted=counted,
        data="coco:scenes",
    )


ENTRIES = (
    _small_entry("halonet_tiny", "a HaloNet: halo attention in every stage", "halonet_tiny", counted=105_907_200),
    _small_entry(
        "hybrid_tiny",
        "a hybrid, as the paper's: halo attention in the last stage only",
        "halonet_tiny",
        "conv_stages=[1,2]",
        counted=109_747_200,
    ),
    _small_entry("gsa_tiny", "a GSA network: global attention in every stage", "gsa_tiny", counted=144_793_600),
    _small_entry("resnet_tiny", "the convolutional twin of the three", "resnet_tiny", counted=108_748_800),
    *map(_paper_entry, PAPER),
)
OWN = Entry(
    name="mask_rcnn_finetune",
    make=mask_rcnn_finetune,
    source="ours",
    start="EARLIER",
    data="coco:DIR",
    counted=82_835_193_856,
)
