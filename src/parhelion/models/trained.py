"""What a weights file that parhelion wrote says of its model: name, arguments, preprocessing and class names."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parhelion.data.transforms import Preprocessing
from parhelion.errors import UserError
from parhelion.files.weights import PICKLE_SUFFIXES, read_facts, read_header, weights_file

DETECTOR = "detector"


@dataclass(frozen=True, kw_only=True)
class Trained:
    """The header of a weights file."""

    # As the user named it.
    label: str
    model: str
    # What `create_model` was given besides the name.
    arguments: Mapping[str, Any]
    preprocessing: Preprocessing | None = None
    class_names: tuple[str, ...] | None = None

    def merged(self, name: str, asked: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments to build the model `name` with: the file's, and what is `asked` besides.

        defaults: of the model `name`, for what neither the file nor the user says.
        Raises UserError where the file is of another model, or what is asked contradicts it.
        """
        if name != self.model:
            raise UserError(
                f"the weights in {self.label} are of another architecture: they are of {self.model}, not of {name}; "
                f"give the name {self.model!r}"
            )
        theirs = {**defaults, **self.arguments}
        for key, value in asked.items():
            if key in theirs and _comparable(key, value) != _comparable(key, theirs[key]):
                raise UserError(
                    f"the weights in {self.label} were trained with {key}={theirs[key]!r}, but {key}={value!r} was "
                    f"asked for; leave {key} out"
                )
        return {**self.arguments, **asked}

    def config(self) -> dict[str, Any]:
        """The entries of timm's `pretrained_cfg` that the file tells."""
        return timm_config(self.preprocessing, self.class_names)


def read_trained(path: str | Path) -> Trained | None:
    """What the weights in the run folder or file `path` say; None for a file of plain tensors.

    Raises UserError where there is no whole file, it is a pickle or a detector, or its header is damaged.
    """
    file = weights_file(Path(path))
    pickled = file.suffix.lower() in PICKLE_SUFFIXES
    facts = read_facts(file) if pickled or "parhelion_format" in read_header(file) else {}
    if "detector" in facts:
        raise UserError(f"the weights in {path} are of a detector; parhelion.detection.saved.load_detector loads it")
    if "model" not in facts or "model_arguments" not in facts:
        return None
    preprocessing, names = facts.get("preprocessing"), facts.get("class_names")
    return Trained(
        label=str(path),
        model=facts["model"],
        arguments=facts["model_arguments"],
        preprocessing=Preprocessing.from_dict(preprocessing) if preprocessing is not None else None,
        class_names=tuple(names) if names is not None else None,
    )


def timm_config(preprocessing: Preprocessing | None, class_names: Sequence[str] | None) -> dict[str, Any]:
    """The entries of timm's `pretrained_cfg` for these; `timm.data.resolve_model_data_config` reads them."""
    told: dict[str, Any] = {} if class_names is None else {"label_names": tuple(class_names)}
    if preprocessing is not None:
        told |= {
            "input_size": (preprocessing.in_chans, preprocessing.image_px, preprocessing.image_px),
            "mean": preprocessing.mean,
            "std": preprocessing.std,
            "crop_pct": preprocessing.crop_ratio,
            "crop_mode": "center",
            "interpolation": preprocessing.interpolation,
        }
    return told


def _comparable(key: str, value: Any) -> Any:
    """`value` as it can be compared with one that went through JSON."""
    if key == "image_size" and isinstance(value, int):
        return (value, value)
    return tuple(value) if isinstance(value, list) else value
