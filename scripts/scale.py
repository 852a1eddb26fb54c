"""Estimate what the large recipes take on 8 to 256 GPUs, and what limits them; docs/scale.md explains the model.

python scripts/scale.py    # write the tables of docs/scale.md anew, from the rates in docs/scale.json
python scripts/scale.py halonet_h4_imagenet --gpus 64 --images-per-second 500 --workers 12    # print one estimate
"""

import argparse
import json
import math
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from parhelion.cli import exit_code
from parhelion.errors import UserError
from parhelion.files.atomic import write_text
from parhelion.models import create_model
from parhelion.models.count import multiply_adds, parameters
from parhelion.recipes.table import RECIPES, recipe

DOCS = Path(__file__).resolve().parent.parent / "docs"
CLASSES = {"halonet_h4_base128_imagenet21k": 21_000}  # of recipes that are not for ImageNet's thousand
GPUS, NODE_GPUS = (8, 32, 128, 256), 8
LINKS = ((200e9, 4e-6), (10e9, 10e-6))  # bytes per second and seconds of a hop, within a node and between nodes
FLOPS_PER_SECOND = 0.1 * 312e12  # a tenth of what an A100 is sold for in bfloat16
TRAINING_FLOPS = 3 * 2  # forward pass once, backward pass twice; a multiply-add is two FLOPs
OVERLAP, BACKWARD_SHARE = 0.7, 2 / 3  # OVERLAP: share of the backward pass that hides traffic
GRADIENT_BYTES, BUCKET_BYTES, SUMS_PER_NORM = 4, 25 * 2**20, 4  # two sums forward, two backward
PART_PIXELS = 128 * 256**2  # most pixels of a part of a batch on one GPU


@dataclass(frozen=True, kw_only=True)
class Job:
    """What of a recipe decides its cost."""

    params: int
    multiply_adds: int  # of one image, forward
    norms: int
    updates: float  # of the whole run
    batch: int  # images of an update
    image_px: int


