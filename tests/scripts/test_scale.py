"""The model of cost of docs/scale.md: limits that are known without it, and the page that it writes."""

import importlib.util
import json
import math
import sys
from pathlib import Path

import pytest

from parhelion.errors import UserError

ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location("scale", ROOT / "scripts" / "scale.py")
scale = importlib.util.module_from_spec(spec)
spec.loader.exec_module(scale)

JOB = scale.Job(params=7_000_000, multiply_adds=10**9, norms=11, updates=30, batch=1000, image_px=96)
HOPS = {1: 0, 2: 4e-6, 8: 3 * 4e-6, 24: 3 * 4e-6 + 2 * 10e-6}
"""Seconds up the trees of so many GPUs."""


def cost(gpus, **changes):
    """Of so many GPUs of 100 images a second, with more input than they want."""
    return scale.cost(JOB, **{"worker_rate": 1e9, "gpus": gpus, "rate": 100.0, **changes})


def test_one_gpu_sends_nothing():
    alone = cost(1)
    assert (alone.norms, alone.gradients) == (0, 0)
    assert alone.seconds == alone.compute == pytest.approx(10)
    assert alone.hours == pytest.approx(30 * 10 / 3600)


def test_gradients_travel_twice_around_each_ring_and_in_buckets_up_and_down_each_tree(monkeypatch):
    monkeypatch.setattr(scale, "OVERLAP", 0.0)
    size = 4 * 7_000_000
    rings = 2 * (7 / 8 * size / 200e9 + 2 / 3 * size / 10e9)
    assert cost(24).gradients == pytest.approx(rings + 2 * 2 * HOPS[24])


def test_gradients_hide_behind_the_backward_pass_of_the_last_part(monkeypatch):
    monkeypatch.setattr(scale, "LINKS", ((1e6, 0.0), (1e6, 0.0)))
    shown = 2 * (1 / 2 * 4 * 7_000_000 / 1e6)
    assert cost(2, parts=5).gradients == pytest.approx(shown - 0.7 * 2 / 3 * 5 / 5)
    monkeypatch.undo()
    assert cost(2).gradients == 0


@pytest.mark.parametrize("gpus", HOPS)
def test_every_part_of_a_batch_sums_every_norm_four_times(gpus):
    assert cost(gpus, parts=3).norms == pytest.approx(4 * 11 * 3 * 2 * HOPS[gpus])
    assert cost(gpus, parts=3, sync_bn=False).norms == 0


def test_what_takes_longest_is_named(monkeypatch):
    starved = cost(4, workers=3, worker_rate=5.0)
    assert starved.limit == "input"
    assert starved.seconds == starved.input == pytest.approx(1000 / 4 / 15)
    fed = cost(4, workers=60, worker_rate=5.0)
    assert (fed.limit, fed.input) == ("compute", pytest.approx(starved.input / 20))
    monkeypatch.setattr(scale, "LINKS", ((200e9, 4e-6), (1e6, 0.0)))
    assert cost(16).limit == "network"


def test_a_rate_follows_from_multiply_adds():
    assert cost(1, rate=0).rate == pytest.approx(0.1 * 312e12 / (3 * 2 * 10**9))


@pytest.mark.parametrize("gpus", [1, 3, 8, 500])
def test_parts_of_a_batch_are_as_few_as_fit(gpus):
    parts, pixels = cost(gpus).parts, 1000 / gpus * 96**2
    assert math.log2(parts).is_integer()
    assert pixels <= parts * scale.PART_PIXELS
    assert parts == 1 or pixels > parts / 2 * scale.PART_PIXELS


def test_a_recipe_is_counted_on_its_network():
    found = scale.job("resnet50_imagenet")
    assert (found.params, found.norms, found.batch) == (25_557_032, 53, 2048)
    assert found.updates == 90 * (1_281_167 // 2048)


def test_the_page_shows_what_the_script_computes():
    page = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
    read = json.loads((ROOT / "docs" / "scale.json").read_text(encoding="utf-8"))["input"]
    rates = read["images_per_second"]
    # One recipe of each kind: every row would count for long.
    few = {name: rates[name] for name in ("halonet_h0_imagenet", "gsa_resnet50_imagenet", "resnet50_imagenet")}
    made = scale.document(page, {**read, "images_per_second": few})
    others = [f"| `{name}` |" for name in rates.keys() - few.keys()]
    assert made.splitlines() == [line for line in page.splitlines() if not line.startswith(tuple(others))]
    with pytest.raises(UserError, match="one table between <!-- parts -->"):
        scale.document(page.replace("<!-- parts -->", ""), {**read, "images_per_second": {}})


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["finetune"], "finetune is for any number of images"),
        (["halonet_h1_imagenet"], "give --worker-images-per-second"),
        (["resnet50_imagenet", "--gpus", "0"], "numbers above 0"),
        (["--gpus", "24"], "go with a recipe"),
    ],
)
def test_what_cannot_be_estimated_is_said(monkeypatch, arguments, said):
    monkeypatch.setattr(sys, "argv", ["scale.py", *arguments])
    with pytest.raises(UserError, match=said):
        scale.main()
