"""Compose scenes of garments, train a small Mask R-CNN on them, and say what it finds in scenes it has not seen.

    python scripts/demo_detection.py --out demo-detection

The backbone first learns to tell single garments apart, as backbones of detectors do. With --recipes and --seeds it
compares detectors on the same budget: mean, lowest and highest over the seeds.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

from demo import clear
from scenes import make_scenes

from parhelion.classification import task as classification
from parhelion.classification.recipe import ClassificationRecipe
from parhelion.cli import exit_code
from parhelion.detection import task as detection
from parhelion.detection.album import CURVES, SHEET
from parhelion.detection.recipe import DetectionRecipe
from parhelion.errors import UserError
from parhelion.recipes.coco import SMALL
from parhelion.recipes.table import recipe

# Side of a single garment when the backbone learns it: as large as it stands in a scene.
GARMENT_PX = 56
COLUMNS = f"{'detector':<26}{'parameters':>12}{'box AP50':>22}{'mask AP50':>22}{'time':>8}"


def main() -> None:
    """Make the scenes, then for each recipe and seed train backbone and detector, and print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out", type=Path, default=Path("demo-detection"), help="folder for scenes and runs; its runs are replaced"
    )
    parser.add_argument("--recipes", nargs="+", default=["mask_rcnn_halonet_tiny"], help="small detectors to train")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="a run for each")
    parser.add_argument("--epochs", type=int, help="passes over the scenes; as the recipe says if not given")
    chosen = parser.parse_args()
    started = time.perf_counter()
    wanted = [small(name) for name in chosen.recipes]
    if chosen.epochs is not None:
        wanted = [replace(wish, epochs=chosen.epochs) for wish in wanted]
    make_scenes(chosen.out / "scenes", train=2000, val=200)
    results = []
    for name, wish in zip(chosen.recipes, wanted, strict=True):
        runs = [trained(replace(wish, seed=seed), chosen.out, f"{name}_{seed}") for seed in chosen.seeds]
        results.append((name, runs))
    print("\n" + table(results))
    print(f"\n{time.perf_counter() - started:.0f} s in all; each folder holds {CURVES} and {SHEET}:")
    for name in chosen.recipes:
        for seed in chosen.seeds:
            print(f"  {chosen.out / f'{name}_{seed}'}")


def small(name: str) -> DetectionRecipe:
    """The recipe `name`. Raises UserError where it is not one of the small detectors."""
    wish = recipe(name)
    if not isinstance(wish, DetectionRecipe) or wish.choices[: len(SMALL)] != SMALL:
        raise UserError(f"{name} is no small detector; parhelion recipes 'mask_rcnn_*_tiny' lists them")
    return wish


def trained(wish: DetectionRecipe, out: Path, name: str) -> dict[str, Any]:
    """Train backbone and detector into folders of their own; what `detection.train` returns, with all seconds."""
    clear(out / name)
    clear(out / f"{name}_backbone")
    alone = recipe(wish.model)
    assert isinstance(alone, ClassificationRecipe)
    print(f"\n{name}: the backbone on 10,000 single garments", flush=True)
    backbone = classification.train(
        replace(alone, image_px=GARMENT_PX, choices=wish.choices, epochs=2, seed=wish.seed),
        data="bundled",
        out=out / f"{name}_backbone",
    )
    print(f"\n{name}: the detector on 2,000 scenes, 200 to test on", flush=True)
    result = detection.train(wish, data=f"coco:{out / 'scenes'}", out=out / name, init_from=backbone["out"])
    return {**result, "seconds": backbone["seconds"] + result["seconds"]}


def table(results: Sequence[tuple[str, Sequence[dict[str, Any]]]]) -> str:
    """Parameters, AP50 of boxes and masks, and time of each detector; over several seeds mean, lowest and highest."""
    lines = [COLUMNS]
    for name, runs in results:
        box, mask = (spread([run[key] for run in runs]) for key in ("box_ap50", "mask_ap50"))
        seconds = mean(run["seconds"] for run in runs)
        lines.append(f"{name:<26}{runs[0]['params']:>12,}{box:>22}{mask:>22}{seconds:>6.0f} s")
    return "\n".join(lines)


def spread(values: Sequence[float]) -> str:
    """The mean in percent, and the lowest and highest where there are several."""
    percent = [100 * value for value in values]
    ends = f" ({min(percent):.1f}-{max(percent):.1f})" if len(percent) > 1 else ""
    return f"{mean(percent):.1f}%{ends}"


if __name__ == "__main__":
    sys.exit(exit_code(main))
