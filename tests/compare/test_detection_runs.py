import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from compare.pretend_runs import pretend_detection, pretend_run
from PIL import Image

from parhelion.compare.chart import compare_chart
from parhelion.compare.runs import grouped, notes, read_run, read_runs, table
from parhelion.detection.pyramid import named_backbone
from parhelion.detection.saved import load_detector
from parhelion.errors import UserError
from parhelion.files.weights import read_saved, save_weights
from parhelion.models.count import multiply_adds, parameters

CONV7, HYBRID = ("stem=conv7",), ("stem=conv7", "conv_stages=[1,2]")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds of one recipe, a hybrid, and a detector that segments nothing."""
    folder = tmp_path_factory.mktemp("runs")
    pretend_detection(folder / "r0", seed=0)
    pretend_detection(folder / "r1", seed=1, best=0.45)
    pretend_detection(folder / "halo", "halonet_tiny", choices=CONV7)
    pretend_detection(folder / "hybrid", "halonet_tiny", choices=HYBRID)
    pretend_detection(folder / "boxes", masks=False)
    return folder


def test_a_detector_counts_whole_and_its_backbone_works(runs: Path) -> None:
    run = read_run(runs / "hybrid")
    backbone = named_backbone(
        "halonet_tiny", in_chans=3, image_px=64, drop_path=0.0, choices={"stem": "conv7", "conv_stages": (1, 2)}
    )
    assert run.params == parameters(load_detector(runs / "hybrid").model)
    assert run.multiply_adds == multiply_adds(backbone, (64, 64))


def test_seeds_of_a_detector_are_one_row_with_precision_of_boxes_and_masks(runs: Path) -> None:
    headings, row = table(grouped(read_runs([runs / "r0", runs / "r1"])))
    assert headings[3:8] == ("box AP", "box AP50", "mask AP", "mask AP50", "detector parameters")
    assert headings[8:] == ("backbone multiply-adds", "time")
    assert row[:3] == ("mask_rcnn resnet_tiny", "0, 1", "3")
    last = [json.loads((runs / name / "metrics.jsonl").read_text().splitlines()[-1]) for name in ("r0", "r1")]
    for cell, metric in zip(row[3:7], ("box_ap", "box_ap50", "mask_ap", "mask_ap50"), strict=True):
        low, high = (100 * end(line[metric] for line in last) for end in (min, max))
        assert cell == f"{(low + high) / 2:.2f}% ({low:.2f}% to {high:.2f}%)"


def test_a_detector_without_masks_has_a_gap_beside_those_with_and_no_column_alone(runs: Path) -> None:
    with_masks, boxes = groups = grouped(read_runs([runs / "r0", runs / "boxes"]))
    assert [group.label for group in groups] == ["mask_rcnn resnet_tiny", "faster_rcnn resnet_tiny"]
    assert table(groups)[2][5:7] == ("-", "-")
    assert boxes.as_dict()["mask_ap"] is boxes.as_dict()["best_mask_ap"] is None
    assert with_masks.as_dict().keys() == boxes.as_dict().keys()
    headings, row = table([boxes])
    assert len(headings) == len(row) == 8
    assert not any("mask" in heading for heading in headings)


def test_of_the_choices_those_are_told_that_not_all_have(runs: Path) -> None:
    groups = grouped(read_runs([runs / "halo", runs / "hybrid"]))
    assert [group.label for group in groups] == ["mask_rcnn halonet_tiny", "mask_rcnn halonet_tiny, conv_stages=[1,2]"]


def began(folder: Path, seed: int, *, choices: tuple[str, ...] = CONV7, **backbone: object) -> Path:
    """A detector that began with a classifier of its own seed and choices."""
    start = pretend_run(folder / f"{seed}_backbone", "halonet_tiny", seed=seed, choices=choices, **backbone)
    return pretend_detection(folder / str(seed), "halonet_tiny", seed=seed, choices=choices, init_from=str(start))


def test_seeds_that_began_with_backbones_of_their_own_seeds_are_one_group(tmp_path: Path) -> None:
    made = [began(tmp_path, seed) for seed in (0, 1, 2)]
    (group,) = grouped(read_runs(made))
    assert (group.label, len(group.runs)) == ("mask_rcnn halonet_tiny", 3)
    assert "times leave out the training of the weights that runs began with" in notes([group])
    # Another network has another backbone, which goes without saying.
    groups = grouped(read_runs([*made, began(tmp_path, 7, choices=HYBRID)]))
    assert [group.label for group in groups] == ["mask_rcnn halonet_tiny", "mask_rcnn halonet_tiny, conv_stages=[1,2]"]


def test_runs_that_began_with_weights_of_another_kind_are_apart_and_say_so(tmp_path: Path) -> None:
    first, second, longer = began(tmp_path, 0), began(tmp_path, 1), began(tmp_path, 2, epochs=4)
    fresh = pretend_detection(tmp_path / "fresh", "halonet_tiny", choices=CONV7)
    groups = grouped(read_runs([first, second, longer, fresh]))
    assert [group.label for group in groups] == [
        f"mask_rcnn halonet_tiny, from {first}_backbone and 1 more",
        f"mask_rcnn halonet_tiny, from {longer}_backbone",
        "mask_rcnn halonet_tiny, from scratch",
    ]
    # What can no longer be looked up counts by its name.
    for seed in (0, 1):
        shutil.rmtree(tmp_path / f"{seed}_backbone")
    assert len(grouped(read_runs([first, second]))) == 2


def test_runs_of_two_tasks_are_not_compared(runs: Path, tmp_path: Path) -> None:
    classifier = pretend_run(tmp_path / "run")
    with pytest.raises(UserError) as caught:
        read_runs([runs / "r0", classifier])
    assert str(caught.value) == (
        f"the run {runs / 'r0'} is one of detection and {classifier} one of classification, which have no score in "
        "common; compare those of one task at a time"
    )
    recipe = json.loads((classifier / "recipe.json").read_text())
    (classifier / "recipe.json").write_text(json.dumps({**recipe, "task": "segmentation"}))
    with pytest.raises(UserError, match=r"is one of segmentation; .* takes runs of classification and detection"):
        read_run(classifier)


@pytest.mark.parametrize(
    ("metric", "masks", "whole"),
    [("box_ap50", True, False), ("mask_ap", True, False), ("box_ap", False, False), ("mask_ap", False, True)],
)
def test_a_row_needs_what_the_detector_finds(tmp_path: Path, metric: str, masks: bool, whole: bool) -> None:
    folder = pretend_detection(tmp_path / "run", masks=masks, epochs=1, warmup_epochs=0.5)
    row = json.loads((folder / "metrics.jsonl").read_text())
    row.pop(metric, None)
    (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    if whole:
        assert read_run(folder).finished
        return
    with pytest.raises(UserError, match=rf"^line 1 of .* is no row of a detection: {metric} is no number$"):
        read_run(folder)


@pytest.mark.parametrize("described", [None, {}, {"kind": "yolo"}, {"kind": "mask_rcnn", "backbone": "resnet_tinny"}])
def test_weights_that_describe_no_detector_are_one_sentence(tmp_path: Path, described: object) -> None:
    folder = pretend_detection(tmp_path / "run")
    weights, facts = read_saved(folder / "weights.safetensors")
    save_weights(folder / "weights.safetensors", weights, {**facts, "detector": described})
    with pytest.raises(UserError, match=r"describes no model that can be built") as caught:
        read_run(folder)
    assert "\n" not in str(caught.value)


def test_both_precisions_are_drawn_and_every_group_has_its_mark(runs: Path, tmp_path: Path) -> None:
    compare_chart(grouped(read_runs([runs / name for name in ("r0", "r1", "halo", "hybrid")])), tmp_path / "all.png")
    picture = Image.open(tmp_path / "all.png").convert("RGB")
    upper, lower = (0, 0, picture.width, picture.height // 2), (0, picture.height // 2, *picture.size)
    for half in (upper, lower):
        pixels = np.asarray(picture.crop(half)).reshape(-1, 3)
        for color in ("2f6fb0", "e08a1e", "2e8b57"):
            assert (pixels == list(bytes.fromhex(color))).all(axis=1).sum() > 50


def test_a_detector_without_masks_is_drawn_beside_those_with_and_alone(runs: Path, tmp_path: Path) -> None:
    together = grouped(read_runs([runs / name for name in ("boxes", "r0", "halo")]))
    for groups, texts in ((together, ("box AP", "mask AP")), (together[:1], ("box AP",))):
        compare_chart(groups, tmp_path / "drawn.png")
        compare_chart(groups, tmp_path / "drawn.svg")
        drawing = (tmp_path / "drawn.svg").read_text()
        assert "</svg>" in drawing
        assert all(f"<!-- validation {text}, % -->" in drawing for text in texts)
        assert ("<!-- validation mask AP, % -->" in drawing) == ("mask AP" in texts)
    assert Image.open(tmp_path / "drawn.png").width < 1500
