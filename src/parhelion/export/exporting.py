"""A subject written to a file that is proven, or no file: `export`."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from parhelion.data.sources import Source
from parhelion.export.facts import Facts
from parhelion.export.formats import FORMATS
from parhelion.export.graph import program
from parhelion.export.parity import Parity, measured, photos
from parhelion.export.quantization import Quantised, quantise
from parhelion.export.running import module_of
from parhelion.export.subject import Subject
from parhelion.files.atomic import replacement

PACKAGES = ("parhelion", "torch", "timm", "onnx", "onnxscript", "onnxruntime", "openvino")
MAX_DIFFERENCE, MAX_DROP = 1e-4, 0.5
# Pillow and the file may round a pixel differently, see `resize.Prepare`.
MAX_DIFFERENCE_PREPARED = 0.02


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
        """A sentence for each reason not to trust the file; with int8, how much it costs decides."""
        return self.parity.problems if self.int8 is None else self.int8.problems

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
    say(f"tracing {facts.model}")
    graph = program(subject.classifier, facts)
    with _places(file) as temporary:
        say(f"writing {wanted.format}, which takes minutes for large networks")
        module.write(graph, temporary, facts)
        module.tell(temporary, facts)
        if source is None:
            return None
        most = wanted.max_difference
        if most is None:
            most = MAX_DIFFERENCE_PREPARED if wanted.prepares else MAX_DIFFERENCE
        given = photos(source, subject.classifier, wanted.images)
        parity = measured(
            subject.classifier,
            module.opened(temporary),
            given,
            max_difference=most,
            runtime=FORMATS[wanted.format].runtime,
            say=say,
        )
        int8 = None
        if wanted.int8 and not parity.problems:
            int8 = quantise(temporary, facts, source, given, max_drop=wanted.max_drop, say=say)
        report = Report(parity=parity, int8=int8)
        if parity.problems or report.problems:
            raise DisagreementError(Report(parity=parity) if parity.problems else report)
        checked = facts.checked(parity.summary()) if int8 is None else int8.facts(facts)
        module.tell(temporary, checked)
    return report


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
