"""Mask R-CNN over our backbones and others': a training step and inference, time and peak memory.

    python benchmarks/detection.py                    # into benchmarks/results/detection.json and .png
    python benchmarks/detection.py --memory           # does memory stay flat over 2,000 updates? detection_memory.json
    python benchmarks/detection.py --quick            # small images, two rounds, to the terminal: does it all run?

The peer is torchvision's own maskrcnn_resnet50_fpn, untrained, all of it trainable, with as many classes and numbers of
proposals and samples, and with masks that stay within their boxes as ours do. All have the same images and the same
proposals to work on, whatever an untrained backbone happens to see, so that only the backbones make a difference. Of
each image 128 proposals are sampled, not torchvision's 512, whose heads would take most of the time. Exit code 1
where numbers are wrong; such a candidate is left out, and the report says why.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NoReturn

import torch
from cases import Case
from cpu import case_lines, measured_case
from loop import FULL as LONG
from loop import QUICK as SHORT
from loop import Length, in_fresh_process, memory_lines, watched
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN, maskrcnn_resnet50_fpn
from torchvision.ops import masks_to_boxes

from parhelion.cli import exit_code
from parhelion.detection.rcnn import mask_rcnn
from parhelion.detection.task import train
from parhelion.errors import UserError
from parhelion.files.atomic import write_json
from parhelion.recipes.table import recipe
from parhelion.speed.networks import MOMENTUM, SEED
from parhelion.speed.report import narrator, save_report, speed_report
from parhelion.speed.timing import Candidate, Run, footnote, not_finite

RESULTS = Path(__file__).parent / "results"
SCENES = Path(__file__).parents[1] / "scripts" / "scenes.py"
PACKAGES = ("parhelion", "torch", "torchvision", "timm", "accelerate")
CLASSES, OBJECTS = 80, 8
# So small that weights hardly move, and each step computes the same.
LEARNING_RATE = 1e-12
# In inference one proposal in this many is an object: about 16 of the 1,000 of a large image.
FOUND_EVERY = 64
CERTAIN = 10.0
PEER, PEERS_BACKBONE = "torchvision", "resnet50"
BACKBONES: dict[str, tuple[str, dict[str, Any]]] = {
    "resnet50": (PEERS_BACKBONE, {}),
    "halo_resnet50_se, block 8": ("halo_resnet50_se", {"block": 8}),
    "halo_resnet50_se, block 32": ("halo_resnet50_se", {"block": 32}),
    "halonet_h0": ("halonet_h0", {}),
    "gsa_resnet50": ("gsa_resnet50", {}),
    "timm resnet50": ("timm:resnet50", {}),
}
WATCHED, WATCHED_BATCH, WATCHED_WORKERS, VAL_SCENES = "mask_rcnn_halonet_tiny", 2, (0, 2), 8


@dataclass(frozen=True, kw_only=True)
class Size:
    """What is measured, and how often."""

    image_px: int
    batch: int
    sampled_boxes: int
    training_rounds: int
    inference_rounds: int
    memory: Length


# Scored and saved every so many updates; what comes before the first time is not regressed on.
FULL = Size(
    image_px=384, batch=2, sampled_boxes=128, training_rounds=3, inference_rounds=3, memory=replace(LONG, warm=500)
)
QUICK = Size(
    image_px=64,
    batch=2,
    sampled_boxes=16,
    training_rounds=2,
    inference_rounds=2,
    memory=replace(SHORT, watched=12, warm=6, sample_every=2, checkpoint_every=6),
)


@dataclass(frozen=True, kw_only=True)
class Detector(Candidate):
    """Mask R-CNN with a feature pyramid on a batch of square images: one step of training, or what it finds.

    All compute in channels-last memory. A training step is forward pass, sum of the losses, backward pass and a step
    of SGD with momentum.
    """

    backbone: str | None = None  # None: torchvision's own network
    choices: tuple[tuple[str, Any], ...] = ()
    image_px: int
    train: bool
    sampled_boxes: int  # of an image; a quarter of them at most are objects

    def network(self) -> MaskRCNN:
        """The network with new weights, the same each time."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            given: dict[str, Any] = {"box_batch_size_per_image": self.sampled_boxes}
            if self.backbone is not None:
                return mask_rcnn(self.backbone, CLASSES, image_px=self.image_px, choices=dict(self.choices), **given)
            # Ours take training images as they are, too.
            given |= {"min_size": self.image_px, "max_size": self.image_px, "_skip_resize": True}
            return maskrcnn_resnet50_fpn(num_classes=CLASSES + 1, weights_backbone=None, **given)

    def build(self) -> Run:
        """Losses of a training step per call; or boxes, scores and masks of all images."""
        network = self.network()
        images, targets = scenes(self.batch, self.image_px)
        network.rpn.head.register_forward_hook(_same_proposals)
        network.roi_heads.box_predictor.register_forward_hook(_same_objects)
        if self.backbone is None:
            # Images are not scaled, so boxes need not be scaled back; pasting masks is what ours leave out.
            vars(network.transform)["postprocess"] = lambda found, _scaled, _sizes: found
        network.train(self.train).to(memory_format=torch.channels_last)
        if not self.train:
            return partial(_found, network, images)
        optimizer = torch.optim.SGD(network.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)
        return partial(_step, network, optimizer, images, targets)

    def problem(self, answer: Sequence[Tensor]) -> str | None:
        """Not finite, nothing found, or another size than torchvision's where backbone and heads are the same."""
        if self.backbone == PEERS_BACKBONE:
            ours, theirs = parameters(self), parameters(replace(self, backbone=None))
            if ours != theirs:
                return f"it has {ours:,} parameters, and torchvision's {theirs:,}"
        return not_finite(answer) or (None if all(part.numel() for part in answer) else "it finds nothing")

    def multiply_adds(self) -> None:
        """Not counted: heads compute as much as there are proposals."""


