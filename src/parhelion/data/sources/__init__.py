"""What `--data` names, opened."""

from collections.abc import Sequence
from pathlib import Path

from parhelion.data.images import check_channels
from parhelion.data.samples import Sample, Source, Split
from parhelion.data.sources.fashion import bundled_images, open_bundled, open_fashion
from parhelion.data.sources.folders import open_folder, open_unsplit
from parhelion.data.sources.held_out import split
from parhelion.data.sources.hugging_face import open_hugging_face
from parhelion.data.sources.shards import open_shards
from parhelion.data.sources.tensorflow_sets import open_tensorflow
from parhelion.data.sources.torchvision_sets import open_torchvision
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
    val_share: float | None = None,
) -> Source:
    """The asked splits of what `spec` names; the images come in RGB (`in_chans` 3) or grey (1).

    `bundled`: the images that come with Parhelion, evaluated on the test images; they are the split `test`, too.

    `fashion-mnist`: all 70,000 images of which those are a part, from Debian's package dataset-fashion-mnist or from
    `data_dir`, a folder with the same four files or with torchvision's download, which `download` fetches.

    A folder with `train/` and one of `val/`, `validation/`, `valid/`, `test/` (the first that exists; in any case),
    in each a folder per class; for the evaluation split alone, also a folder that holds the class folders itself. The
    split `test` is always `test/`. With `val_share` a folder of class folders is split: that share of each class is
    held out, see `held_out`. A folder called `bundled` is `./bundled`; so with `fashion-mnist`.

    `torch/NAME`, `hfds/NAME`, `wds/NAME`, `tfds/NAME`: as timm spells them. These read from `data_dir` (torch, wds:
    required) and fetch what is missing if `download` (hfds: always).

    Raises UserError: one sentence that says what was found and what should have been.
    """
    check_channels(in_chans)
    if val_share is None:
        source = _opened(spec, data_dir=data_dir, download=download, in_chans=in_chans, splits=splits)
    else:
        if data_dir is not None or download or not Path(spec).is_dir():
            raise UserError(f"val_share is for a folder that holds a folder per class, which '{spec}' is not")
        source = _split(Path(spec), val_share, in_chans=in_chans, splits=splits)
    if source.train is not None and len(source.class_names) < 2:
        raise UserError(
            f"'{spec}' has {len(source.class_names)} class, and with fewer than two there is nothing to learn"
        )
    return source


def _split(folder: Path, val_share: float, *, in_chans: int, splits: Sequence[Split]) -> Source:
    """The class folders in `folder`, of which a share is held out."""
    images = open_unsplit(folder, in_chans=in_chans)
    train, val = split(images, val_share)
    return Source(
        str(folder),
        train if "train" in splits else None,
        val if "val" in splits else None,
        images.class_names,
        remarks=tuple(images.remarks()),
    )


def _opened(spec: str, *, data_dir: Path | None, download: bool, in_chans: int, splits: Sequence[Split]) -> Source:
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
