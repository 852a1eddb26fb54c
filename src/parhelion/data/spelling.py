"""How a source of images is spelled: what `--data` may say, and where it lies. Needs no torch, and opens nothing."""

import os
import re
from collections.abc import Callable
from pathlib import Path

from parhelion.errors import UserError, nearest

COCO, BUNDLED, FASHION = "coco", "bundled", "fashion-mnist"
# What timm's names of data sets begin with.
KINDS = ("torch", "hfds", "wds", "tfds")
YEAR = re.compile(r":\d+$")


def check_source(
    spec: str, *, data_dir: Path | None = None, download: bool = False, val_share: float | None = None
) -> None:
    """Raise UserError where `spec` spells no source of a classification data set, or one that takes no such options.

    See `parhelion.data.sources.open_source`.
    """
    kind, slash, _ = spec.partition("/")
    if val_share is not None:
        if data_dir is not None or download or not Path(spec).is_dir():
            raise UserError(f"val_share is for a folder that holds a folder per class, which '{spec}' is not")
    elif spec != FASHION and not (slash and kind in KINDS):
        if data_dir is not None or download:
            raise UserError(f"data_dir and download are for sources such as torch/cifar10, but the source is '{spec}'")
        if spec.startswith(f"{COCO}:"):
            raise UserError(
                f"'{spec}' is for detection recipes, such as mask_rcnn_halonet_tiny; expected a classification data set"
            )
        if spec != BUNDLED and not (spec and Path(spec).exists()):
            raise UserError(
                f"there is no data source '{spec}': it should be an existing folder with train/ and val/, '{BUNDLED}', "
                f"'{FASHION}', or one of timm's names, {', '.join(f'{kind}/NAME' for kind in KINDS)}"
                + nearest(spec, [BUNDLED, FASHION, *(f"{kind}/" for kind in KINDS)])
            )


def coco_folder(spec: str) -> tuple[Path, str]:
    """The folder that "coco:DIR" or "coco:DIR:2017" spells, and the year as digits or ""; raises UserError."""
    kind, _, place = spec.partition(":")
    # No shell expands a ~ after a colon.
    place = os.path.expanduser(place)
    folder, year = Path(place), ""
    if not folder.is_dir() and YEAR.search(place):
        place, _, year = place.rpartition(":")
        folder = Path(place)
    if kind != COCO or not place or not folder.is_dir():
        raise UserError(f"there is no data source '{spec}': it should be coco:DIR, where DIR is an existing folder")
    return folder, year


def absolute(spec: str, folder: Path) -> str:
    """The source `spec`, spelled in `folder`, as it can be opened from any folder."""
    return _with_path(spec, folder, os.path.abspath)


def place(spec: str, folder: Path) -> str:
    """The source `spec`, spelled in `folder`, in the one way that all spellings of it have in common."""
    return _with_path(spec, folder, os.path.realpath)


def path_of(spec: str) -> Path | None:
    """The folder that `spec` names, where it names one rather than a data set."""
    kind, colon, path = spec.partition(":")
    if colon and kind == COCO:
        return Path(path)
    kind, slash, _ = spec.partition("/")
    return None if spec in (BUNDLED, FASHION) or (slash and kind in KINDS) else Path(spec)


def _with_path(spec: str, folder: Path, act: Callable[[Path], str]) -> str:
    path = path_of(spec)
    if path is None:
        # hfds/ also reads folders; what else follows a kind is a name.
        kind, _, name = spec.partition("/")
        local = folder / Path(name).expanduser()
        return f"{kind}/{act(local)}" if kind == "hfds" and local.is_dir() else spec
    whole = act(folder / path.expanduser())
    return f"{COCO}:{whole}" if spec.startswith(f"{COCO}:") else whole
