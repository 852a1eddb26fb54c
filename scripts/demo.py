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

from parhelion.classification.album import CONFUSION, CURVES, SHEET
from parhelion.classification.task import train
from parhelion.cli import exit_code
from parhelion.errors import UserError
from parhelion.recipes.table import recipe

RECIPES = ("halonet_tiny", "gsa_tiny", "resnet_tiny")
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
        results.append(train(replace(recipe(name), image_px=28), data="bundled", out=out / name))
    print("\n" + table(results))
    print(f"\n{time.perf_counter() - started:.0f} s in all; each folder holds {', '.join(PICTURES)}:")
    for name in RECIPES:
        print(f"  {out / name}")


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
