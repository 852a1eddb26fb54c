"""What `--data` names, opened."""

from collections.abc import Sequence
from pathlib import Path

from parhelion.data.fashion import bundled_images, open_bundled, open_fashion
from parhelion.data.folders import open_folder
from parhelion.data.hugging_face import open_hugging_face
from parhelion.data.images import MODES
from parhelion.data.samples import Sample, Source, Split
from parhelion.data.shards import open_shards
from parhelion.data.tensorflow_sets import open_tensorflow
from parhelion.data.torchvision_sets import open_torchvision
from parhelion.errors import UserError, nearest

__all__ = ["Sample", "Source", "Split", "bundled_images", "open_source"]

NAMED = {
    "torch": open_torchvision,
    "hfds": open_hugging_face,
    "wds": open_shards,
    "tfds": open_tensorflow,
}
FASHION = "fashion-mnist"


def open_source(
    spec: str,
    *,
    data_dir: Path | None = None,
    download: bool = False,
    in_chans: int = 3,
    splits: Sequence[Split] = ("train", "val"),
) -> Source:
    """The asked splits of what `spec` names; the images come in RGB (`in_chans` 3) or grey (1).

    `bundled`: the images that come with Parhelion, evaluated on the test images; they are the split `test`, too.

    `fashion-mnist`: all 70,000 images of which those are a part, from Debian's package dataset-fashion-mnist or from
    `data_dir`, a folder with the same four files or with torchvision's download, which `download` fetches.

    A folder with `train/` and one of `val/`, `validation/`, `valid/`, `test/` (the first that exists), in each a
    folder per class; for the evaluation split alone, also a folder that holds the class folders itself. The split
    `test` is always `test/`. A folder
    called `bundled` is `./bundled`; so with `fashion-mnist`.

    `torch/NAME`, `hfds/NAME`, `wds/NAME`, `tfds/NAME`: as timm spells them. These read from `data_dir` (torch, wds:
    required) and fetch what is missing if `download` (hfds: always).

    Raises UserError: one sentence that says what was found and what should have been.
    """
    if in_chans not in MODES:
        raise UserError(f"in_chans is {in_chans}, but images are read with 3 channels (RGB) or 1 (grey)")
    kind, slash, _ = spec.partition("/")
    if slash and kind in NAMED:
        return NAMED[kind](spec, data_dir=data_dir, download=download, in_chans=in_chans, splits=splits)
    if spec == FASHION:
        return open_fashion(spec, data_dir=data_dir, download=download, in_chans=in_chans, splits=splits)
    if data_dir is not None or download:
        raise UserError(f"data_dir and download are for sources such as torch/cifar10, but the source is '{spec}'")
    if spec == "bundled":
        return open_bundled(in_chans=in_chans, splits=splits)
    if spec.startswith("coco:"):
        raise UserError(
            f"'{spec}' is for detection recipes, such as mask_rcnn_halonet_tiny; images of classes are asked"
        )
    if spec and Path(spec).exists():
        return open_folder(Path(spec), in_chans=in_chans, splits=splits)
    raise UserError(
        f"there is no data source '{spec}': it should be an existing folder with train/ and val/, 'bundled', "
        f"'{FASHION}', or one of timm's names, {', '.join(f'{kind}/NAME' for kind in NAMED)}"
        + nearest(spec, ["bundled", FASHION, *(f"{kind}/" for kind in NAMED)])
    )
