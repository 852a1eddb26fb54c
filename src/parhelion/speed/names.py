"""How a network to be timed is named. Needs no torch."""

from parhelion.errors import UserError
from parhelion.models.catalog import list_models
from parhelion.runs.places import TIMM

ACCELERATED = "accelerated:"


def split(model: str) -> tuple[str, str]:
    """`timm:resnet50` as (`timm:`, `resnet50`), a name of ours with an empty first part.

    Raises:
        UserError: a prefix that is neither `timm:` nor `accelerated:`.
    """
    for prefix in (TIMM, ACCELERATED):
        if model.startswith(prefix):
            return prefix, model.removeprefix(prefix)
    if ":" in model:
        raise UserError(
            f"{model!r} must be one of {len(list_models())} names of parhelion models, timm:NAME, or accelerated:NAME"
        )
    return "", model
