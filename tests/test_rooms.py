"""What the import contracts cannot say about the rooms."""

import re
from importlib import import_module
from pathlib import Path

import pytest

import parhelion

SOURCES = Path(parhelion.__file__).parent
SHARED = {
    "recipe": (),
    "saved": ("costs",),
    "scores": ("Outcome", "outcome", "merged", "evaluate"),
    "predict": ("Prediction", "predictions"),
    "plots": ("CURVES", "SHEET", "learning_curves", "draw_sheet"),
}


def modules_with(pattern: str) -> list[str]:
    """The modules of the package whose text matches `pattern`."""
    return sorted(
        str(file.relative_to(SOURCES)) for file in SOURCES.rglob("*.py") if re.search(pattern, file.read_text())
    )


@pytest.mark.parametrize("module", SHARED)
def test_both_tasks_name_what_they_share_alike(module: str) -> None:
    for task in ("classification", "detection"):
        room = import_module(f"parhelion.{task}.{module}")
        assert [name for name in SHARED[module] if not hasattr(room, name)] == []


def test_both_tasks_load_save_and_rescale_alike() -> None:
    for task, kind in (("classification", "Classifier"), ("detection", "Detector")):
        saved = getattr(import_module(f"parhelion.{task}.saved"), kind)
        assert [name for name in ("load", "save", "with_image_px") if not hasattr(saved, name)] == []


def test_one_module_imports_private_parts_of_timm() -> None:
    assert modules_with(r"timm\.models\._") == ["models/timm_features.py"]


def test_networks_alone_know_where_their_operators_are() -> None:
    assert modules_with(r"\.operator\b(?!\")") == ["layers/bottleneck.py", "models/resnet.py"]
