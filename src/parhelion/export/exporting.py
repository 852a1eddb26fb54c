"""A subject written to a file that is proven, or no file: `export`."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory

from parhelion.data.sources import Source
from parhelion.errors import UserError
from parhelion.export import onnx_files
from parhelion.export.facts import Facts
from parhelion.export.formats import FORMATS
from parhelion.export.graph import program
from parhelion.export.onnx_files import ONNX_FILE
from parhelion.export.parity import Parity, file_speeds, measured, photos
from parhelion.export.quantization import CALIBRATION, Quantised, Quantiser, accuracy, search, training_images
from parhelion.export.running import Opened, module_of
from parhelion.export.subject import Subject
from parhelion.files.atomic import replacement

PACKAGES = ("parhelion", "torch", "timm", "onnx", "onnxscript", "onnxruntime", "openvino")
MAX_DIFFERENCE, MAX_DROP = 1e-4, 0.5
# One image of 500 would be 0.2 points.
INT8_IMAGES = 2000
INT8_FILE = "int8.onnx"
# Pillow and the file may round a pixel differently, see `resize.Prepare`.
MAX_DIFFERENCE_PREPARED = 0.01


class DisagreementError(Exception):
    """A file that does not say what PyTorch says; it was removed."""

    def __init__(self, report: "Report") -> None:
        super().__init__("; ".join(report.problems))
        self.report = report


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is to be written, and how it is checked."""

    format: str
    prepares: bool = False
    # Batch of a file for images of one size; None for any batch and size.
    fixed_batch: int | None = None
    # None: MAX_DIFFERENCE, or MAX_DIFFERENCE_PREPARED for files that prepare images.
    max_difference: float | None = None
    # Images of the trained size that it is checked on.
    images: int = 500
    int8: bool = False
    # Points of top-1, of 100, that int8 may cost.
    max_drop: float = MAX_DROP


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was measured of a file before it was put in its place."""

    parity: Parity
    int8: Quantised | None = None

    @property
    def problems(self) -> tuple[str, ...]:
        """A sentence for each reason not to trust the file."""
        return self.parity.problems + (() if self.int8 is None else self.int8.problems)

    def as_dict(self) -> dict[str, object]:
        """Everything, ready for JSON."""
        int8 = None if self.int8 is None else self.int8.as_dict()
        return {"float32": self.parity.as_dict(), "int8": int8, "problems": list(self.problems)}

    def text(self) -> str:
        """Tables for a person."""
        return "\n".join([self.parity.text(), *([self.int8.text()] if self.int8 else [])])


def facts_of(subject: Subject, wanted: Wanted) -> Facts:
    """What a file of `subject` will say about itself."""
    classifier = subject.classifier
    side = classifier.preprocessing.image_px
    return Facts(
        model=classifier.name,
        weights=subject.weights,
        class_names=classifier.class_names,
        preprocessing=classifier.preprocessing,
        prepares=wanted.prepares,
        fixed=None if wanted.fixed_batch is None else (wanted.fixed_batch, side, side),
        smallest=1 if wanted.prepares else subject.smallest,
        recipe_sha256=subject.recipe_sha256,
        versions={name: _version(name) for name in PACKAGES},
    )


def export(
    subject: Subject, file: Path, wanted: Wanted, source: Source | None, say: Callable[[str], None] = lambda text: None
) -> Report | None:
    """Write `subject` to `file`, and say what was measured of it; the file is there only if it agrees with PyTorch.

    source: Images that it is checked on (its val split), and for int8 calibrated on (its train split). None leaves the
        check out; the file says so.
    say: Told what is going on.

    Raises DisagreementError, where `file` stays what it was before, and UserError.
    """
    facts, module = facts_of(subject, wanted), module_of(wanted.format)
    # Before minutes are spent on the file.
    check = None if source is None else _Check(subject, wanted, source, say)
    with _places(file) as temporary, TemporaryDirectory() as scratch:
        say(f"tracing {facts.model}")
        graph = program(subject.classifier, facts)
        say(f"writing {wanted.format}, which takes minutes for large networks")
        module.write(graph, temporary, facts, Path(scratch))
        module.tell(temporary, facts)
        if check is None:
            return None
        report = Report(parity=check.parity(module.opened(temporary)))
        if wanted.int8 and not report.problems:
            report = replace(report, int8=check.int8(temporary, Path(scratch), facts))
        if report.problems:
            raise DisagreementError(report)
        module.tell(temporary, _checked(facts, report))
    return report


class _Check:
    """The images that a file is checked on, and what is measured on them."""

    def __init__(self, subject: Subject, wanted: Wanted, source: Source, say: Callable[[str], None]) -> None:
        self.subject, self.wanted, self.source, self.say = subject, wanted, source, say
        count = max(wanted.images, INT8_IMAGES) if wanted.int8 else wanted.images
        self.photos = photos(source, subject.classifier, count)
        if wanted.int8 and self.photos.targets is None:
            raise UserError(
                f"--int8 needs images of the model's own classes, which {source.name} does not have; give --data"
            )

    def parity(self, found: Opened) -> Parity:
        """What the float file says, beside PyTorch."""
        wanted, few = self.wanted, self.photos.first(self.wanted.images)
        most = wanted.max_difference
        if most is None:
            most = MAX_DIFFERENCE_PREPARED if wanted.prepares else MAX_DIFFERENCE
        runtime = FORMATS[wanted.format].runtime
        return measured(self.subject.classifier, found, few, max_difference=most, runtime=runtime, say=self.say)

    def int8(self, file: Path, scratch: Path, facts: Facts) -> Quantised:
        """Put a file of 8-bit integers in the place of the float `file`, whose ONNX file lies in `scratch`."""
        module, wanted = module_of(self.wanted.format), self.wanted
        images, targets = training_images(self.source, facts)
        before = module.opened(file)
        float_accuracy = accuracy(before, facts, self.photos)
        float_file = scratch / ONNX_FILE
        onnx_files.tell(float_file, facts)
        quantiser = Quantiser(float_file, scratch, images[:CALIBRATION], self.wanted.fixed_batch)
        chosen = search(quantiser, images[CALIBRATION:], targets[CALIBRATION:], max_drop=wanted.max_drop, say=self.say)
        int8_accuracy, speeds = 0.0, {}
        if chosen.nodes:
            int8_file = scratch / f"int8-{file.name}"
            quantiser.write(chosen.nodes, scratch / INT8_FILE)
            module.from_onnx(scratch / INT8_FILE, int8_file)
            module.tell(int8_file, replace(facts, precision="int8"))
            after = module.opened(int8_file)
            int8_accuracy = accuracy(after, facts, self.photos)
            speeds = file_speeds(before, after, self.photos, self.say)
            module.from_onnx(scratch / INT8_FILE, file)
        return Quantised(
            images=len(self.photos.images),
            float_accuracy=float_accuracy,
            int8_accuracy=int8_accuracy,
            max_drop=wanted.max_drop,
            layers=len(chosen.nodes),
            kept=tuple(quantiser.layers[node] for node in chosen.kept),
            speeds=speeds,
        )


def _checked(facts: Facts, report: Report) -> Facts:
    if report.int8 is None:
        return replace(facts, check=report.parity.summary())
    return replace(facts, precision="int8", check={**report.parity.summary(), "int8": report.int8.as_dict()})


@contextmanager
def _places(file: Path) -> Iterator[Path]:
    """A temporary place that becomes `file`, with the file of weights that formats of two files have beside it."""
    with ExitStack() as stack:
        temporary = stack.enter_context(replacement(file))
        if file.suffix == FORMATS["openvino"].suffix:
            # Inside, so that it is in its place before the file that names it.
            stack.enter_context(replacement(file.with_suffix(".bin")))
        yield temporary


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