def parameters(candidate: Detector) -> int:
    """Trainable parameters of its network."""
    with torch.device("meta"):
        return sum(weight.numel() for weight in candidate.network().parameters() if weight.requires_grad)


def _step(
    network: MaskRCNN, optimizer: torch.optim.Optimizer, images: list[Tensor], targets: list[dict[str, Tensor]]
) -> Sequence[Tensor]:
    with torch.random.fork_rng(devices=[]):
        # Proposals are sampled at random: the same ones in each step.
        torch.manual_seed(SEED)
        losses = network(images, targets)
    optimizer.zero_grad(set_to_none=True)
    torch.stack(list(losses.values())).sum().backward()
    optimizer.step()
    return [loss.detach() for loss in losses.values()]


def _found(network: MaskRCNN, images: list[Tensor]) -> Sequence[Tensor]:
    with torch.inference_mode():
        return [image[key] for image in network(images) for key in ("boxes", "scores", "masks")]


def _same_proposals(_head: nn.Module, _maps: Any, output: tuple[list[Tensor], list[Tensor]]) -> Any:
    """Anchors as they are, with random scores that depend on nothing but the maps' sizes; gradients as without."""
    scores, boxes = output
    return [_valued(one, fixed_scores(one.shape)) for one in scores], [_valued(one, 0 * one.detach()) for one in boxes]


def _same_objects(predictor: nn.Module, _features: Any, output: tuple[Tensor, Tensor]) -> Any:
    """In inference: some proposals are certainly objects, as they are."""
    if predictor.training:
        return None
    logits, boxes = output
    value = torch.zeros_like(logits)
    value[:, 0] = CERTAIN
    proposals = torch.arange(0, len(logits), FOUND_EVERY)
    value[proposals, 1 + proposals % CLASSES] = CERTAIN + fixed_scores(proposals.shape)
    return _valued(logits, value), _valued(boxes, torch.zeros_like(boxes))


def _valued(tensor: Tensor, value: Tensor) -> Tensor:
    """`value` with the gradient, and the NaN, of `tensor`."""
    return tensor - tensor.detach() + value


@lru_cache
def fixed_scores(shape: torch.Size) -> Tensor:
    """The same random numbers for a shape."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(SEED))


@lru_cache
def scenes(batch: int, image_px: int) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Images of noise with some coloured ellipses laid over one another, and torchvision's targets for them."""
    generator = torch.Generator().manual_seed(SEED)
    random = partial(torch.rand, generator=generator)
    centres = torch.arange(image_px) + 0.5
    images, targets = [], []
    for _ in range(batch):
        image, masks = 0.4 + 0.2 * random(3, image_px, image_px), list[Tensor]()
        for _ in range(OBJECTS):
            row, col = image_px * random(2)
            tall, wide = image_px * (0.06 + 0.14 * random(2))
            inside = ((centres[:, None] - row) / tall) ** 2 + ((centres - col) / wide) ** 2 <= 1
            image[:, inside] = random(3, 1)
            masks = [*(mask & ~inside for mask in masks), inside]
        visible = torch.stack([mask for mask in masks if mask.any()])
        boxes = masks_to_boxes(visible)
        # The last pixel belongs to the box.
        boxes[:, 2:] += 1
        labels = 1 + torch.randint(CLASSES, (len(boxes),), generator=generator)
        images.append(image)
        targets.append({"boxes": boxes, "labels": labels, "masks": visible.to(torch.uint8)})
    return images, targets


