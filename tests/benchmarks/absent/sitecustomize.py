"""Hides packages, as a machine with a GPU may lack them; Python reads this where this folder is on its path.

Nothing of ours is installed there either, and nothing that `benchmarks/gpu.py` does may need these.
"""

import sys
from collections.abc import Iterator
from typing import Any

ABSENT = {
    "accelerate",
    "beartype",
    "datasets",
    "faster_coco_eval",
    "halonet_pytorch",
    "matplotlib",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "openvino",
    "pycocotools",
    "pytest_timeout",
    "rich",
    "supervision",
    "tensorboard",
    "tyro",
    "wandb",
}


class Hiding:
    """A finder of modules and of what is installed that does not find what is `ABSENT`."""

    def __init__(self, finder: Any) -> None:
        self.finder = finder

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """What the finder finds, None for what is absent."""
        return None if name.partition(".")[0] in ABSENT else self.finder.find_spec(name, path, target)

    def find_distributions(self, *arguments: Any, **options: Any) -> Iterator[Any]:
        """What the finder says is installed, without what is absent and without this package."""
        find = getattr(self.finder, "find_distributions", None)
        for found in find(*arguments, **options) if find else ():
            name = (found.metadata["Name"] or "").replace("-", "_").lower()
            if name not in ABSENT | {"parhelion"}:
                yield found

    def __getattr__(self, name: str) -> Any:
        return getattr(self.finder, name)


sys.meta_path[:] = [Hiding(finder) for finder in sys.meta_path]
