"""8-bit integers where they cost no accuracy: `Quantiser`, which finds the layers that must stay in float."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from parhelion.data.images import BadImage
from parhelion.data.samples import Source, Stream, image_count
from parhelion.errors import UserError
from parhelion.export import onnx_files
from parhelion.export.facts import Facts
from parhelion.export.graph import IMAGES
from parhelion.export.parity import Photos, prepared_images
from parhelion.export.running import Opened
from parhelion.shapes import Tensor

# Training images: for the ranges of activations, and, other ones, to choose layers on.
CALIBRATION, SEARCH = 128, 512
# To rank single layers, whose harm shows in probabilities long before it shows in top-1.
RANKING = 128
BATCH = 8
# Attention multiplies activations with each other, and its softmax and relative logits stay as they are, in float.
KINDS = ("Conv", "Gemm", "MatMul")
INPUTS = 2


@dataclass(frozen=True, kw_only=True)
class Quantised:
    """What 8-bit integers cost and bring."""

    images: int
    # Top-1, 0 to 1, on the same validation images.
    float_accuracy: float
    int8_accuracy: float
    max_drop: float
    # Layers in 8 bits, and those that stay in float because they would cost too much.
    layers: int
    kept: tuple[str, ...]
    # Images per second by batch: float, then int8.
    speeds: Mapping[int, tuple[float, float]]

    @property
    def drop(self) -> float:
        """Points of top-1, of 100, that are lost."""
        return 100 * (self.float_accuracy - self.int8_accuracy)

    @property
    def problems(self) -> tuple[str, ...]:
        """Why the file is of no use; empty where it is."""
        if not self.layers:
            return ("each of its layers costs too much accuracy in 8 bits",)
        if self.drop > self.max_drop:
            return (f"int8 loses {self.drop:.2f} points of top-1, and {self.max_drop:g} are allowed",)
        return ()

    def as_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return {**asdict(self), "drop": self.drop}

    def text(self) -> str:
        """Lines for a person."""
        kept = f"; kept in float: {', '.join(self.kept)}" if self.kept else ""
        lines = [
            f"int8: top-1 {100 * self.int8_accuracy:.2f}%, float32 {100 * self.float_accuracy:.2f}%, on {self.images} "
            f"images: {self.drop:+.2f} points lost, {self.max_drop:g} allowed",
            f"int8: {self.layers} layers in 8 bits{kept}",
        ]
        for batch, (before, after) in self.speeds.items():
            slower = ", so it is slower" if after < before else ""
            lines.append(
                f"speed, batch {batch}: float32 {before:.1f} images/s, int8 {after:.1f} images/s "
                f"({after / before:.2f} times{slower})"
            )
        return "\n".join(lines)


def training_images(source: Source, facts: Facts) -> tuple[list[Any], Tensor]:
    """Training images of `source`, as a file takes them, and their classes: CALIBRATION first, then SEARCH others.

    Spread evenly over all of them, so that every class has its share. Raises UserError where classes are not the
    model's, or there are too few images.
    """
    if tuple(source.class_names) != facts.class_names:
        raise UserError(
            f"--int8 needs images of the model's own classes, which {source.name} does not have; give --data"
        )
    samples: Any = source.images("train")
    wanted = CALIBRATION + SEARCH
    if isinstance(samples, Stream):
        chosen = [sample for _, sample in zip(range(wanted), samples.in_order(), strict=False)]
    else:
        total = image_count(samples)
        chosen = [samples[row * total // min(wanted, total)] for row in range(min(wanted, total))]
    read = [(image, target) for image, target, _ in chosen if not isinstance(image, BadImage)]
    if len(read) < INPUTS:
        raise UserError(f"--int8 is calibrated on training images, and {source.name} has {len(read)} that can be read")
    # Shuffled, since they may come class by class.
    order = torch.randperm(len(read), generator=torch.Generator().manual_seed(0)).tolist()
    images = [read[row][0] for row in order]
    size = (facts.preprocessing.image_px,) * 2
    prepared = [theirs for _, theirs in prepared_images(facts, images, size)]
    return prepared, torch.tensor([read[row][1] for row in order])


class Quantiser:
    """Writes a float ONNX file with some of its layers in 8-bit integers."""

    def __init__(self, float_file: Path, scratch: Path, calibration: Sequence[Tensor], batch: int | None) -> None:
        """float_file: of float32. scratch: a folder for its own files. calibration: images as the file takes them.

        batch: Images at a time that the file takes; None where any number is.
        """
        import onnx

        self.float_file, self.scratch, self.batch = float_file, scratch, batch or BATCH
        # Ranges are of whole batches.
        self.calibration = list(calibration) + [calibration[-1]] * (-len(calibration) % self.batch)
        graph = onnx.load(float_file, load_external_data=False).graph
        weights = {tensor.name for tensor in graph.initializer}
        # By node, what people call the layer.
        self.layers = {
            node.name: node.input[1].rpartition(".")[0] or node.name
            for node in graph.node
            if node.op_type in KINDS and len(node.input) >= INPUTS and node.input[1] in weights
        }

    def write(self, nodes: Sequence[str], path: Path) -> None:
        """Write the file with the layers `nodes` in 8 bits."""
        from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

        class Images(CalibrationDataReader):
            """Hands out the images."""

            def __init__(self, batches: Iterator[Any]) -> None:
                self.batches = batches

            def get_next(self) -> Any:
                """The next batch, or None."""
                return next(self.batches, None)

        parts = _parts(self.calibration, self.batch)
        batches = ({IMAGES: torch.stack(list(part)).numpy()} for part in parts)
        with _quiet():
            quantize_static(
                self.float_file,
                path,
                Images(iter(batches)),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QInt8,
                weight_type=QuantType.QInt8,
                op_types_to_quantize=list(KINDS),
                nodes_to_quantize=list(nodes),
                calibration_cache_path=self.scratch / "ranges.json",
            )

    def opened(self, nodes: Sequence[str]) -> Opened:
        """The file with the layers `nodes` in 8 bits, in onnxruntime."""
        path = self.scratch / "trial.onnx"
        self.write(nodes, path)
        return onnx_files.opened(path)


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The outcome of a search: nodes in 8 bits, and those that are not, most harmful first."""

    nodes: tuple[str, ...]
    kept: tuple[str, ...]


