"""`parhelion explain RUN_OR_MODEL IMAGE`."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from parhelion.cli.arguments import check_writable, parsed
from parhelion.cli.devices import move_to_fastest_device
from parhelion.errors import UserError, nearest
from parhelion.models.catalog import MODELS
from parhelion.runs.places import FORMS, HUB, TIMM

if TYPE_CHECKING:
    from parhelion.explain import AttentionMaps

PICTURES = (".png", ".pdf", ".svg")
# Larger pages open slowly.
LARGE_MB = 40


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Show what each pixel of an image attends to: a page for a browser that needs no network."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN_OR_MODEL")]
    """Run folder or .safetensors file that parhelion train wrote, a name of parhelion models, a folder that timm saved,
    timm:NAME or hf-hub:OWNER/NAME."""
    image: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE")]
    """Image file."""
    out: Path = Path("attention.html")
    """The page, replaced if it is there."""
    compare: str | None = None
    """Another RUN_OR_MODEL, which the page shows beside the first."""
    png: Path | None = None
    """Also draw one pixel's weights as a sheet for papers; .pdf or .svg as well."""
    pixel: tuple[int, int] | None = None
    """Row and column of that pixel, in the image as the network sees it; the middle if not given."""
    layers: str = "*"
    """Layers to show, as a shell pattern such as 'stages.2.*'; all if not given."""
    rollout: bool = False
    """Also show attention rolled out over the layers, which is not causal."""
    occlusion: bool = False
    """Also show what the most probable class loses when a patch of the image is hidden."""
    weights: Path | None = None
    """Weights for a model that is given by its name, which are random otherwise: a .safetensors file."""
    pretrained: bool = False
    """Download the weights that timm publishes for timm:NAME."""


def run(arguments: list[str]) -> None:
    """Explain as `arguments` say."""
    chosen = parsed(Arguments, arguments, prog="parhelion explain")
    for spec in _specs(chosen):
        _check_model(spec)
    _check_files(chosen)
    # Bring torch, which help and mistakes need not wait for.
    from parhelion.explain import attention
    from parhelion.explain.named import named
    from parhelion.explain.sheet import draw_sheet

    explained = []
    for spec in _specs(chosen):
        # The weights given are those of the first model.
        first_one = spec == chosen.model
        one = named(spec, weights=chosen.weights if first_one else None, pretrained=first_one and chosen.pretrained)
        move_to_fastest_device(one.model)
        maps = attention(
            one.model,
            chosen.image,
            class_names=one.class_names,
            title=one.title,
            note=one.note,
            layers=chosen.layers,
            rollout=chosen.rollout,
            occlusion=chosen.occlusion,
        )
        explained.append(maps)
    first, *others = explained
    if chosen.png is not None:
        draw_sheet(first, chosen.png, pixel=chosen.pixel)
    first.save(chosen.out, *others)
    _report(chosen, explained)


def _specs(chosen: Arguments) -> list[str]:
    return [chosen.model] if chosen.compare is None else [chosen.model, chosen.compare]


def _check_model(spec: str) -> None:
    """Raise UserError where `spec` is neither a known name nor a path at which there is something."""
    if not spec or (spec not in MODELS and not spec.startswith((HUB, TIMM)) and not Path(spec).exists()):
        offer = nearest(spec, MODELS) or f"; give a name of parhelion models, {FORMS}"
        raise UserError(f"there is no model, run folder or file {spec!r}{offer}")


def _check_files(chosen: Arguments) -> None:
    if not chosen.image.is_file():
        what = "is a folder; name an image file" if chosen.image.is_dir() else "does not exist"
        raise UserError(f"the image {chosen.image} {what}")
    if chosen.out.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--out {chosen.out} must end in .html")
    if chosen.png is not None and chosen.png.suffix.lower() not in PICTURES:
        raise UserError(f"--png {chosen.png} must end in {', '.join(PICTURES)}")
    if chosen.pixel is not None and chosen.png is None:
        raise UserError("--pixel is for the sheet of --png; on the page, click a pixel")
    for option, file in (("--out", chosen.out), ("--png", chosen.png)):
        check_writable(option, file)
        if file is not None and file.resolve() == chosen.image.resolve():
            raise UserError(f"{option} {file} would replace the image; name another file")


def _report(chosen: Arguments, explained: "list[AttentionMaps]") -> None:
    for maps in explained:
        best = f"; {maps.top[0][0]} {100 * maps.top[0][1]:.1f}%" if maps.top else ""
        print(f"{maps.title}: {len(maps.layers)} attention layers{best}")
        if maps.note:
            print(maps.note)
    worst = max(maps.exactness for maps in explained)
    print(
        f"weights times values give what the kernels returned; the largest error is {worst:.2f} of the rounding allowed"
    )
    size_mb = chosen.out.stat().st_size / 1e6
    advice = "; --layers shows fewer layers" if size_mb > LARGE_MB else ""
    print(f"the page is {chosen.out} ({size_mb:.1f} MB){advice}")
    if chosen.png is not None:
        print(f"the sheet is {chosen.png}")
