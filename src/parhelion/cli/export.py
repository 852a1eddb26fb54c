"""`parhelion export RUN_OR_MODEL --format FORMAT --out FILE`."""

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from parhelion.cli.arguments import check_writable, parsed
from parhelion.data.spelling import check_source
from parhelion.errors import UserError, printable
from parhelion.export.formats import FORMATS, check_format, check_suffix

if TYPE_CHECKING:
    from parhelion.data.sources import Source
    from parhelion.export.exporting import Report, Wanted
    from parhelion.export.subject import Subject

DISAGREES = 1


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Write a classifier for other runtimes, after its file was run there and compared with PyTorch on real images.

    Where they disagree, no file is left and the exit code is 1. Nothing of Parhelion is needed to run the file.
    """

    subject: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN_OR_MODEL")]
    """Run folder or .safetensors file that parhelion train wrote, timm:NAME, or (with --untrained) a name of parhelion
    models."""
    format: str
    """onnx (FILE.onnx, run by onnxruntime), openvino (FILE.xml and FILE.bin), or torch-export (FILE.pt2)."""
    out: Path
    """The file to write."""
    data: str | None = None
    """Images to check it on, spelled as for parhelion evaluate; those of the run if not given, or else bundled."""
    data_dir: Path | None = None
    """Where fashion-mnist or a torch/, hfds/, wds/ or tfds/ dataset lies on disk."""
    fixed: bool = False
    """Take images of the size of training alone, for runtimes that need that; otherwise any batch and any size."""
    batch: int | None = None
    """Images at a time of a --fixed file, 1 if not given."""
    image_px: int = 0
    """Height and width of the images that it is for, in pixels; 0: as in training."""
    with_preprocessing: bool = False
    """Put resizing and normalisation into the file: uint8 images of any size go in, probabilities come out."""
    images: int = 500
    """Validation images of the trained size to check it on; of each other size some are taken."""
    max_difference: float | None = None
    """Largest difference of a probability that counts as equal; 0.0001 if not given, 0.01 with --with-preprocessing,
    where a pixel may be rounded otherwise."""
    no_check: bool = False
    """Write the file without running it; it says that it is unchecked."""
    int8: bool = False
    """Compute in 8-bit integers where that costs no accuracy; calibrated on training images. For --format onnx."""
    max_drop: float = 0.5
    """Points of top-1 accuracy, of 100, that --int8 may cost."""
    untrained: bool = False
    """Random weights, to try a runtime or its speed."""
    json: bool = False
    """Print the report as JSON."""


def run(arguments: list[str]) -> int:
    """Export as `arguments` say; return the exit code."""
    chosen = parsed(Arguments, arguments, prog="parhelion export")
    _check(chosen)
    from parhelion.export.exporting import DisagreementError, Wanted, export
    from parhelion.export.subject import default_data, subject, with_image_px

    found = subject(chosen.subject, untrained=chosen.untrained)
    if chosen.image_px:
        found = with_image_px(found, chosen.image_px)
    wanted = Wanted(
        format=chosen.format,
        prepares=chosen.with_preprocessing,
        fixed_batch=(chosen.batch or 1) if chosen.fixed else None,
        max_difference=chosen.max_difference,
        images=chosen.images,
        int8=chosen.int8,
        max_drop=chosen.max_drop,
    )
    data, data_dir = default_data(found) if chosen.data is None else (chosen.data, chosen.data_dir)
    source = None if chosen.no_check else _images(found, data, data_dir, chosen)
    began = time.monotonic()

    def say(text: str) -> None:
        if not chosen.json and not text.startswith(("timing", "warming")):
            print(f"[{time.monotonic() - began:4.0f} s] {text}", flush=True)

    try:
        report = export(found, chosen.out, wanted, source, say)
    except DisagreementError as disagreement:
        _show(chosen, wanted, found, disagreement.report)
        print(printable(f"parhelion: {chosen.out} was not written: {disagreement}"), file=sys.stderr)
        return DISAGREES
    _show(chosen, wanted, found, report)
    return 0


def _check(chosen: Arguments) -> None:
    """Raise UserError for what is wrong without a look at weights or images."""
    known = check_format(chosen.format)
    check_suffix(chosen.format, chosen.out)
    check_writable("--out", chosen.out)
    for name, value, least in (
        ("images", chosen.images, 2),
        ("image_px", chosen.image_px, 0),
        ("batch", chosen.batch, 1),
    ):
        if value is not None and value < least:
            raise UserError(f"{name} is {value}; it must be at least {least}")
    for name, number in (("max_difference", chosen.max_difference), ("max_drop", chosen.max_drop)):
        if number is not None and not number >= 0:
            raise UserError(f"{name} is {number}; it must be at least 0")
    if chosen.batch is not None and not chosen.fixed:
        raise UserError("--batch is for --fixed; without it a file takes any number of images at a time")
    if chosen.int8 and not known.quantised:
        able = " and ".join(name for name, form in FORMATS.items() if form.quantised)
        raise UserError(f"--int8 is for --format {able}, not for {chosen.format}")
    if chosen.int8 and chosen.no_check:
        raise UserError("--int8 measures what it costs, which --no-check would leave out; drop one of them")
    if chosen.data is not None:
        check_source(chosen.data, data_dir=chosen.data_dir)
    elif chosen.data_dir is not None:
        raise UserError("--data-dir is for a source that --data names")


def _images(found: "Subject", data: str, data_dir: Path | None, chosen: Arguments) -> "Source":
    from parhelion.data.sources import open_source
    from parhelion.data.sources.held_out import of_run

    source = open_source(
        data,
        data_dir=data_dir,
        in_chans=found.classifier.preprocessing.in_chans,
        splits=("train", "val") if chosen.int8 else ("val",),
    )
    if found.folder is not None:
        source = of_run(source, found.folder)
    if not chosen.json:
        print(source.line())
    return source


def _show(chosen: Arguments, wanted: "Wanted", found: "Subject", report: "Report | None") -> None:
    size = chosen.out.stat().st_size if chosen.out.is_file() else None
    if chosen.json:
        facts: dict[str, Any] = {
            "model": found.classifier.name,
            "format": wanted.format,
            "file": str(chosen.out),
            "bytes": size,
        }
        facts |= {"checked": report is not None, **(report.as_dict() if report else {})}
        print(printable(json.dumps(facts, indent=2, ensure_ascii=False)))
        return
    if report is not None:
        print(report.text())
    if report is None or not report.problems:
        unchecked = ", unchecked" if report is None else ""
        print(f"{chosen.out} holds {found.classifier.name}{unchecked}")
