"""What scripts/scale.py measures on the machine at hand: training steps of one and of two processes, and input.

Started by `python scripts/scale.py --measure`; every process of torchrun runs this file.
"""

import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from accelerate import Accelerator
from PIL import Image

from parhelion.classification.recipe import ClassificationRecipe
from parhelion.classification.task import cross_entropy
from parhelion.data.loaders import make_loader
from parhelion.data.sources import Source, open_source
from parhelion.data.transforms import train_transform
from parhelion.files.atomic import write_json
from parhelion.models.catalog import create_model
from parhelion.recipes.table import recipe
from parhelion.runs.setup import prepared
from parhelion.seeds import seed_everything
from parhelion.speed.timing import summary, surroundings
from parhelion.train import loop, parallel

PACKAGES = ("parhelion", "torch", "timm", "accelerate", "pillow")
CLASSES = 10
# Ways to run a step: alone in one process, or two processes beside each other.
ALONE, ALONE_SYNCHRONISED = "alone", "alone, norms synchronised with nobody"
APART, DDP, DDP_SYNCHRONISED, FSDP = "each for itself", "DDP", "DDP and sync_bn", "FSDP2"
# Launches of one and of two processes in turns, and in each of them so many turns of so many steps of every way.
LAUNCHES, TURNS, STEPS = 3, 4, 2
# As many numbers as a norm sums, and as many bytes as DDP sends at once.
FEW, MANY = 257, 25 * 2**20
FEW_CALLS, MANY_CALLS = 150, 5
# Between small sums a process multiplies matrices of this side so often, since a norm sums after a layer computed.
BETWEEN_SIDE, BETWEEN_PRODUCTS = 320, 4
# Photographs as in ImageNet: their size in pixels, and about their size as files.
PHOTO_WIDTH, PHOTO_HEIGHT, PHOTO_QUALITY = 500, 375, 89
PHOTOS, COPIES, READ_BATCH = 16, 12, 8


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A network whose training steps are timed; `batch` images a process."""

    model: str
    image_px: int
    batch: int


SUBJECTS = (
    Subject(model="halonet_h0", image_px=64, batch=8),
    Subject(model="halonet_tiny", image_px=32, batch=32),
)


def measured(recipes: Sequence[str], say: Callable[[str], None]) -> dict[str, Any]:
    """Everything, ready for JSON; `recipes`: those whose input is read."""
    launches: dict[int, list[dict[str, Any]]] = {1: [], 2: []}
    for number in range(LAUNCHES):
        for processes, found in launches.items():
            say(f"steps of {processes} processes, launch {number + 1} of {LAUNCHES}")
            found.append(launched(processes))
    steps = []
    for subject in SUBJECTS:
        ways: dict[str, list[float]] = {}
        for found in (*launches[1], *launches[2]):
            for way, seconds in found["steps"][subject.model].items():
                ways.setdefault(way, []).extend(seconds)
        steps.append({**asdict(subject), "seconds": {way: asdict(summary(found)) for way, found in ways.items()}})
    few, many = ([seconds for found in launches[2] for seconds in found[name]] for name in ("few_bytes", "many_bytes"))
    reduced = {
        # The mean: a step waits for the slow sums, too.
        "few_bytes_seconds": fmean(few),
        "few_bytes_median_seconds": median(few),
        "many_bytes_seconds": median(many),
        "many_bytes": MANY,
    }
    # As many as the processes that were measured had.
    torch.set_num_threads(1)
    return {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        **surroundings(PACKAGES),
        "steps": steps,
        "all_reduce": reduced,
        "input": input_rates(recipes, say),
    }


def launched(processes: int) -> dict[str, Any]:
    """What this file's `main` finds in so many processes of one thread."""
    with tempfile.TemporaryDirectory() as work:
        out = Path(work) / "found.json"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        subprocess.run([*command, __file__, str(out)], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return found


def main(out: Path) -> None:
    """Time everything in this process and, if there is one, its neighbour."""
    torch.set_num_threads(1)
    accelerator = parallel.accelerator_for("no")
    if not dist.is_initialized():
        dist.init_process_group("gloo")
    found: dict[str, Any] = {"steps": {subject.model: step_seconds(subject, accelerator) for subject in SUBJECTS}}
    if accelerator.num_processes > 1:
        found["few_bytes"] = reduce_seconds(FEW, FEW_CALLS, products=BETWEEN_PRODUCTS)
        found["many_bytes"] = reduce_seconds(MANY // 4, MANY_CALLS, products=0)
    if accelerator.is_main_process:
        write_json(out, found)
    dist.destroy_process_group()


def step_seconds(subject: Subject, accelerator: Accelerator) -> dict[str, list[float]]:
    """Seconds of the steps of every way, which take turns."""
    generator = torch.Generator().manual_seed(accelerator.process_index)
    images = torch.randn(subject.batch, 3, subject.image_px, subject.image_px, generator=generator)
    batch = {"image": images, "target": torch.arange(subject.batch) % CLASSES}
    ways = {name: make() for name, make in makers(subject, accelerator).items()}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(1 + TURNS):
        for name, run in ways.items():
            # The first turn warms up.
            took = [timed(run, batch) for _ in range(STEPS)]
            seconds[name] += took if turn else []
    return seconds


def timed(run: Callable[[loop.Batch], None], batch: loop.Batch) -> float:
    """Seconds of one step, which all processes begin together."""
    dist.barrier()
    started = time.perf_counter()
    run(batch)
    return time.perf_counter() - started


def makers(subject: Subject, accelerator: Accelerator) -> Mapping[str, Callable[[], Callable[[loop.Batch], None]]]:
    """What makes a step, for each way that these processes can go."""
    if accelerator.num_processes == 1:
        return {
            ALONE: lambda: plain(subject, synchronised=False),
            ALONE_SYNCHRONISED: lambda: plain(subject, synchronised=True),
        }
    return {
        APART: lambda: plain(subject, synchronised=False),
        DDP: lambda: shared(subject, accelerator, sync_bn=False),
        DDP_SYNCHRONISED: lambda: shared(subject, accelerator, sync_bn=True),
        FSDP: lambda: shared(subject, accelerator, sync_bn=False, sharding="fsdp"),
    }


def plain(subject: Subject, *, synchronised: bool) -> Callable[[loop.Batch], None]:
    """A step whose gradients stay in the process."""
    wanted, model = recipe_of(subject), network(subject)
    if synchronised:
        parallel.synchronise_batch_norms(model)
    step = loop.Step(model, cross_entropy(wanted, CLASSES)).train()
    return stepper(step, torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, nesterov=True))


def shared(subject: Subject, accelerator: Accelerator, **choices: Any) -> Callable[[loop.Batch], None]:
    """A step as a run of several processes makes it."""
    wanted = recipe_of(subject, **choices)
    plan = loop.Plan(updates_per_epoch=100, updates=100)
    ready = prepared(wanted, accelerator, network(subject), cross_entropy(wanted, CLASSES), plan)
    return stepper(ready.step.train(), ready.moving.optimization.optimizer)


def recipe_of(subject: Subject, **choices: Any) -> ClassificationRecipe:
    """The least of a recipe that trains `subject`."""
    return ClassificationRecipe(
        model=subject.model, image_px=subject.image_px, epochs=2, lr_per_256=0.01, batch=subject.batch, **choices
    )


def network(subject: Subject) -> Any:
    """The network, equal in all processes."""
    seed_everything("weights", 0)
    model = create_model(subject.model, num_classes=CLASSES, image_size=subject.image_px)
    return model.to(memory_format=torch.channels_last)


def stepper(step: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Callable[[loop.Batch], None]:
    """Forward and backward pass and the optimiser."""

    def run(batch: loop.Batch) -> None:
        optimizer.zero_grad()
        sum(step(batch).values()).backward()
        optimizer.step()

    return run


def reduce_seconds(numbers: int, calls: int, *, products: int) -> list[float]:
    """Seconds of each sum of so many float32 numbers over the processes, which compute in between."""
    tensor, matrix, seconds = torch.zeros(numbers), torch.ones(BETWEEN_SIDE, BETWEEN_SIDE), []
    dist.all_reduce(tensor)
    for _ in range(calls):
        for _ in range(products):
            matrix @ matrix
        started = time.perf_counter()
        dist.all_reduce(tensor)
        seconds.append(time.perf_counter() - started)
    return seconds


def input_rates(recipes: Sequence[str], say: Callable[[str], None]) -> dict[str, Any]:
    """Images per second that one and two workers read, decode and augment for each recipe."""
    rates: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as work:
        size = write_photos(Path(work) / "train")
        source = open_source(work, splits=("train",))
        for name in recipes:
            say(f"input of {name}")
            rates[name] = {str(workers): read_rate(recipe(name), source, workers) for workers in (1, 2)}
    return {"pixels": [PHOTO_WIDTH, PHOTO_HEIGHT], "mean_bytes": round(size), "images_per_second": rates}


def read_rate(wanted: ClassificationRecipe, source: Source, workers: int) -> float:
    """Images per second once the workers are at it."""
    transform = train_transform(wanted.preprocessing(wanted.image_px), wanted.augmentation())
    loader = make_loader(source.train, transform, batch=READ_BATCH, train=True, workers=workers)
    # The first batches wait for the workers to start.
    early, started = 2 * workers, 0.0
    for count, _ in enumerate(loader, start=1):
        if count == early:
            started = time.perf_counter()
    return READ_BATCH * (len(loader) - early) / (time.perf_counter() - started)


def write_photos(folder: Path) -> float:
    """Fill `folder` with JPEGs whose detail falls off with frequency as in photographs; their mean size in bytes."""
    generator, sizes = np.random.default_rng(0), []
    for number in range(PHOTOS):
        content = jpeg(generator)
        sizes.append(len(content))
        for copy in range(COPIES):
            file = folder / f"class{number % 2}" / f"{number}_{copy}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
    return sum(sizes) / len(sizes)


def jpeg(generator: np.random.Generator) -> bytes:
    """A picture of coloured clouds."""
    frequency = np.hypot(np.fft.fftfreq(PHOTO_HEIGHT)[:, None], np.fft.rfftfreq(PHOTO_WIDTH)[None])
    frequency[0, 0] = 1
    noise = np.fft.rfft2(generator.standard_normal((3, PHOTO_HEIGHT, PHOTO_WIDTH))) / frequency
    planes = np.fft.irfft2(noise, s=(PHOTO_HEIGHT, PHOTO_WIDTH))
    # Colours vary less than brightness.
    planes = planes.mean(0) + 0.4 * planes
    levels = 128 + 50 * planes / planes.std()
    buffer = io.BytesIO()
    Image.fromarray(levels.clip(0, 255).astype(np.uint8).transpose(1, 2, 0)).save(buffer, "JPEG", quality=PHOTO_QUALITY)
    return buffer.getvalue()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
