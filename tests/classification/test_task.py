import json
import math

import pytest
import torch
from runs.colour_folders import TRAIN, VAL, colour_folders, colour_shards, quick_recipe, truncate
from safetensors.torch import load_file
from torch import nn

from parhelion.classification import scores
from parhelion.classification import task as classification
from parhelion.classification.saved import Classifier
from parhelion.data.sources import Source
from parhelion.errors import UserError
from parhelion.runs.request import Request
from parhelion.runs.trainer import train

TIMES = {"seconds", "data_wait_seconds", "images_per_second"}
FILES = {
    "recipe.json",
    "environment.json",
    "metrics.jsonl",
    "losses.jsonl",
    "weights.safetensors",
    "best.safetensors",
    "checkpoints",
    "learning_curves.png",
    "confusion_matrix.png",
    "predictions.png",
}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return colour_folders(tmp_path_factory.mktemp("colours"))


def rows(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def timeless(out):
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows(out)]


def test_a_run_leaves_its_record_and_returns_what_a_table_needs(tmp_path, data):
    result = train(quick_recipe(epochs=3), Request(data=str(data), out=tmp_path / "run", quiet=True))
    assert {file.name for file in (tmp_path / "run").iterdir()} == FILES
    last = rows(tmp_path / "run")[-1]
    assert last["epoch"] == result["epochs"] == 3
    assert (last["val_loss"], last["top1"], last["top5"]) == (result["loss"], result["top1"], result["top5"])
    assert result["params"] > 1e5
    assert result["multiply_adds"] > 1e6
    assert result["seconds"] > 0
    assert (result["train_images"], result["val_images"]) == (3 * TRAIN, 3 * VAL)
    recipe = json.loads((tmp_path / "run" / "recipe.json").read_text())
    assert (recipe["model"], recipe["image_px"], recipe["data"]) == ("resnet_tiny", 16, str(data))
    for picture in FILES:
        if picture.endswith(".png"):
            assert (tmp_path / "run" / picture).read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("no_pictures")
def test_one_seed_gives_identical_runs_and_another_does_not(tmp_path, data):
    noisy = quick_recipe(dropout=0.25, drop_path=0.25, crop="resized", erase=0.5, randaugment=3)
    train(noisy, Request(data=str(data), out=tmp_path / "a", quiet=True))
    torch.rand(13)
    train(noisy, Request(data=str(data), out=tmp_path / "b", quiet=True))
    train(quick_recipe(seed=8), Request(data=str(data), out=tmp_path / "c", quiet=True))
    assert timeless(tmp_path / "a") == timeless(tmp_path / "b") != timeless(tmp_path / "c")
    ours, again = (load_file(tmp_path / run / "weights.safetensors") for run in "ab")
    assert all(torch.equal(ours[name], again[name]) for name in ours)


def test_the_weights_are_those_of_the_last_complete_epoch(tmp_path, data, monkeypatch):
    out, evaluate, calls = tmp_path / "run", scores.outcome, []

    def interrupted(model, loader):
        calls.append(model)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return evaluate(model, loader)

    monkeypatch.setattr(scores, "outcome", interrupted)
    with pytest.raises(KeyboardInterrupt, match=r"parhelion train --resume .* goes on"):
        train(quick_recipe(epochs=5), Request(data=str(data), out=out, quiet=True))
    saved = Classifier.load(out)
    assert saved.epoch == 2
    assert saved.metrics["top1"] == rows(out)[-1]["top1"]
    assert len(rows(out)) == 2


@pytest.mark.usefixtures("no_pictures")
def test_a_loss_that_is_not_finite_keeps_the_weights_of_the_epoch_before(tmp_path, data, monkeypatch):
    out, steps, whole = tmp_path / "run", [], classification.cross_entropy

    def spoiled(*setting):
        def losses(model, batch):
            steps.append(batch)
            (loss,) = whole(*setting)(model, batch).values()
            return {"cross_entropy": loss * math.nan if len(steps) == 5 else loss}

        return losses

    monkeypatch.setattr(classification, "cross_entropy", spoiled)
    with pytest.raises(UserError, match="became nan at update 2 of epoch 2; training stopped"):
        train(quick_recipe(epochs=4), Request(data=str(data), out=out, quiet=True))
    saved = Classifier.load(out)
    assert saved.epoch == 1
    assert all(tensor.isfinite().all() for tensor in saved.model.state_dict().values())


def test_a_start_that_fails_leaves_no_folder(tmp_path, data):
    wrong = [quick_recipe(epochs=0), quick_recipe(model="resnet_tiniest"), quick_recipe(image_px=7)]
    for recipe in wrong:
        with pytest.raises(UserError):
            train(recipe, Request(data=str(data), out=tmp_path / "run", quiet=True))
    with pytest.raises(UserError):
        train(quick_recipe(), Request(data=str(data / "nowhere"), out=tmp_path / "run", quiet=True))
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("no_pictures")
def test_a_stream_with_more_validation_images_than_it_says_is_told_once(tmp_path, data, capsys):
    shards = colour_shards(data, tmp_path / "shards", train=(12,), val=(3,))
    info = json.loads((shards / "_info.json").read_text())
    info["splits"]["val"]["shard_lengths"] = [1]
    (shards / "_info.json").write_text(json.dumps(info))
    train(quick_recipe(), Request(data="wds/colours", data_dir=shards, out=tmp_path / "run"))
    assert capsys.readouterr().out.count("wds/colours has 3 validation images, not 1 as it says") == 1