def cases(size: Size) -> tuple[Case, Case]:
    """Training and inference; torchvision's comes first, since all are compared with it."""
    made = {}
    for task in ("training step", "inference"):
        training = task == "training step"
        common = {"batch": size.batch, "image_px": size.image_px, "sampled_boxes": size.sampled_boxes}
        ours = [
            Detector(name=name, backbone=backbone, choices=tuple(choices.items()), train=training, **common)
            for name, (backbone, choices) in BACKBONES.items()
        ]
        made[task] = Case(
            name=f"mask-rcnn-{task.split()[0]}",
            title=f"Mask R-CNN, {size.image_px} px, batch {size.batch}, float32, {task}",
            candidates=(Detector(name=PEER, train=training, **common), *ours),
            rounds=size.training_rounds if training else size.inference_rounds,
        )
    return made["training step"], made["inference"]


def watched_run(workers: int, length: Length, data: str, folder: Path) -> dict[str, Any]:
    """A whole run with its evaluations and checkpoints, and the memory that it holds."""
    # An epoch ends with an evaluation and a checkpoint.
    wanted = replace(
        recipe(WATCHED),
        batch=WATCHED_BATCH,
        epochs=-(-length.watched // length.checkpoint_every),
        updates=length.watched,
        workers=workers,
        checkpoint_updates=0,
    )
    seen = watched(lambda: train(wanted, data=data, out=folder, quiet=True), length)
    return {"model": WATCHED, "batch": WATCHED_BATCH, "workers": workers} | seen


def memory(length: Length, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """What a run holds with and without processes that read for it, each in a process where nothing else has lived."""
    with tempfile.TemporaryDirectory() as work:
        folder, runs = Path(work) / "scenes", []
        counts = ("--train", length.checkpoint_every * WATCHED_BATCH, "--val", VAL_SCENES)
        subprocess.run([sys.executable, SCENES, folder, *map(str, counts)], check=True, stdout=subprocess.DEVNULL)
        for workers in WATCHED_WORKERS:
            say(f"{WATCHED}: {length.watched} updates, {workers} workers")
            out = Path(work) / f"workers{workers}"
            runs.append(in_fresh_process(watched_run, workers, length, f"coco:{folder}", out))
    return runs


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; --help says more")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what `arguments` ask for; the exit code."""
    parser = _Parser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small images, two rounds, no peak memory; few updates")
    parser.add_argument("--memory", action="store_true", help="watch the memory of training runs instead")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="where to write; benchmarks/results, or with --quick nowhere"
    )
    chosen = parser.parse_args(arguments)
    out = chosen.out or (None if chosen.quick else RESULTS)
    if out is not None:
        _make(out)
    size = QUICK if chosen.quick else FULL
    return _memory(size, out) if chosen.memory else _speed(size, out, quick=chosen.quick)


def _speed(size: Size, out: Path | None, *, quick: bool) -> int:
    wrong = list[str]()
    measured = []
    for case in cases(size):
        measured.append(measured_case(case, quick=quick, eager=True, wrong=wrong))
        print("\n".join(case_lines(measured[-1])), flush=True)
    report = speed_report(measured, "Mask R-CNN on the CPU", packages=PACKAGES)
    if out is not None:
        save_report(report, out / "detection.json")
    print(f"\n{footnote(report)}")
    for sentence in wrong:
        print(f"wrong: {sentence}", file=sys.stderr)
    return 1 if wrong else 0


def _memory(size: Size, out: Path | None) -> int:
    say = narrator()
    report = speed_report([], "Memory of a training run of Mask R-CNN", packages=PACKAGES)
    del report["cases"]
    report["memory"] = memory(size.memory, say)
    say("")
    print("\n".join([*memory_lines(report["memory"]), "", footnote(report)]))
    if out is not None:
        write_json(out / "detection_memory.json", report)
    return 0


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror or error}") from error


if __name__ == "__main__":
    sys.exit(exit_code(main))
