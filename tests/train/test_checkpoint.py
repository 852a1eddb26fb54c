import json

import pytest
import torch
from accelerate import Accelerator
from timm.utils import ModelEmaV3
from torch import nn

from parhelion.errors import UserError
from parhelion.train import checkpoint as module
from parhelion.train.checkpoint import STATE, Checkpoints, why_not_whole
from parhelion.train.optimization import Optimization, build_optimizer, cosine_schedule
from parhelion.train.state import TrainState

FACTS = {"state": {"update": 7, "loss_total": 0.1 + 0.2}}


def tensors():
    return {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(5), "c": torch.randn(2, 3, 5, 7)}


@pytest.fixture
def kept(tmp_path):
    return Checkpoints(tmp_path / "checkpoints", Accelerator(cpu=True), keep=2)


def silent(sentence):
    raise AssertionError(sentence)


def test_what_is_saved_is_read_back_to_the_last_bit(kept):
    given = tensors() | {"strided": torch.randn(2, 3, 5, 7).to(memory_format=torch.channels_last)}
    kept.save(7, given, FACTS)
    found = kept.newest(silent)
    assert found.facts == FACTS
    assert found.shapes() == {name: (tensor.shape, tensor.dtype) for name, tensor in given.items()}
    into = {name: torch.empty(tensor.shape, dtype=tensor.dtype) for name, tensor in given.items()}
    found.read(into)
    assert all(torch.equal(into[name], tensor) for name, tensor in given.items())


def test_only_the_newest_stay_and_nothing_half_written(kept):
    for update in (1, 2, 30, 4):
        kept.save(update, tensors(), FACTS)
    assert sorted(path.name for path in kept.folder.iterdir()) == ["000000004", "000000030"]


def test_no_checkpoint_is_none(kept):
    assert kept.newest(silent) is None


@pytest.mark.parametrize("damage", ["truncated", "flipped", "gone", "state cut", "state changed"])
def test_a_damaged_checkpoint_is_told_and_the_one_before_it_taken(kept, damage):
    kept.save(1, tensors(), {"number": 1})
    kept.save(2, tensors(), {"number": 2})
    newest = kept.folder / "000000002"
    weights = next(newest.glob("*.safetensors"))
    data = weights.read_bytes()
    match damage:
        case "truncated":
            weights.write_bytes(data[:-1])
        case "flipped":
            weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        case "gone":
            weights.unlink()
        case "state cut":
            (newest / STATE).write_text((newest / STATE).read_text()[:-20])
        case "state changed":
            state = json.loads((newest / STATE).read_text())
            state["facts"]["number"] = 3
            (newest / STATE).write_text(json.dumps(state))
    told = []
    assert kept.newest(told.append).facts == {"number": 1}
    (sentence,) = told
    assert str(newest) in sentence
    assert "damaged" in sentence


@pytest.mark.parametrize("version", [1, 3])
def test_another_format_is_refused(kept, version):
    kept.save(1, tensors(), FACTS)
    path = kept.folder / "000000001" / STATE
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": version}))
    with pytest.raises(UserError, match=f"is of checkpoint format {version}, but this parhelion reads format 2"):
        kept.newest(silent)


@pytest.mark.parametrize("place", ["tensors", "state"])
def test_a_full_disk_leaves_the_checkpoint_before(kept, monkeypatch, place):
    kept.save(1, tensors(), FACTS)

    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    if place == "tensors":
        monkeypatch.setattr(module, "_write_tensors", full)
    else:
        monkeypatch.setattr(module, "flush_to_disk", full)
    with pytest.raises(UserError, match=r"cannot write a checkpoint .*No space left on device; the checkpoint before"):
        kept.save(2, tensors(), FACTS)
    assert [path.name for path in kept.folder.iterdir()] == ["000000001"]
    assert why_not_whole(kept.folder / "000000001") is None


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write a checkpoint to"):
        Checkpoints(tmp_path / "file" / "checkpoints", Accelerator(cpu=True), keep=1).save(1, tensors(), FACTS)


def train_state(optimizer, *, layers=2):
    torch.manual_seed(3)
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), *[nn.Conv2d(5, 5, 1) for _ in range(layers - 1)])
    model.to(memory_format=torch.channels_last)
    built = build_optimizer(model, optimizer, lr=0.01, momentum=0.9, weight_decay=0.1)
    schedule = cosine_schedule(built, lr=0.01, updates=9, warmup_updates=2, lr_end_ratio=0)
    ema = ModelEmaV3(model, decay=0.7)
    accelerator = Accelerator(cpu=True)
    optimization = Optimization(
        optimizer=accelerator.prepare_optimizer(built), schedule=schedule, ema=ema, ema_source=model
    )
    return TrainState(accelerator=accelerator, model=model, optimization=optimization)


def updates(run, first, last):
    for update in range(first, last):
        images = torch.randn(2, 3, 7, 11, generator=torch.Generator().manual_seed(update))
        run.optimization.schedule.step_update(update)
        run.optimization.optimizer.zero_grad()
        run.model(images).square().mean().backward()
        run.optimization.optimizer.step()
        run.optimization.ema.update(run.model)


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adamw", "lamb", "lion"])
def test_a_run_that_is_put_back_moves_on_to_the_last_bit(kept, optimizer):
    whole, resumed = train_state(optimizer), train_state(optimizer)
    updates(whole, 0, 4)
    kept.save(4, whole.tensors(), {"train_state": whole.facts()})
    updates(whole, 4, 9)
    resumed.restore(kept.newest(silent))
    updates(resumed, 4, 9)
    ours, theirs = resumed.tensors(), whole.tensors()
    assert ours.keys() == theirs.keys()
    assert any(name.startswith("optimizer.") for name in ours)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert resumed.facts() == whole.facts()


def test_a_checkpoint_of_another_model_is_refused(kept):
    kept.save(1, train_state("sgd").tensors(), {"train_state": train_state("sgd").facts()})
    with pytest.raises(UserError, match=r"lacks 4 tensors of this run \(first: ema\.3\.bias"):
        train_state("sgd", layers=3).restore(kept.newest(silent))