def test_a_source_without_images_is_refused_before_training():
    for train_images, val_images, kind in (([], [0], "training"), ([0], [], "validation")):
        with pytest.raises(UserError, match=f"mine has no {kind} image"):
            classification.check_some_images(Source("mine", train_images, val_images, ("a",)))


@pytest.mark.usefixtures("no_pictures")
def test_a_bad_image_is_refused_or_counted_as_the_recipe_says(tmp_path, capsys):
    data = colour_folders(tmp_path / "data")
    truncate(data / "train" / "red" / "4.jpg")
    truncate(data / "val" / "blue" / "2.jpg")
    with pytest.raises(UserError, match=r"red/4\.jpg|blue/2\.jpg"):
        train(quick_recipe(batch=40), Request(data=str(data), out=tmp_path / "refused", quiet=True))
    train(quick_recipe(batch=40, on_bad_image="skip"), Request(data=str(data), out=tmp_path / "skipped"))
    assert [row["skipped_images"] for row in rows(tmp_path / "skipped")] == [2, 2]
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("skipped: ")]
    assert len(said) == 2
    assert "red/4.jpg" in said[0]
    assert "blue/2.jpg" in said[1]


@pytest.mark.usefixtures("no_pictures")
def test_half_precision_trains_and_is_evaluated_in_float32(tmp_path, data):
    result = train(quick_recipe(precision="bf16"), Request(data=str(data), out=tmp_path / "run", quiet=True))
    assert math.isfinite(result["loss"])
    train(quick_recipe(), Request(data=str(data), out=tmp_path / "again", quiet=True))
    assert timeless(tmp_path / "run") != timeless(tmp_path / "again")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU can train in fp16")
def test_fp16_without_a_gpu_is_one_sentence(tmp_path, data):
    with pytest.raises(UserError, match="precision is fp16, which is not supported on cpu"):
        train(quick_recipe(precision="fp16"), Request(data=str(data), out=tmp_path / "run", quiet=True))


@pytest.mark.usefixtures("no_pictures")
def test_grey_images_train_a_network_of_one_channel(tmp_path, data):
    train(quick_recipe(in_chans=1, epochs=1), Request(data=str(data), out=tmp_path / "run", quiet=True))
    assert Classifier.load(tmp_path / "run").preprocessing.in_chans == 1


@pytest.mark.parametrize("count", [1, 4, 5])
def test_mixing_leaves_no_image_out_and_targets_are_shares(count):
    seen = []

    def model(images):
        seen.append(images)
        return torch.zeros(len(images), 3)

    losses = classification.cross_entropy(quick_recipe(mixup=0.5, label_smoothing=0.25), 3)
    batch = {"image": torch.rand(count, 3, 5, 7), "target": torch.arange(count) % 3}
    given = batch["image"].clone()
    # Equal logits cost log(3) whatever the target, if its shares add up to 1.
    assert losses(model, batch)["cross_entropy"].item() == pytest.approx(math.log(3))
    assert len(seen[0]) == count
    assert torch.equal(seen[0][-1], given[-1]) == (count % 2 == 1)


@pytest.mark.parametrize("mixed", [{}, {"mixup": 0.5}])
def test_weights_count_images_by_class_and_leave_smoothed_targets_as_they_are(mixed):
    weights, logits = torch.tensor([0.5, 0.75, 4.0]), torch.randn(5, 3)
    targets, smoothing = torch.tensor([0, 2, 1, 0, 0]), 0.25
    recipe, told = quick_recipe(label_smoothing=smoothing, **mixed), []

    def model(images):
        return logits

    batch = {"image": torch.rand(5, 3, 5, 7), "target": targets}
    with pytest.MonkeyPatch.context() as monkeypatch:
        mix = classification._mixed
        monkeypatch.setattr(classification, "_mixed", lambda *given: told.append(mix(*given)) or told[-1])
        loss = classification.cross_entropy(recipe, 3, weights)(model, batch)["cross_entropy"].item()
    # From smoothed shares of the classes back to the shares themselves.
    smooth = told[0][1] if mixed else nn.functional.one_hot(targets, 3) * (1 - smoothing) + smoothing / 3
    shares = (smooth - smoothing / 3) / (1 - smoothing)
    assert shares.sum(1).tolist() == pytest.approx([1] * 5)
    each = -(smooth * logits.log_softmax(1)).sum(1)
    assert loss == pytest.approx(((shares @ weights) * each).mean().item(), rel=1e-5)


def test_equal_weights_change_nothing():
    logits = torch.randn(4, 3)
    batch = {"image": torch.rand(4, 3, 5, 7), "target": torch.tensor([0, 2, 1, 2])}
    plain, equal = (
        classification.cross_entropy(quick_recipe(), 3, *given)(lambda images: logits, batch)["cross_entropy"]
        for given in ((), (torch.ones(3),))
    )
    torch.testing.assert_close(plain, equal)
