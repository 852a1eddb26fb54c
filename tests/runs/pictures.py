"""Runs without pictures, whose drawing takes longer than the training of a tiny network."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from parhelion.classification import plots
from parhelion.detection import task as detection


@contextmanager
def without_pictures() -> Iterator[None]:
    """Draw nothing meanwhile, for either task. The last picture is an empty file: it tells that a run is finished."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(plots, "draw_scores", lambda *_: None)
        monkeypatch.setattr(plots, "draw_sheet", lambda out, *_: (out / plots.SHEET).touch())
        monkeypatch.setattr(detection, "learning_curves", lambda *_: None)
        monkeypatch.setattr(detection, "draw_sheet", lambda _detector, _images, path, _title: path.touch())
        yield
