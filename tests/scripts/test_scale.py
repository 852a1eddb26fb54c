"""The model of cost that docs/scale.md is computed with: its limits, which are known without it."""

import importlib
import math
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from parhelion.errors import UserError

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(SCRIPTS)
    return importlib.import_module("scale_model")


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(SCRIPTS)
    return importlib.import_module("scale")


@pytest.fixture
def job(model):
    return model.Job(
        name="some",
        params=7_000_000,
        multiply_adds=10**9,
        norms=11,
        units=5,
        images=10_300,
        passes=3,
        batch=1000,
        image_px=96,
    )


def cluster(model, gpus, **changes):
    """So many GPUs of 100 images a second, with more input than they want."""
    return model.Cluster(gpus=gpus, **{"images_per_second": 100.0, "worker_images_per_second": 1e9, **changes})


def bare_link(model, bytes_per_second):
    return model.Link(bytes_per_second=bytes_per_second, hop_seconds=0.0)


def test_one_gpu_sends_nothing(model, job):
    for sharding in ("none", "fsdp"):
        cost = model.update(job, cluster(model, 1), model.Choices(sharding=sharding))
        assert (cost.norms, cost.gradients) == (0, 0)
        assert cost.seconds == cost.compute == pytest.approx(10)


@pytest.mark.parametrize("sharding", ["none", "fsdp"])
def test_twice_the_bandwidth_halves_what_is_not_hidden(model, job, sharding):
    def gradients(scale):
        links = {"inside": bare_link(model, 3e9 * scale), "between": bare_link(model, 5e8 * scale)}
        return model.update(job, cluster(model, 24, overlap=0.0, **links), model.Choices(sharding=sharding)).gradients

    assert gradients(2) == pytest.approx(gradients(1) / 2)


def test_gradients_travel_twice_around_each_ring(model, job):
    links = {"inside": bare_link(model, 3e9), "between": bare_link(model, 5e8)}
    size = 4 * 7_000_000
    expected = 2 * (7 / 8 * size / 3e9 + 2 / 3 * size / 5e8)
    assert model.gradient_seconds(job, cluster(model, 24, **links), model.Choices()) == pytest.approx(expected)


def test_weights_in_parts_travel_three_times_in_every_part_of_a_batch(model, job):
    links = {"inside": bare_link(model, 3e9), "between": bare_link(model, 5e8)}
    whole = model.gradient_seconds(job, cluster(model, 24, **links), model.Choices())
    parts = model.gradient_seconds(job, cluster(model, 24, **links), model.Choices(sharding="fsdp", accumulate=4))
    assert parts == pytest.approx(4 * 3 / 2 * whole)


def test_gradients_hide_behind_the_backward_pass(model, job):
    slow = {"inside": bare_link(model, 1e6)}
    shown, hidden = (model.update(job, cluster(model, 2, overlap=share, **slow), model.Choices()) for share in (0, 0.5))
    assert shown.gradients - hidden.gradients == pytest.approx(0.5 * 2 / 3 * shown.compute)
    assert model.update(job, cluster(model, 2), model.Choices()).gradients == 0


def test_nodes_matter_from_the_second_on(model, job):
    def seconds(gpus, hop_seconds):
        between = model.Link(bytes_per_second=1e9, hop_seconds=hop_seconds)
        return model.few_bytes_seconds(cluster(model, gpus, between=between))

    assert seconds(8, 1e-3) == seconds(8, 1e-6)
    assert seconds(16, 1e-3) - seconds(16, 1e-6) == pytest.approx(2 * (1e-3 - 1e-6))


def test_every_part_of_a_batch_sums_every_norm_four_times(model, job):
    two = cluster(model, 2)
    once = model.few_bytes_seconds(two)
    assert model.update(job, two, model.Choices(accumulate=3)).norms == pytest.approx(4 * 11 * 3 * once)
    assert model.update(job, two, model.Choices(accumulate=3, sync_bn=False)).norms == 0


def test_hungry_gpus_wait_for_their_workers(model, job):
    starved = cluster(model, 4, workers_per_gpu=3, worker_images_per_second=5.0)
    cost = model.update(job, starved, model.Choices())
    assert cost.limit == "input"
    assert cost.seconds == cost.input == pytest.approx(1000 / 4 / 15)
    fed = model.update(job, replace(starved, workers_per_gpu=60), model.Choices())
    assert (fed.limit, fed.input) == ("compute", pytest.approx(cost.input / 20))


def test_a_slow_network_is_named(model, job):
    slow = cluster(model, 16, between=bare_link(model, 1e6))
    assert model.update(job, slow, model.Choices()).limit == "network"


def test_hours_are_whole_updates_of_all_epochs(model, job):
    # 10 updates an epoch, of 10 seconds each.
    assert model.hours(job, cluster(model, 1), model.Choices()) == pytest.approx(3 * 10 * 10 / 3600)


def test_a_rate_follows_from_multiply_adds(model, job):
    assumed = cluster(model, 1, images_per_second=0.0, flops_per_second=6e11)
    assert assumed.rate(job) == pytest.approx(100)


def test_parts_of_a_batch_fit(model, job):
    for gpus in (1, 3, 8, 500):
        parts = model.parts(job, gpus)
        assert math.log2(parts).is_integer()
        assert job.batch / gpus * 96**2 <= parts * model.PART_PIXELS
        assert parts == 1 or job.batch / gpus * 96**2 > parts / 2 * model.PART_PIXELS


def test_a_recipe_is_counted_on_its_network(model):
    found = model.job("resnet50_imagenet")
    assert (found.params, found.norms, found.units) == (25_557_032, 53, 17)
    assert found.updates == 90 * (1_281_167 // 2048)


def test_a_recipe_for_any_images_has_no_hours(model):
    with pytest.raises(UserError, match="finetune is for any number of images"):
        model.job("finetune")


def test_tables_go_between_their_own_markers(tables):
    text = "a\n<!-- x -->\nold\n<!-- /x -->\nb\n<!-- y -->\n<!-- /y -->\n"
    assert tables.between_markers(text, "x", ["new"]) == text.replace("\nold\n", "\n\nnew\n\n")
    with pytest.raises(UserError, match="must hold <!-- z -->"):
        tables.between_markers(text, "z", [])
