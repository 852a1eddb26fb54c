"""Train the small attention networks and their convolutional twin on the bundled images, and compare them.

    python scripts/demo.py --out demo

One seed, so the table shows that the networks learn, not which is best.
"""

import argparse
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from parhelion.classification.plots import CONFUSION, CURVES, SHEET
from parhelion.classification.saved import Classifier
from parhelion.cli import exit_code
from parhelion.data.sources.fashion import bundled_images
from parhelion.errors import UserError
from parhelion.explain import attention
from parhelion.recipes.table import recipe
from parhelion.runs.request import Request
from parhelion.runs.trainer import train

RECIPES = ("halonet_tiny", "gsa_tiny", "resnet_tiny")
ATTENTIVE = RECIPES[:2]
# The number of a bag among the test images.
SHOWN = 30
PAGE = "attention.html"
PICTURES = (CURVES, CONFUSION, SHEET)
COLUMNS = f"{'model':<14}{'parameters':>12}{'multiply-adds':>15}{'test accuracy':>15}{'time':>8}"


def main() -> None:
    """Train each recipe into its own folder under --out, then print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out", type=Path, default=Path("demo"), help="folder for the runs; replaced if it is a demo's"
    )
    out = parser.parse_args().out
    started = time.perf_counter()
    results = []
    for name in RECIPES:
        clear(out / name)
        print(f"\n{name}: 10,000 photographs of clothing, 2,000 to test on", flush=True)
        # The photographs have 28 pixels a side; enlarging them to the recipe's 32 would cost time and add nothing.
        results.append(train(replace(recipe(name), image_px=28), Request(data="bundled", out=out / name)))
    print("\n" + table(results))
    explain(out)
    print(f"\n{time.perf_counter() - started:.0f} s in all; each folder holds {', '.join(PICTURES)}:")
    for name in RECIPES:
        print(f"  {out / name}")


def explain(out: Path) -> None:
    """Write a page on which both attention networks look at one photograph."""
    images, _, _ = bundled_images("test")
    image = Image.fromarray(images[SHOWN])
    maps = []
    for name in ATTENTIVE:
        classifier = Classifier.load(out / name)
        maps.append(
            attention(
                classifier.model,
                image,
                class_names=classifier.class_names,
                title=name,
                note=f"Trained for {classifier.epoch} epochs.",
                rollout=True,
                occlusion=True,
            )
        )
    maps[0].save(out / PAGE, *maps[1:])
    print(f"\nwhat each pixel of a photograph attends to: {out / PAGE}")


def clear(run: Path) -> None:
    """Remove an earlier demo's run folder, and nothing that is not one."""
    if run.exists():
        if not (run / "recipe.json").is_file():
            raise UserError(f"{run} exists and is no run of an earlier demo; name another folder with --out")
        shutil.rmtree(run)


def table(results: list[dict[str, Any]]) -> str:
    """Parameters, multiply-adds, accuracy and time of each run."""
    lines = [COLUMNS]
    for result in results:
        lines.append(
            f"{result['model']:<14}{result['params']:>12,}{result['multiply_adds'] / 1e6:>13.1f} M"
            f"{100 * result['top1']:>14.2f}%{result['seconds']:>6.0f} s"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(exit_code(main))
