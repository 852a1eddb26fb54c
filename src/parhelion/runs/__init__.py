"""A training run, whatever its task."""

from typing import TYPE_CHECKING

from parhelion.lazy import lazily

if TYPE_CHECKING:
    from parhelion.runs.request import Request
    from parhelion.runs.trainer import train
else:
    __getattr__, __dir__ = lazily(__name__, {"Request": "parhelion.runs.request", "train": "parhelion.runs.trainer"})

__all__ = ["Request", "train"]
