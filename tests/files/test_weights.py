import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from parhelion.errors import UserError
from parhelion.files.weights import read_saved, save_weights

FACTS = {"model": "halonet_tiny", "class_names": ["Bag", 'a "quoted" name', "Größe"], "epoch": 3}


@pytest.fixture
def weights():
    shared = torch.randn(2, 3)
    return {
        "conv": torch.randn(2, 3, 5, 7).to(memory_format=torch.channels_last),
        "part": torch.randn(4, 6)[:, ::2],
        "first": shared,
        "tied": shared,
        "count": torch.tensor(11),
    }


def test_weights_and_facts_come_back_as_they_went(tmp_path, weights):
    save_weights(tmp_path / "w.safetensors", weights, FACTS)
    found, facts = read_saved(tmp_path / "w.safetensors")
    assert facts == FACTS
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], weights[name]) for name in weights)


def test_a_failed_save_keeps_the_last_good_weights(tmp_path, weights, monkeypatch):
    path = tmp_path / "w.safetensors"
    save_weights(path, weights, FACTS)

    def dies(file, content):
        with open(file, "wb") as stream:
            stream.write(content[: len(content) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", dies)
    with pytest.raises(UserError, match="No space left"):
        save_weights(path, {"conv": torch.zeros(1)}, {})
    assert read_saved(path)[1] == FACTS
    assert [file.name for file in tmp_path.iterdir()] == ["w.safetensors"]


def test_whoever_may_read_the_folder_may_read_the_weights(tmp_path, weights):
    (tmp_path / "plain").write_text("")
    save_weights(tmp_path / "w.safetensors", weights, FACTS)
    assert (tmp_path / "w.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_truncated_file_is_one_sentence(tmp_path, weights):
    path = tmp_path / "w.safetensors"
    save_weights(path, weights, FACTS)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(UserError, match=r"w\.safetensors is not a whole safetensors file"):
        read_saved(path)


def test_a_pickle_is_refused_and_never_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "exploded"), "w"))

    for name in ("w.pt", "w.safetensors"):
        (tmp_path / name).write_bytes(pickle.dumps(Bomb()))
        with pytest.raises(UserError, match=r"is a pickle|not a whole safetensors"):
            read_saved(tmp_path / name)
    assert not (tmp_path / "exploded").exists()


def test_weights_of_another_program_are_refused(tmp_path):
    save_file({"conv": torch.zeros(2)}, tmp_path / "w.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="does not say which model"):
        read_saved(tmp_path / "w.safetensors")


def test_a_newer_format_is_refused(tmp_path):
    save_file({"conv": torch.zeros(2)}, tmp_path / "w.safetensors", metadata={"parhelion_format": "99"})
    with pytest.raises(UserError, match="format 99; this parhelion reads format 1"):
        read_saved(tmp_path / "w.safetensors")
