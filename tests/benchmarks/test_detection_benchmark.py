"""The benchmark of detectors: what it compares is comparable, and a quick run writes a whole report."""

import json
from dataclasses import replace

import detection
import pytest
import torch
from detection import BACKBONES, FULL, PEER, QUICK, Detector, cases, fixed_scores, main, parameters, scenes
from loop import growth
from torchvision.ops import masks_to_boxes

from parhelion.cli import exit_code
from parhelion.detection.rcnn import mask_rcnn
from parhelion.speed import products, turns

pytestmark = pytest.mark.usefixtures("one_thread")

TRAINING, INFERENCE = cases(FULL)
NAMES = [PEER, *BACKBONES]


@pytest.fixture
def small(monkeypatch):
    """Little to compute: few rounds, and tiny networks in the place of the peer and its twin."""
    monkeypatch.setattr(detection, "QUICK", replace(QUICK, image_px=64))
    monkeypatch.setattr(detection, "BACKBONES", {"resnet50": BACKBONES["resnet50"]})
    monkeypatch.setattr(Detector, "network", tiny)
    monkeypatch.setattr(turns, "WARMUP_CALLS", 1)
    monkeypatch.setattr(products, "LAST_SIDE", 64)


def tiny(_candidate):
    return mask_rcnn("resnet_tiny", 80, image_px=64, widths=(7, 11, 5), choices={"stem": "conv7"})


def test_the_peer_and_its_twin_find_as_much_in_the_same_places():
    peer, twin = (replace(one, image_px=64).build()() for one in INFERENCE.candidates[:2])
    assert sum(len(boxes) for boxes in peer[::3]) > 2
    for place in (0, 3):
        torch.testing.assert_close(peer[place], twin[place])
        assert peer[place + 2].squeeze(1).shape == twin[place + 2].shape


def test_losses_are_finite_and_a_step_hardly_moves_them():
    peer = replace(TRAINING.candidates[0], image_px=64, sampled_boxes=16)
    step = peer.build()
    first, second = step(), step()
    assert len(first) == 5
    assert peer.problem(first) is None
    torch.testing.assert_close(first, second, rtol=1e-5, atol=0)


def test_torchvisions_network_comes_first_and_every_backbone_after_it():
    for case, train in ((TRAINING, True), (INFERENCE, False)):
        assert [candidate.name for candidate in case.candidates] == NAMES
        assert {(one.train, one.image_px, one.batch) for one in case.candidates} == {(train, 384, 2)}
        assert case.candidates[0].backbone is None


def test_the_same_backbone_has_as_many_trainable_parameters_as_torchvisions():
    counts = {one.name: parameters(one) for one in TRAINING.candidates if one.name in (PEER, "resnet50")}
    # torchvision's documentation has 44,401,393 for 91 classes and norms without weights, which have 53,120; each class
    # less is 1024 weights and a bias, four times that for boxes, and 256 weights and a bias for masks.
    assert counts[PEER] == counts["resnet50"] == 44_401_393 + 53_120 - 10 * (5 * 1025 + 257)


def test_proposals_and_samples_are_as_many_as_torchvisions():
    with torch.device("meta"):
        ours, theirs = (one.network() for one in TRAINING.candidates[1::-1])
    for name in ("_pre_nms_top_n", "_post_nms_top_n", "nms_thresh", "fg_bg_sampler"):
        left, right = (getattr(network.rpn, name) for network in (ours, theirs))
        assert vars(left) == vars(right) if name == "fg_bg_sampler" else left == right
    assert vars(ours.roi_heads.fg_bg_sampler) == vars(theirs.roi_heads.fg_bg_sampler)
    assert ours.rpn.anchor_generator.sizes == theirs.rpn.anchor_generator.sizes


def test_scenes_have_the_boxes_of_their_masks_and_no_pixel_twice():
    images, targets = scenes(2, 96)
    for image, target in zip(images, targets, strict=True):
        assert image.shape == (3, 96, 96)
        assert image.min() >= 0
        assert image.max() <= 1
        assert 6 <= len(target["labels"]) <= 8
        assert target["masks"].sum(dim=0).max() == 1
        assert torch.equal(target["boxes"][:, :2], masks_to_boxes(target["masks"])[:, :2])
        assert (target["boxes"][:, 2:] > target["boxes"][:, :2]).all()
    assert fixed_scores(torch.Size((3, 5))) is fixed_scores(torch.Size((3, 5)))


def test_memory_that_grows_is_told_by_updates_after_the_warm_up():
    samples = [(updates, 1e6 if updates <= 500 else 100 + updates / 250, 7.0) for updates in range(100, 2001, 100)]
    seen = growth(samples, FULL.memory)
    assert seen["process_mib_per_1000_updates"] == pytest.approx(4)
    assert seen["readers_mib_per_1000_updates"] == pytest.approx(0)


def test_a_quick_run_writes_every_field_and_the_chart(small, tmp_path, capsys):
    assert main(["--quick", "--out", str(tmp_path / "new")]) == 0
    report = json.loads((tmp_path / "new" / "detection.json").read_text())
    assert (tmp_path / "new" / "detection.png").stat().st_size > 0
    assert {"title", "time", "machine", "versions", "commit", "cases"} <= set(report)
    assert report["versions"]["torchvision"]
    assert [case["name"] for case in report["cases"]] == ["mask-rcnn-training", "mask-rcnn-inference"]
    for case in report["cases"]:
        assert [row["name"] for row in case["candidates"]] == [PEER, "resnet50"]
        assert case["left_out"] == []
        assert case["candidates"][0]["ratio"] == 1
        for row in case["candidates"]:
            assert row["seconds"]["lower_quartile"] <= row["seconds"]["median"] <= row["seconds"]["upper_quartile"]
            assert "peak_memory_mib" in row
    assert "torchvision" in capsys.readouterr().out


def test_another_size_than_torchvisions_is_a_problem(monkeypatch):
    monkeypatch.setattr(detection, "parameters", lambda candidate: 3 if candidate.backbone is None else 2)
    twin = TRAINING.candidates[1]
    assert isinstance(twin, Detector)
    assert "2 parameters, and torchvision's 3" in twin.problem([torch.ones(1)])


@pytest.mark.parametrize("arguments", [["--fast"], ["--out"], ["--quick", "--out", __file__]])
def test_wrong_arguments_end_with_one_sentence(arguments, capsys):
    assert exit_code(lambda: main(arguments)) == 2
    assert capsys.readouterr().err.count("\n") == 1
