"""Every model under `timm.create_model` too, as `parhelion_<name>`, so that none of timm's own names changes."""

from typing import Any

from timm.models import register_model
from torch import nn

from parhelion.models.catalog import MODELS, create_model

__all__: list[str] = []
PREFIX = "parhelion_"


def register() -> None:
    """Tell timm's registry of every model of the catalogue."""
    for name in MODELS:
        register_model(_entrypoint(name))


def _entrypoint(name: str) -> Any:
    def build(
        pretrained: bool = False,
        pretrained_cfg: Any = None,
        pretrained_cfg_overlay: Any = None,
        cache_dir: Any = None,
        img_size: int | tuple[int, int] | None = None,
        drop_path_rate: float = 0.0,
        **arguments: Any,
    ) -> nn.Module:
        return create_model(name, pretrained=pretrained, image_size=img_size, drop_path=drop_path_rate, **arguments)

    # timm says with the configurations and the folder where to fetch weights from; there are none to fetch.
    build.__name__ = build.__qualname__ = PREFIX + name
    build.__doc__ = f"parhelion's {name}, with timm's names for the arguments."
    return build