def job(name: str) -> Job:
    """The recipe called `name`, counted on its network."""
    wanted, entry = recipe(name), RECIPES[name]
    if not entry.images:
        raise UserError(f"{name} is for any number of images, so its hours cannot be told; give a recipe with its own")
    sizes = {"num_classes": CLASSES.get(name, 1000), "image_size": wanted.image_px}
    with torch.device("meta"):
        network: Any = create_model(wanted.model, **sizes, **wanted.model_choices())
    return Job(
        params=parameters(network),
        multiply_adds=multiply_adds(network, (wanted.image_px, wanted.image_px)),
        norms=sum(type(module) is nn.BatchNorm2d for module in network.modules()),
        updates=entry.passes * (entry.images // wanted.batch),
        batch=wanted.batch,
        image_px=wanted.image_px,
    )


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of a run: seconds of each update by what takes them. `gradients` is what computing does not hide."""

    rate: float  # images per second of a GPU that waits for nothing
    parts: int  # of a batch
    compute: float
    norms: float
    gradients: float
    input: float
    updates: float

    @property
    def seconds(self) -> float:
        """Of an update; reading goes on beside everything else."""
        return max(self.compute + self.norms + self.gradients, self.input)

    @property
    def hours(self) -> float:
        """Of the run without its evaluations."""
        return self.updates * self.seconds / 3600

    @property
    def limit(self) -> str:
        """What binds."""
        network = self.norms + self.gradients
        if self.input >= self.compute + network:
            return "input"
        return "compute" if self.compute >= network else "network"


def cost(
    job: Job, worker_rate: float, gpus: int, *, workers: int = 8, rate: float = 0, parts: int = 0, sync_bn: bool = True
) -> Cost:
    """The model of docs/scale.md. Rates are images/s; 0 takes the assumed rate of a GPU, and as few parts as fit."""
    images = job.batch / gpus
    rate = rate or FLOPS_PER_SECOND / (TRAINING_FLOPS * job.multiply_adds)
    parts = parts or 2 ** max(0, math.ceil(math.log2(images * job.image_px**2 / PART_PIXELS)))
    tiers = tuple(zip((min(gpus, NODE_GPUS), math.ceil(gpus / NODE_GPUS)), LINKS, strict=True))
    size = GRADIENT_BYTES * job.params
    # A few bytes go up a tree and down again, many go twice around a ring.
    few = sum(2 * math.ceil(math.log2(count)) * hop_seconds for count, (_, hop_seconds) in tiers)
    ring = sum((count - 1) / count * size / bytes_per_second for count, (bytes_per_second, _) in tiers)
    # DDP sends after the last part only, while that goes backward.
    hidden = OVERLAP * BACKWARD_SHARE * images / rate / parts
    return Cost(
        rate=rate,
        parts=parts,
        compute=images / rate,
        norms=SUMS_PER_NORM * job.norms * parts * few if sync_bn else 0.0,
        gradients=max(0.0, 2 * ring + math.ceil(size / BUCKET_BYTES) * few - hidden),
        input=images / (workers * worker_rate),
        updates=job.updates,
    )


def number(value: float) -> str:
    """Two digits, or all before the point."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def hours_cells(job: Job, worker_rate: float) -> list[str]:
    """Counts, and the hours on each number of GPUS with what binds."""
    costs = [cost(job, worker_rate, gpus) for gpus in GPUS]
    counts = [f"{job.params / 1e6:.1f}", f"{job.multiply_adds / 1e9:.1f}", str(job.norms), number(costs[0].rate)]
    return [*counts, *(f"{number(one.hours)} h, {one.limit}" for one in costs)]


def parts_cells(job: Job, worker_rate: float) -> list[str]:
    """What makes up an update on the most GPUs, and the hours that remain without some of it."""
    whole, apart = (cost(job, worker_rate, GPUS[-1], sync_bn=sync_bn) for sync_bn in (True, False))
    fed = cost(job, worker_rate, GPUS[-1], sync_bn=False, workers=10**6)
    took = [f"{1e3 * seconds:.1f} ms" for seconds in (whole.compute, whole.norms, whole.gradients, whole.input)]
    enough = math.ceil(job.batch / GPUS[-1] / fed.seconds / worker_rate)
    return [f"{job.batch // GPUS[-1]}", *took, *(number(one.hours) for one in (whole, apart, fed)), str(enough)]


def input_cells(job: Job, rates: dict[str, float], image_bytes: float) -> list[str]:
    """What workers read, and what a node of GPUs wants."""
    rate = cost(job, rates["1"], NODE_GPUS).rate
    read = (rates["1"], rates["2"], NODE_GPUS * rate, NODE_GPUS * rate * image_bytes / 1e6)
    return [str(job.image_px), *map(number, read), str(math.ceil(rate / rates["1"]))]


def document(text: str, read: dict[str, Any]) -> str:
    """docs/scale.md with the rows of its tables anew; their heads stay."""
    tables = {"hours": "", "parts": "", "input": ""}
    for name, rates in read["images_per_second"].items():
        one, rate = job(name), rates["1"]
        cells = (hours_cells(one, rate), parts_cells(one, rate), input_cells(one, rates, read["mean_bytes"]))
        for table, row in zip(tables, cells, strict=True):
            tables[table] += f"| `{name}` | {' | '.join(row)} |\n"
    for table, rows in tables.items():
        pattern = rf"(<!-- {table} -->\n\n.+\n.+\n)(?:\|.*\n)*(\n<!-- /{table} -->)"
        text, found = re.subn(pattern, rf"\g<1>{rows}\g<2>", text)
        if found != 1:
            raise UserError(f"docs/scale.md must hold one table between <!-- {table} --> and <!-- /{table} -->")
    return text


def main() -> None:
    """Write the tables of docs/scale.md, or print one estimate."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("recipe", nargs="?", help="print the estimate of this recipe only")
    parser.add_argument("--gpus", type=int, help="8 if not given")
    parser.add_argument("--images-per-second", type=float, dest="rate", help="of a GPU, as parhelion benchmark says")
    parser.add_argument("--workers", type=int, help="of a GPU; 8 if not given")
    parser.add_argument("--worker-images-per-second", type=float, dest="worker_rate", help="else from docs/scale.json")
    parser.add_argument("--accumulate", type=int, dest="parts", help="parts of a batch; as few as fit, if not given")
    parser.add_argument("--no-sync-bn", dest="sync_bn", action="store_false", default=None)
    chosen = {name: value for name, value in vars(parser.parse_args()).items() if value is not None}
    read, name = json.loads((DOCS / "scale.json").read_text(encoding="utf-8"))["input"], chosen.pop("recipe", None)
    if (chosen and name is None) or any(value <= 0 for key, value in chosen.items() if key != "sync_bn"):
        raise UserError("options are numbers above 0, and go with a recipe")
    if name is None:
        write_text(DOCS / "scale.md", document((DOCS / "scale.md").read_text(encoding="utf-8"), read))
        return
    wanted, rates = job(name), read["images_per_second"].get(name, {"1": None})
    chosen = {"gpus": NODE_GPUS, "worker_rate": rates["1"]} | chosen
    if chosen["worker_rate"] is None:
        raise UserError(f"what a worker reads for {name} was not measured; give --worker-images-per-second")
    found = cost(wanted, **chosen)
    print(
        f"{name} on {chosen['gpus']} GPUs of {number(found.rate)} images/s, in parts of "
        f"{wanted.batch / chosen['gpus'] / found.parts:g} images: {number(found.hours)} hours; an update takes "
        f"{1e3 * found.seconds:.1f} ms: computing {1e3 * found.compute:.1f}, sums of norms {1e3 * found.norms:.1f}, "
        f"gradients {1e3 * found.gradients:.1f}, or input {1e3 * found.input:.1f}; the limit: {found.limit}"
    )


if __name__ == "__main__":
    sys.exit(exit_code(main))
