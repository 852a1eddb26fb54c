"""What an exported file says about itself. Needs no torch."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from parhelion.data.transforms import Preprocessing
from parhelion.errors import UserError

FORMAT_VERSION = 1
VERSION_KEY = "parhelion_format"
UNCHECKED = "unchecked"


@dataclass(frozen=True, kw_only=True)
class Facts:
    """All that is needed to use an exported classifier, and where it comes from."""

    model: str
    # What the weights come from; None where they are random.
    weights: str | None
    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    # True: uint8 images (B, H, W, C) of any size go in, and probabilities come out; False: float32 images
    # (B, C, H, W), prepared as `preprocessing` says, and logits.
    prepares: bool
    # Batch, height and width where only these are taken; None where any are.
    fixed: tuple[int, int, int] | None
    # Height and width, in pixels, from which on images are taken.
    smallest: int
    precision: Literal["float32", "int8"] = "float32"
    # Of the recipe of the run; None where there is none.
    recipe_sha256: str | None = None
    versions: Mapping[str, str | None]
    # What was measured of the file in its own runtime (`parity.Parity.as_dict`), or UNCHECKED.
    check: Any = UNCHECKED

    def as_texts(self) -> dict[str, str]:
        """Texts by name, as all formats hold them; each is JSON."""
        return {VERSION_KEY: str(FORMAT_VERSION), **{name: json.dumps(value) for name, value in asdict(self).items()}}

    @classmethod
    def from_texts(cls, texts: Mapping[str, str], label: str) -> "Facts":
        """The facts that `as_texts` wrote. Raises UserError, which names `label`, where there are none."""
        if VERSION_KEY not in texts:
            raise UserError(f"{label} was not written by parhelion export: it does not say what its classes are")
        if texts[VERSION_KEY] != str(FORMAT_VERSION):
            raise UserError(
                f"{label} is of export format {texts[VERSION_KEY]}; this parhelion reads format {FORMAT_VERSION}"
            )
        try:
            values = {name: json.loads(texts[name]) for name in cls.__dataclass_fields__}
            values["class_names"] = tuple(values["class_names"])
            values["preprocessing"] = Preprocessing.from_dict(values["preprocessing"])
            values["fixed"] = values["fixed"] and tuple(values["fixed"])
            return cls(**values)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"what {label} says about itself is damaged ({error})") from error
