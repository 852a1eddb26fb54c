"""The formats that a model is exported to, what each needs, and how a file tells which one it is. Needs no torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from parhelion.errors import UserError, nearest


@dataclass(frozen=True, kw_only=True)
class Format:
    """A kind of file."""

    suffix: str
    runtime: str
    # Modules that write the file, and those that run it.
    writes_with: tuple[str, ...]
    runs_with: tuple[str, ...]
    quantised: bool


# fmt: off
FORMATS = {
    "onnx":         Format(suffix=".onnx", runtime="onnxruntime", quantised=True,
                           writes_with=("onnx", "onnxscript"), runs_with=("onnxruntime",)),
    "openvino":     Format(suffix=".xml", runtime="OpenVINO", quantised=False,
                           writes_with=("onnx", "onnxscript", "openvino"), runs_with=("openvino",)),
    "torch-export": Format(suffix=".pt2", runtime="torch.export", quantised=False, writes_with=(), runs_with=()),
}
# fmt: on


def check_format(name: str) -> Format:
    """The format `name`. Raises UserError for an unknown one, and where a package that writes or runs it is missing."""
    if name not in FORMATS:
        offer = nearest(name, FORMATS) or f"; the formats are {', '.join(FORMATS)}"
        raise UserError(f"there is no format {name!r}{offer}")
    found = FORMATS[name]
    check_installed(f"--format {name}", (*found.writes_with, *found.runs_with))
    return found


def check_installed(what: str, modules: Sequence[str]) -> None:
    """Raise UserError where one of `modules`, which `what` needs, is not installed."""
    missing = [module for module in dict.fromkeys(modules) if find_spec(module) is None]
    if missing:
        raise UserError(
            f"{what} needs {' and '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed: "
            "pip install 'parhelion[export]'"
        )


def check_suffix(name: str, file: Path) -> None:
    """Raise UserError where `file` does not end as files of the format `name` do."""
    suffix = FORMATS[name].suffix
    if file.suffix != suffix:
        raise UserError(f"--out {file} should end in {suffix}, as files of the format {name} do")


def format_of(file: Path) -> str | None:
    """The format that the ending of `file` tells; None where it is no exported file."""
    return next((name for name, known in FORMATS.items() if file.suffix.lower() == known.suffix), None)


def check_usable(file: Path) -> None:
    """Raise UserError where the exported file `file` cannot be used as a classifier: its format, or it is not there."""
    if not file.is_file():
        raise UserError(f"there is no file {file}")
    if format_of(file) == "torch-export":
        raise UserError(
            f"{file} is a program of torch.export, which may hold pickles and is opened by torch.export.load alone; "
            "give the run that it comes from, or an .onnx or .xml file"
        )
