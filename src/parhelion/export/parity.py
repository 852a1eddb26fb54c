"""Whether an exported file says what PyTorch says, measured on real images: `measured`."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from PIL import Image

from parhelion.classification.saved import Classifier
from parhelion.data.images import BadImage
from parhelion.data.samples import Source, Stream, image_count
from parhelion.data.transforms import as_stored, eval_transform
from parhelion.errors import UserError
from parhelion.export.facts import Facts
from parhelion.export.faults import named_fault
from parhelion.export.running import Opened, RuntimeRefusalError
from parhelion.shapes import Tensor
from parhelion.speed.timing import summary
from parhelion.speed.turns import in_turns

# Two batch sizes, and images for each at a size that is not the trained one.
BATCHES = {1: 4, 8: 16}
# Sizes that no block divides, and that are no squares.
ODD, WIDE = (97, 131), (256, 320)
ROUNDS = 5
# So many images tell whether there is any colour.
COLOURS = 16
# Below this, all answers of a model count as one.
SAME = 1e-7


@dataclass(frozen=True, kw_only=True)
class Photos:
    """Images to check on, with their classes where these are the model's."""

    source: str
    images: tuple[Image.Image, ...]
    targets: Tensor | None

    def coloured(self) -> tuple[Image.Image, ...]:
        """The images; where all are grey though in three channels, each with the two after it as its other channels.

        Else nothing would show that a file takes blue for red.
        """
        if any(image.mode != "RGB" or _has_colour(image) for image in self.images[:COLOURS]):
            return self.images
        greys = [image.convert("L") for image in self.images]
        following = (greys[1:] + greys[:1], greys[2:] + greys[:2])
        return tuple(
            Image.merge("RGB", [grey, *(other.resize(grey.size) for other in others)])
            for grey, *others in zip(greys, *following, strict=True)
        )

    def first(self, count: int) -> "Photos":
        """`count` of them, spread evenly."""
        rows = [row * len(self.images) // count for row in range(min(count, len(self.images)))]
        rows = rows if count < len(self.images) else list(range(len(self.images)))
        return Photos(
            source=self.source,
            images=tuple(self.images[row] for row in rows),
            targets=None if self.targets is None else self.targets[rows],
        )


@dataclass(frozen=True, kw_only=True)
class Case:
    """Images of one size, some at a time."""

    height: int
    width: int
    batch: int
    images: int
    # Share of the images whose most probable class is the same.
    agreement: float
    # Largest difference of a probability, and what is allowed: less where the model hardly tells images apart.
    difference: float
    allowed: float


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Images per second."""

    batch: int
    pytorch: float
    file: float


@dataclass(frozen=True, kw_only=True)
class Parity:
    """What was measured of a file."""

    runtime: str
    data: str
    cases: tuple[Case, ...]
    # Top-1 of both on the same images, 0 to 1; None where the images are of other classes.
    accuracy: dict[str, float] | None
    speeds: tuple[Speed, ...] = ()
    # A sentence for each reason not to trust the file.
    problems: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return asdict(self)

    def summary(self) -> dict[str, Any]:
        """What the file itself keeps of it."""
        return {
            "runtime": self.runtime,
            "data": self.data,
            "images": sum(case.images for case in self.cases),
            "agreement": min(case.agreement for case in self.cases),
            "difference": max(case.difference for case in self.cases),
            "accuracy": self.accuracy,
        }

    def text(self) -> str:
        """A table of the cases, and lines for accuracy and speed."""
        rows = [("image", "batch", "images", "same top-1", "largest difference", "allowed")]
        rows += [
            (
                f"{case.height}x{case.width}",
                str(case.batch),
                str(case.images),
                f"{100 * case.agreement:.2f}%",
                f"{case.difference:.1e}",
                f"{case.allowed:.1e}",
            )
            for case in self.cases
        ]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
        if self.accuracy:
            both = ", ".join(f"{name} {100 * share:.2f}%" for name, share in self.accuracy.items())
            lines.append(f"top-1 accuracy: {both}")
        lines += [
            f"speed, batch {speed.batch}: PyTorch {speed.pytorch:.1f} images/s, {self.runtime} {speed.file:.1f} "
            f"images/s ({speed.file / speed.pytorch:.2f} times)"
            for speed in self.speeds
        ]
        return "\n".join(lines)


def photos(source: Source, classifier: Classifier, count: int) -> Photos:
    """`count` validation images of `source`, spread evenly over them. Raises UserError where none can be read."""
    samples: Any = source.images("val")
    chosen: list[Any]
    if isinstance(samples, Stream):
        chosen = [sample for _, sample in zip(range(count), samples.in_order(), strict=False)]
    else:
        total = image_count(samples)
        chosen = [samples[row * total // min(count, total)] for row in range(min(count, total))]
    read = [(image, target) for image, target, _ in chosen if not isinstance(image, BadImage)]
    if not read:
        raise UserError(f"none of the validation images of {source.name} can be read, and a file is checked on them")
    same = tuple(source.class_names) == classifier.class_names
    return Photos(
        source=source.name,
        images=tuple(image for image, _ in read),
        targets=torch.tensor([target for _, target in read]) if same else None,
    )


def _has_colour(image: Image.Image) -> bool:
    red, green, blue = image.split()
    return not (red.tobytes() == green.tobytes() == blue.tobytes())


def sizes(facts: Facts) -> list[tuple[int, int]]:
    """Heights and widths to check: the trained one first, unless only one is taken; none that a block divides after."""
    px, least = facts.preprocessing.image_px, facts.smallest
    if facts.fixed:
        return [facts.fixed[1:]]
    others = [(480, 641), (33, 41)] if facts.prepares else [(px * 3 // 2 + 1, px * 5 // 4 + 1), (least, least + 9)]
    at_least = 1 if facts.prepares else least
    return list(dict.fromkeys((max(h, at_least), max(w, at_least)) for h, w in [(px, px), ODD, WIDE, *others]))


def measured(
    classifier: Classifier,
    found: Opened,
    given: Photos,
    *,
    max_difference: float,
    runtime: str,
    say: Callable[[str], None],
) -> Parity:
    """What `found`, a file of `classifier`, says of the images `given`, beside what the classifier says.

    max_difference: Largest difference of a probability for a model that tells images apart with certainty.
    """
    facts = found.facts
    problems = _shape_problems(found)
    cases: list[Case] = []
    accuracy = None
    every = sizes(facts)
    for size in every:
        say(f"checking images of {size[0]}x{size[1]}")
        answered = list[tuple[Tensor, Tensor]]()
        trained = size == every[0]
        for batch, count in _batches(facts).items():
            # At the size of training all images are taken, in the larger batches; else some.
            everything = given.images if trained else given.coloured()
            chosen = everything if trained and batch == max(_batches(facts)) else everything[:count]
            try:
                ours, theirs, problem = _answers(classifier, found, chosen, size, batch, max_difference)
            except RuntimeRefusalError as error:
                problems.append(f"it does not take images of {size[0]}x{size[1]} {batch} at a time: {error}")
                continue
            cases.append(_case(size, batch, ours, theirs, max_difference))
            problems += [problem] if problem else []
            answered.append((ours, theirs))
        if trained and answered and given.targets is not None:
            accuracy = _accuracy(answered[-1], given.targets, runtime)
    return Parity(
        runtime=runtime,
        data=given.source,
        cases=tuple(cases),
        accuracy=accuracy,
        problems=tuple(dict.fromkeys(problems)),
        speeds=() if problems else tuple(_speeds(classifier, found, given, say)),
    )


def _batches(facts: Facts) -> dict[int, int]:
    """Images at a time, and in all."""
    return BATCHES if facts.fixed is None else {facts.fixed[0]: max(BATCHES.values())}


def _shape_problems(found: Opened) -> list[str]:
    """What the file says of the sizes that it takes, where that is not what was promised."""
    facts = found.facts
    axes = dict(zip((0, 1, 2) if facts.prepares else (0, 2, 3), ("batch", "height", "width"), strict=True))
    bound = {name: found.shape[axis] for axis, name in axes.items() if found.shape[axis] is not None}
    if facts.fixed is None and bound:
        words = ", ".join(f"{name} {side}" for name, side in bound.items())
        return [f"it says that it takes images of any size, but its sizes are fixed: {words}"]
    if facts.fixed is not None and tuple(bound.values()) != facts.fixed:
        return [f"it should take images of {facts.fixed}, but its sizes are {found.shape}"]
    return []


def _answers(
    classifier: Classifier, found: Opened, images: Sequence[Image.Image], size: tuple[int, int], batch: int, most: float
) -> tuple[Tensor, Tensor, str | None]:
    """Probabilities of PyTorch and of the file for `images`, and what is wrong with the latter."""
    facts = found.facts
    rows, ours, theirs = list[Tensor](), list[Tensor](), list[Tensor]()
    if facts.fixed and len(images) % batch:
        images = (list(images) * batch)[: max(batch, len(images) // batch * batch)]
    for prepared, passed in _batched(facts, images, size, batch):
        rows.append(prepared)
        ours.append(_probabilities(classifier, prepared))
        answer = found(passed)
        theirs.append((answer if facts.prepares else answer.float().softmax(dim=1)).float())
    both = torch.cat(ours), torch.cat(theirs)
    case = _case(size, batch, *both, most)
    return *both, _problem(classifier, facts, case, torch.cat(rows[: max(BATCHES)]), *both)


def _problem(
    classifier: Classifier, facts: Facts, case: Case, images: Tensor, ours: Tensor, theirs: Tensor
) -> str | None:
    """What is wrong with the answers of the file to images of one size, of which `images` are the first, in words."""
    where = f"images of {case.height}x{case.width}, {case.batch} at a time"
    if ours.shape != theirs.shape:
        return f"it gives {tuple(theirs.shape)} numbers for {where}, not {tuple(ours.shape)}"
    if not theirs.isfinite().all():
        return f"it gives numbers that are not finite for {where}"
    if len(ours) > 1 and _spread(ours) <= SAME:
        return f"{classifier.name} itself says the same of all {where}, so a comparison shows nothing"
    if case.difference <= case.allowed:
        return None
    images = images[: max(BATCHES.values())]
    fault = named_fault(
        lambda changed: _probabilities(classifier, changed),
        images,
        theirs[: len(images)],
        facts.preprocessing,
        max(case.allowed, case.difference / 100),
    )
    measured = f"a probability differs by {case.difference:.1e} for {where}, and {case.allowed:.1e} is allowed"
    return f"{fault} ({measured})" if fault else measured


def _batched(
    facts: Facts, images: Sequence[Image.Image], size: tuple[int, int], batch: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of images of `size`, as PyTorch takes them, and as the file does."""
    prepared = prepared_images(facts, images, size)
    while part := [pair for _, pair in zip(range(batch), prepared, strict=False)]:
        ours, theirs = zip(*part, strict=True)
        yield torch.stack(ours), torch.stack(theirs)


def prepared_images(
    facts: Facts, images: Sequence[Image.Image], size: tuple[int, int]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Each image in `size`, as PyTorch takes it, and as the file does.

    The trained size is reached as in evaluation; for others whole images are stretched. A file that prepares images
    itself is given images of that size, and PyTorch what evaluation makes of them.
    """
    from torchvision.transforms import functional

    preprocessing = facts.preprocessing
    transform = eval_transform(preprocessing)
    trained = size == (preprocessing.image_px,) * 2
    for image in images:
        stretched = image.resize((size[1], size[0]), Image.Resampling.BICUBIC)
        if facts.prepares:
            yield transform(stretched), as_stored(stretched)
        elif trained:
            yield (transform(image),) * 2
        else:
            pixels = functional.to_tensor(stretched)
            yield (functional.normalize(pixels, list(preprocessing.mean), list(preprocessing.std)),) * 2


@torch.inference_mode()
def _probabilities(classifier: Classifier, images: Tensor) -> Tensor:
    return classifier.model(images.contiguous(memory_format=torch.channels_last)).float().softmax(dim=1)


def _spread(probabilities: Tensor) -> float:
    """How far the probabilities of a class are apart among images, at most."""
    return (probabilities.amax(dim=0) - probabilities.amin(dim=0)).max().item()


def _case(size: tuple[int, int], batch: int, ours: Tensor, theirs: Tensor, most: float) -> Case:
    same_shape = ours.shape == theirs.shape
    return Case(
        height=size[0],
        width=size[1],
        batch=batch,
        images=len(ours),
        agreement=(ours.argmax(dim=1) == theirs.argmax(dim=1)).double().mean().item() if same_shape else 0.0,
        # Where it is NaN, it is as far off as can be.
        difference=(ours - theirs).abs().nan_to_num(1.0).max().item() if same_shape else 1.0,
        # One image tells nothing of the spread.
        allowed=most * (min(1.0, _spread(ours)) if len(ours) > 1 else 1.0),
    )


def _accuracy(answered: tuple[Tensor, Tensor], targets: Tensor, runtime: str) -> dict[str, float]:
    shares = [
        (probabilities.argmax(dim=1) == targets[: len(probabilities)]).double().mean().item()
        for probabilities in answered
    ]
    return dict(zip(("PyTorch", runtime), shares, strict=True))


def _speeds(classifier: Classifier, found: Opened, given: Photos, say: Callable[[str], None]) -> Iterator[Speed]:
    """Images per second of both at the size of training, in turns, images prepared beforehand or by the file."""
    for batch in _batches(found.facts):
        prepared, passed = _one_batch(found.facts, given, batch)
        prepared = prepared.contiguous(memory_format=torch.channels_last)
        pytorch, file = _rates(batch, partial(_probabilities, classifier, prepared), partial(found, passed), say)
        yield Speed(batch=batch, pytorch=pytorch, file=file)


def file_speeds(
    before: Opened, after: Opened, given: Photos, say: Callable[[str], None]
) -> dict[int, tuple[float, float]]:
    """Images per second of two files at the size of training, in turns, by batch."""
    rates = {}
    for batch in _batches(before.facts):
        _, passed = _one_batch(before.facts, given, batch)
        rates[batch] = _rates(batch, partial(before, passed), partial(after, passed), say)
    return rates


def _one_batch(facts: Facts, given: Photos, batch: int) -> tuple[Tensor, Tensor]:
    images = (list(given.images) * batch)[:batch]
    return next(_batched(facts, images, sizes(facts)[0], batch))


def _rates(
    batch: int, first: Callable[[], Tensor], second: Callable[[], Tensor], say: Callable[[str], None]
) -> tuple[float, float]:
    samples = in_turns({"first": lambda: (first(),), "second": lambda: (second(),)}, rounds=ROUNDS, say=say)
    one, other = (batch / summary(seconds).median for seconds in samples.values())
    return one, other
