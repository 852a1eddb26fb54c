"""Where a run's images and first weights lie: as they were spelled when it began, seen from any folder."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from parhelion.data.identity import absolute, path_of, place

from parhelion.errors import UserError
from parhelion.runs.initial import PUBLISHED
from parhelion.files.run_folder import BEGUN_IN


def spelled_here(saved: Mapping[str, Any]) -> dict[str, str | None]:
    """data, data_dir and init_from of the recipe `saved` as they can be used from the present folder.

    They are spelled as they were where that means the same.
    """
    folder = begun_in(saved)
    if folder == Path.cwd():
        return {name: saved.get(name) for name in ("data", "data_dir", "init_from")}
    data, data_dir, init_from = saved["data"], saved.get("data_dir"), saved.get("init_from")
    return {
        "data": absolute(data, folder),
        "data_dir": data_dir and os.path.abspath(folder / Path(data_dir).expanduser()),
        "init_from": init_from and _weights(init_from, folder, os.path.abspath),
    }


def begun_in(saved: Mapping[str, Any]) -> Path:
    """The folder from which the run of the recipe `saved` began; the present one where it does not say."""
    return Path(saved.get(BEGUN_IN) or Path.cwd())


def same_data(saved: Mapping[str, Any], ours: Mapping[str, Any]) -> bool:
    """Whether two recipes read one source, however it is spelled."""
    return _data(saved) == _data(ours)


def same_data_dir(saved: Mapping[str, Any], ours: Mapping[str, Any]) -> bool:
    """Whether two recipes have one data_dir, however it is spelled."""
    first, second = (
        recipe.get("data_dir") and os.path.realpath(begun_in(recipe) / Path(recipe["data_dir"]).expanduser())
        for recipe in (saved, ours)
    )
    return first == second


def same_start(saved: Mapping[str, Any], ours: Mapping[str, Any]) -> bool:
    """Whether two recipes start from the same weights, however they are spelled."""
    first, second = (
        recipe.get("init_from") and _weights(recipe["init_from"], begun_in(recipe), os.path.realpath)
        for recipe in (saved, ours)
    )
    return first == second


def check_images_are_there(folder: Path, spelled: Mapping[str, str | None]) -> None:
    """Raise UserError where the images of the run in `folder` are no longer at the place `spelled`."""
    path = path_of(spelled["data"] or "")
    option, gone = ("--data", path) if path is not None else ("--data-dir", spelled["data_dir"])
    if gone is not None and not Path(gone).expanduser().exists():
        raise UserError(
            f"the images of the run in {folder} are no longer at {gone}; where they were moved, "
            f"parhelion train --resume {folder} {option} PLACE goes on with them"
        )


def _data(recipe: Mapping[str, Any]) -> str | None:
    data = recipe.get("data")
    return data and place(data, begun_in(recipe))


def _weights(spec: str, folder: Path, act: Any) -> str:
    return spec if spec.startswith(PUBLISHED) else act(folder / Path(spec).expanduser())
