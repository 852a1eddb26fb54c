"""Every model under `timm.create_model` too, as `parhelion_<name>`, so that none of timm's own names changes."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from typing import TYPE_CHECKING, Any

from parhelion.lazy import once_imported

if TYPE_CHECKING:
    import torch

# timm lists the models that it is told of here.
__all__: list[str] = []
# Where timm's configuration of a model says that its weights are.
SOURCES = ("url", "file", "hf_hub_id", "state_dict")


def register_with_timm() -> None:
    """Tell timm's registry of every model of the catalogue: now, or as soon as somebody imports timm."""
    once_imported("timm.models", _register)


def _register() -> None:
    from timm.models import register_model

    from parhelion.models.catalog import MODELS

    for name in MODELS:
        register_model(_entrypoint(name))


def _entrypoint(name: str) -> Any:
    from parhelion.models.catalog import TIMM_PREFIX

    def build(
        pretrained: bool = False,
        pretrained_cfg: Any = None,
        pretrained_cfg_overlay: Mapping[str, Any] | None = None,
        cache_dir: Any = None,
        img_size: int | Sequence[int] | None = None,
        drop_path_rate: float = 0.0,
        **arguments: Any,
    ) -> "torch.nn.Module":
        from timm.models import load_pretrained

        from parhelion.models.create import create_model, feature_maps

        # Of the weights as timm saved them; our tensors say all that is needed.
        arguments.pop("pretrained_model_args", None)
        size = tuple(img_size) if isinstance(img_size, Sequence) else img_size
        arguments |= {"image_size": size, "drop_path": drop_path_rate}
        config = {**_entries(pretrained_cfg), **(pretrained_cfg_overlay or {})}
        if pretrained and config.get("file") and config.get("source") != "local-dir":
            return create_model(name, checkpoint_path=config["file"], **arguments)
        features_only, out_indices = arguments.pop("features_only", False), arguments.pop("out_indices", None)
        has_weights = any(config.get(source) for source in SOURCES)
        model: Any = create_model(name, pretrained=pretrained and not has_weights, **arguments)
        model.pretrained_cfg.update({key: value for key, value in config.items() if key != "architecture"})
        if pretrained:
            load_pretrained(model, num_classes=model.num_classes, in_chans=model.in_chans, cache_dir=cache_dir)
        return feature_maps(model, out_indices) if features_only else model

    # timm says with the configuration where to fetch weights from, and with the folder where to keep them.
    build.__name__ = build.__qualname__ = TIMM_PREFIX + name
    build.__doc__ = f"parhelion's {name}, with timm's names for the arguments."
    return build


def _entries(pretrained_cfg: Any) -> dict[str, Any]:
    """What timm hands on about a model, a dictionary or a dataclass, without what is not said."""
    if is_dataclass(pretrained_cfg) and not isinstance(pretrained_cfg, type):
        pretrained_cfg = asdict(pretrained_cfg)
    if not isinstance(pretrained_cfg, Mapping):
        return {}
    found = {key: value for key, value in pretrained_cfg.items() if value is not None}
    # JSON knows no tuples.
    return {key: tuple(value) if isinstance(value, list) else value for key, value in found.items()}