def search(
    quantiser: Quantiser, images: Sequence[Tensor], targets: Tensor, *, max_drop: float, say: Callable[[str], None]
) -> Chosen:
    """The layers that can be in 8 bits: all, or all but the most harmful ones, which are found one by one.

    Half of `max_drop` may be lost on these images, which are of the training; others judge the result.
    """
    every = tuple(quantiser.layers)
    exact = onnx_files.opened(quantiser.float_file)
    wanted = _probabilities(exact, images)
    right = _accuracy(wanted, targets)
    say(f"int8: trying all {len(every)} layers")

    def lost(nodes: Sequence[str]) -> float:
        return 100 * (right - _accuracy(_probabilities(quantiser.opened(nodes), images), targets))

    if lost(every) <= max_drop / 2:
        return Chosen(nodes=every, kept=())
    some = images[:RANKING]
    harm = {}
    for number, node in enumerate(every, start=1):
        say(f"int8: measuring layer {number} of {len(every)}, {quantiser.layers[node]}")
        harm[node] = (_probabilities(quantiser.opened([node]), some) - wanted[: len(some)]).abs().mean().item()
    ranked = sorted(every, key=harm.__getitem__, reverse=True)
    count = 1
    while count < len(ranked):
        say(f"int8: trying without the {count} most harmful layers")
        nodes = [node for node in every if node not in ranked[:count]]
        if lost(nodes) <= max_drop / 2:
            return Chosen(nodes=tuple(nodes), kept=tuple(ranked[:count]))
        count = count * 2 if count < INPUTS * 2 else count * 3 // 2
    return Chosen(nodes=(), kept=tuple(ranked))


def accuracy(found: Opened, facts: Facts, given: Photos) -> float:
    """Top-1 of an opened file on images of known classes, 0 to 1."""
    assert given.targets is not None
    images = [theirs for _, theirs in prepared_images(facts, given.images, (facts.preprocessing.image_px,) * 2)]
    return _accuracy(_probabilities(found, images), given.targets)


def _accuracy(probabilities: Tensor, targets: Tensor) -> float:
    return (probabilities.argmax(dim=1) == targets).double().mean().item()


def _probabilities(found: Opened, images: Sequence[Tensor]) -> Tensor:
    batch = found.facts.fixed[0] if found.facts.fixed else BATCH
    answers = []
    for part in _parts(images, batch):
        filled = torch.stack([*part, *[part[-1]] * (batch - len(part) if found.facts.fixed else 0)])
        answers.append(found(filled)[: len(part)].float())
    together = torch.cat(answers)
    return together if found.facts.prepares else together.softmax(dim=1)


def _parts(images: Sequence[Tensor], batch: int) -> Iterator[Sequence[Tensor]]:
    return (images[start : start + batch] for start in range(0, len(images), batch))


@contextmanager
def _quiet() -> Iterator[None]:
    """Let the quantiser keep its advice, such as to preprocess the file, to itself."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
