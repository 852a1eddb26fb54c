"""What is exported: a run, a weights file or a model by name, as a `Subject`."""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from parhelion.classification.saved import Classifier
from parhelion.data.samples import numbered
from parhelion.data.sources import open_source
from parhelion.data.spelling import BUNDLED, path_of
from parhelion.data.transforms import INTERPOLATIONS, Preprocessing, eval_transform
from parhelion.detection.recipe import DetectionRecipe
from parhelion.errors import UserError, first_line, nearest
from parhelion.files.run_folder import RECIPE, saved_recipe
from parhelion.files.weights import is_of_task
from parhelion.models import create_model
from parhelion.models.accelerate import accelerate
from parhelion.models.catalog import list_models
from parhelion.runs.places import TIMM, spelled_here
from parhelion.speed.networks import check_name

# Of timm's models, which do not say: twice what their last maps are reduced by would be a map of 2x2 pixels.
TIMM_SMALLEST = 64
# Random networks: what norms that start at zero get, so that every branch takes part. With more, attention without a
# scale would let activations grow until rounding decides what comes out.
GAIN = 0.05
# Images that their batch statistics come from, and the most pixels of a side.
SETTLING, SETTLING_PX = 8, 128
SEED = 20103019


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A classifier, and what is known of it besides."""

    classifier: Classifier
    # What its weights come from; None where they are random.
    weights: str | None
    recipe_sha256: str | None = None
    # The images of its run, as --data names them; None where it has none, or they are not there any more.
    data: str | None = None
    data_dir: Path | None = None
    # The folder of its run, or the one that its file lies in.
    folder: Path | None = None

    @property
    def smallest(self) -> int:
        """Height and width in pixels from which on images of any size can be served."""
        # torch.export takes a last map of one pixel for a case of its own.
        min_px: Any = getattr(self.classifier.model, "min_px", TIMM_SMALLEST - 1)
        return min_px + 1


def subject(spec: str, *, untrained: bool = False) -> Subject:
    """The classifier that `spec` names: a run folder, a .safetensors file, `timm:NAME`, or a model of ours.

    timm's models get its weights, which are fetched where they are not there, and go through `accelerate`.

    untrained: Random weights, the same each time; the only ones for models of ours. Not for runs and files.

    Raises UserError.
    """
    name = spec.removeprefix(TIMM)
    if spec.startswith(TIMM):
        check_name(spec)
        model = _random(spec) if untrained else _trained(name)
        classifier = _of_timm(accelerate(model, report=None), spec)
        return Subject(
            classifier=_settled(classifier) if untrained else classifier, weights=None if untrained else spec
        )
    if spec in list_models() and not Path(spec).exists():
        if not untrained:
            raise UserError(
                f"there are no trained weights of {spec}: give a run, or add --untrained to try a runtime with random "
                "weights"
            )
        return Subject(classifier=_ours(spec), weights=None)
    path = Path(spec)
    if not path.exists():
        forms = f"; give a run folder, a .safetensors file, {TIMM}NAME or a model's name"
        offer = (nearest(spec, list_models()) if path.name == spec else "") or forms
        raise UserError(f"there is no run, file or model {spec!r}{offer}")
    if untrained:
        raise UserError(f"{spec} has trained weights; leave --untrained out")
    if is_of_task(path, DetectionRecipe.task):
        raise UserError(
            f"{spec} is a detector, and only classifiers can be exported: what a detector finds depends on the image, "
            "which graphs for other runtimes do not hold"
        )
    return _of_run(path)


def with_image_px(found: Subject, image_px: int) -> Subject:
    """The same subject for images of `image_px` pixels. Raises UserError where they are too small."""
    least: int = found.smallest
    if image_px < least:
        raise UserError(f"image_px is {image_px}; exports of {found.classifier.name} take images of {least} or more")
    return replace(found, classifier=found.classifier.with_image_px(image_px))


def _of_run(path: Path) -> Subject:
    classifier = Classifier.load(path)
    if not path.is_dir():
        return Subject(classifier=classifier, weights=path.name, folder=path.parent)
    if not (path / RECIPE).is_file():
        return Subject(classifier=classifier, weights=path.name, folder=path)
    places = spelled_here(saved_recipe(path))
    data, data_dir = places["data"], places["data_dir"]
    there = data is not None and (path_of(data) is None or Path(data).is_dir())
    return Subject(
        classifier=classifier,
        weights=path.name,
        recipe_sha256=hashlib.sha256((path / RECIPE).read_bytes()).hexdigest(),
        data=data if there else None,
        data_dir=Path(data_dir) if there and data_dir else None,
        folder=path,
    )


def _ours(name: str) -> Classifier:
    model = _random(name)
    return _settled(_classifier(model, name, model.pretrained_cfg, numbered(model.num_classes)))


def _of_timm(model: Any, spec: str) -> Classifier:
    config = timm.data.resolve_model_data_config(model)
    names = model.pretrained_cfg.get("label_names") or numbered(model.num_classes)
    return _classifier(model, spec, {**config, "crop_pct": config.get("crop_pct", 1.0)}, tuple(names))


def _classifier(model: Any, name: str, config: Any, names: tuple[str, ...]) -> Classifier:
    channels, px = config["input_size"][0], config["input_size"][-1]
    interpolation = config["interpolation"]
    preprocessing = Preprocessing(
        image_px=px,
        in_chans=channels,
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        crop_ratio=config["crop_pct"],
        interpolation=interpolation if interpolation in INTERPOLATIONS else "bicubic",
    )
    return Classifier(
        model=model.eval().to(memory_format=torch.channels_last),
        name=name,
        arguments={},
        class_names=names,
        preprocessing=preprocessing,
        epoch=0,
        metrics={},
    )


def _random(spec: str) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        name = spec.removeprefix(TIMM)
        model = timm.create_model(name) if spec.startswith(TIMM) else create_model(name)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and not module.weight.any():
            nn.init.constant_(module.weight, GAIN)
    return model.eval()


def _settled(classifier: Classifier) -> Classifier:
    """`classifier`, of random weights, with the batch statistics of some of the bundled images."""
    preprocessing = classifier.preprocessing
    transform = eval_transform(replace(preprocessing, image_px=min(preprocessing.image_px, SETTLING_PX)))
    samples: Any = open_source(BUNDLED, in_chans=preprocessing.in_chans, splits=("val",)).images("val")
    images = torch.stack([transform(samples[row][0]) for row in range(SETTLING)])
    norms = [module for module in classifier.model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        classifier.model.train()(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    classifier.model.eval()
    return classifier


def _trained(name: str) -> Any:
    try:
        return timm.create_model(name, pretrained=True).eval()
    # The hub's client, timm and safetensors have no common ancestor for what can go wrong.
    except Exception as error:
        reason = first_line(error).rstrip(".")
        raise UserError(
            f"timm's weights of {name} cannot be fetched ({reason}); --untrained exports random ones"
        ) from error


def default_data(found: Subject) -> tuple[str, Path | None]:
    """The images that a file is checked on where nobody says: those of the run, or else the bundled ones."""
    return (found.data, found.data_dir) if found.data is not None else (BUNDLED, None)
