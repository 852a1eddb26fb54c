"""`parhelion benchmark MODEL --against timm:NAME`."""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from parhelion.cli.arguments import check_folder, make_folder, parsed
from parhelion.errors import UserError, printable

if TYPE_CHECKING:
    from parhelion.speed.networks import Network

REPORT = "benchmark.json"


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Time a model against others in one run: numbers are checked first, then all take turns."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A name of parhelion models, timm:NAME, or accelerated:NAME (timm's model through parhelion.accelerate)."""
    against: Annotated[tuple[str, ...], tyro.conf.arg(metavar="MODEL...")] = ()
    """Models to compare it with, named alike."""
    image_px: int | None = None
    """Side of the square images; what MODEL is made for, if not given."""
    batch: int = 8
    """Images at a time."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """bfloat16: weights and images for inference, autocast for training."""
    compile: bool = False
    """Time each model through torch.compile too."""
    train: bool = False
    """Time a training step (forward, loss, backward, SGD) instead of inference."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where to compute."""
    threads: int | None = None
    """Threads of the CPU; PyTorch's own choice if not given."""
    rounds: int | None = None
    """How often each model takes its turn. If not given: 10, or fewer where those would take over five minutes."""
    json: bool = False
    """Print the report as JSON."""
    out: Path | None = None
    """Folder for the report as benchmark.json and a chart as benchmark.png."""


def run(arguments: list[str]) -> None:
    """Measure as `arguments` say."""
    chosen = parsed(Arguments, arguments, prog="parhelion benchmark")
    _check(chosen)
    # Bring torch, which a help text need not wait for.
    import torch

    from parhelion.speed.report import narrator, save_report, speed_case, speed_report
    from parhelion.speed.timing import Candidate, Run, ready

    candidates = _candidates(chosen)
    if chosen.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: PyTorch finds no GPU here; use --device cpu")
    threads = torch.get_num_threads()
    torch.set_num_threads(chosen.threads or threads)
    say = narrator(quiet=chosen.json)
    try:
        runs: dict[Candidate, Run] = {}
        for candidate in candidates:
            say(f"checking {candidate.name}")
            runs[candidate] = ready(candidate)
        first = candidates[0]
        doing = "training step" if chosen.train else "inference"
        title = f"{first.model}, {doing}, {first.image_px} px, batch {first.batch}, {first.precision}"
        case = speed_case(first.model, title, runs, rounds=chosen.rounds, memory=True, say=say)
        report = speed_report([case], title, device=chosen.device)
    finally:
        say("")
        torch.set_num_threads(threads)
    if chosen.json:
        print(printable(json.dumps(report, indent=2, ensure_ascii=False)))
    else:
        _show(report)
    if chosen.out is not None:
        make_folder("--out", chosen.out)
        save_report(report, chosen.out / REPORT)


def _check(chosen: Arguments) -> None:
    for option, value in (("--batch", chosen.batch), ("--rounds", chosen.rounds), ("--threads", chosen.threads)):
        if value is not None and value < 1:
            raise UserError(f"{option} is {value}; it must be at least 1")
    if chosen.image_px is not None and chosen.image_px < 1:
        raise UserError(f"--image-px is {chosen.image_px}; it must be at least 1")
    if chosen.out is not None:
        check_folder("--out", chosen.out)


def _candidates(chosen: Arguments) -> "list[Network]":
    from parhelion.recipes.table import recipe_for_model
    from parhelion.speed.networks import Network, check_name, own_image_px

    models = list(dict.fromkeys((chosen.model, *chosen.against)))
    for model in models:
        if mistaken := recipe_for_model(model):
            raise UserError(mistaken)
        check_name(model)
    image_px = chosen.image_px or own_image_px(chosen.model)
    precision: Literal["float32", "bfloat16", "autocast"] = chosen.dtype
    if chosen.train and chosen.dtype == "bfloat16":
        precision = "autocast"
    candidates = [
        Network(
            name=f"{model}, compiled" if compiled else model,
            model=model,
            image_px=image_px,
            batch=chosen.batch,
            precision=precision,
            train=chosen.train,
            compiled=compiled,
            device=chosen.device,
        )
        for model in models
        for compiled in ((False, True) if chosen.compile else (False,))
    ]
    for candidate in candidates:
        reason = candidate.why_not()
        if reason is not None:
            raise UserError(f"{candidate.name} cannot be measured: {reason}")
    return candidates


def _show(report: Mapping[str, Any]) -> None:
    from parhelion.speed.report import HEADINGS, cells
    from parhelion.speed.timing import emulation_notes, footnote

    (case,) = report["cases"]
    rows = [cells(row) for row in case["candidates"]]
    if not sys.stdout.isatty():
        for row in (HEADINGS, *rows):
            print(*row, sep="\t")
        for note in emulation_notes(report):
            print(note, file=sys.stderr)
        return
    from rich.console import Console
    from rich.table import Table

    products = ", ".join(f"{rate:.0f} GFLOP/s in {dtype}" for dtype, rate in case["matrix_product_gflops"].items())
    note = (
        f"ratio: time over that of {case['candidates'][0]['name']}; a product of large matrices: {products}\n"
        f"{footnote(report)}"
    )
    table = Table(title=report["title"], caption=note, caption_justify="left", box=None, pad_edge=False)
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading == HEADINGS[0] else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    Console().print(table)
