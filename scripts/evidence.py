"""Train attention, convolutional and hybrid networks alike, over several seeds, and write the table that compares them.

    apt-get install dataset-fashion-mnist
    python scripts/evidence.py --out evidence

All of Fashion-MNIST, one recipe for every network. A run that is finished in --out is kept, one that was interrupted
goes on, so the command can be given again at any time. Leaves evidence.md and evidence.png beside the runs.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from parhelion.classification.recipe import ClassificationRecipe
from parhelion.cli import exit_code
from parhelion.compare.chart import compare_chart
from parhelion.compare.runs import Group, grouped, notes, read_runs, spread_text
from parhelion.files.atomic import write_text
from parhelion.files.run_folder import check_same_recipe, holds_run, metrics_rows
from parhelion.recipes.table import recipe
from parhelion.runs.request import Request
from parhelion.runs.trainer import train

RECIPES = ("resnet_tiny", "gsa_tiny", "halonet_tiny", "hybrid_tiny", "gsa_tiny_content", "gsa_tiny_position")
HEADINGS = ("network", "top-1", "parameters", "multiply-adds", "training step, ms")


def main() -> None:
    """Train what is missing, then write and print the table."""
    chosen = arguments()
    folders = []
    # Seed by seed, so that a look after some hours shows every network.
    for seed in chosen.seeds:
        for name in RECIPES:
            wanted = replace(recipe(name), image_px=chosen.image_px, seed=seed)
            if chosen.epochs is not None:
                wanted = replace(wanted, epochs=chosen.epochs)
            folders.append(chosen.out / f"{name}-seed{seed}")
            run(wanted, folders[-1], chosen)
    groups = grouped(read_runs(folders))
    text = report(groups)
    write_text(chosen.out / "evidence.md", text)
    compare_chart(groups, chosen.out / "evidence.png")
    print(f"\n{text}\nwritten to {chosen.out / 'evidence.md'}; the picture is {chosen.out / 'evidence.png'}")


def arguments() -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("evidence"), help="folder for the runs and the table")
    parser.add_argument("--epochs", type=int, help="epochs of every run; the recipe's own if not given")
    parser.add_argument("--image-px", type=int, default=28, help="side of the images (default 28, as they are)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="a run of every network for each")
    parser.add_argument("--data", default="fashion-mnist", help="images, as parhelion train takes them")
    parser.add_argument("--data-dir", type=Path, help="where they lie, if not where Debian's package puts them")
    return parser.parse_args()


def run(wanted: ClassificationRecipe, folder: Path, chosen: argparse.Namespace) -> None:
    """Train `wanted` in `folder`, unless that is done; UserError where another recipe's run lies there."""
    request = Request(data=chosen.data, data_dir=chosen.data_dir, out=folder, resume=True)
    if holds_run(folder):
        check_same_recipe(folder, {**wanted.as_dict(), **request.as_dict()}, defaults=wanted.defaults())
        if len(metrics_rows(folder)) == wanted.epochs:
            print(f"{folder}: finished before", flush=True)
            return
    print(f"\n{folder}", flush=True)
    train(wanted, request)


def report(groups: Sequence[Group]) -> str:
    """The table in Markdown, with all that one must know to repeat it."""
    first = groups[0].first
    data, epochs, batch, side = (first.recipe[name] for name in ("data", "epochs", "batch", "image_px"))
    lines = [f"| {' | '.join(HEADINGS)} |", f"|---{'|--:' * (len(HEADINGS) - 1)}|"]
    lines += [f"| {' | '.join(cells(group))} |" for group in groups]
    about = f"{data}, epochs: {epochs}, batch {batch}, {side} px; {first.machine or 'an unknown machine'}"
    command = shlex.join(["python", *sys.argv])
    return "\n".join([*lines, "", "; ".join([about, *notes(groups)]) + ".", "", f"    {command}", ""])


def cells(group: Group) -> tuple[str, ...]:
    """A network's row, in the order of HEADINGS; the step's time is that of training with reading of images."""
    return (
        group.label,
        spread_text(group.along("top1")[-1], lambda share: f"{100 * share:.2f}%"),
        f"{group.first.params:,}",
        f"{group.first.multiply_adds / 1e6:.1f} M",
        f"{1000 * group.first.recipe['batch'] / group.images_per_second():.0f}",
    )


if __name__ == "__main__":
    sys.exit(exit_code(main))
