"""Where a run's images and weights lie, seen from another folder than that in which it began."""

import pytest

from parhelion.runs.places import spelled_here


@pytest.mark.parametrize("weights", ["torchvision:maskrcnn_resnet50_fpn", "timm:resnet50", "hf-hub:a/b"])
def test_names_of_published_weights_are_no_paths(tmp_path, weights):
    saved = {"data": "coco:scenes", "data_dir": None, "init_from": weights, "begun_in": str(tmp_path)}
    assert spelled_here(saved) == {"data": f"coco:{tmp_path}/scenes", "data_dir": None, "init_from": weights}


def test_paths_are_those_of_the_folder_in_which_the_run_began(tmp_path):
    saved = {"data": "photos/", "data_dir": None, "init_from": "../first", "begun_in": str(tmp_path / "here")}
    assert spelled_here(saved) == {
        "data": f"{tmp_path}/here/photos",
        "data_dir": None,
        "init_from": f"{tmp_path}/first",
    }
