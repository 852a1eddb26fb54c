"""`Request`: what a user asks of a training run besides its recipe."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parhelion.files.run_folder import BEGUN_IN


@dataclass(frozen=True, kw_only=True)
class Request:
    """On which images a run trains, where it is kept, and how it goes. Also the options of `parhelion train`."""

    data: str
    """Images. To classify: a folder with train/ and val/ of class folders, or of class folders alone with --val-share;
    `bundled`, `fashion-mnist`, or a dataset as timm names it (torch/..., hfds/..., wds/..., tfds/...). To detect:
    coco:DIR, with annotations in COCO's format."""
    out: Path
    """Folder for recipe, metrics, weights and pictures; must not hold a run yet."""
    data_dir: Path | None = None
    """Where fashion-mnist or a torch/, hfds/, wds/ or tfds/ dataset lies on disk."""
    download: bool = False
    """Allow the dataset to be downloaded."""
    val_share: float | None = None
    """Share of each class to hold out and validate on, such as 0.2, of a folder that holds the class folders itself;
    held_out.json lists the images. For classification only."""
    init_from: str | None = None
    """Weights to start from: a run folder, a .safetensors file, hf-hub:OWNER/NAME or timm:NAME; they are adapted to
    other classes, channels, image sizes, blocks and halos, and init.json says how. A detector takes those of its
    backbone, or a detector's: also torchvision:maskrcnn_resnet50_fpn, trained on COCO, over --model resnet50."""
    resume: bool = False
    """Go on with the run in --out from its last good checkpoint; begin one where there is none."""
    track: tuple[str, ...] = ()
    """Where metrics go besides the run's folder: tensorboard, wandb."""
    quiet: bool = False
    """Print errors only."""

    def as_dict(self) -> dict[str, Any]:
        """What the run depends on, ready for JSON."""
        return {
            "data": self.data,
            "data_dir": self.data_dir and str(self.data_dir),
            "val_share": self.val_share,
            "init_from": self.init_from,
            BEGUN_IN: str(Path.cwd()),
        }
