"""The layers that 8-bit integers would harm are found, and stay in float."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from export.tiny_exports import facts
from torch import Tensor

from parhelion.export import quantization
from parhelion.export.quantization import Quantised, search
from parhelion.export.running import Opened

CLASSES = 4
IMAGES = [torch.full((1,), float(number % CLASSES)) for number in range(40)]
TARGETS = torch.arange(40) % CLASSES


def answering(harm: float) -> Opened:
    """A file whose answers are wrong for a share `harm` of the images."""

    def answer(images: Any) -> Any:
        logits = torch.nn.functional.one_hot(torch.from_numpy(images)[:, 0].long(), CLASSES).float() * 5
        wrong = torch.rand(len(images), generator=torch.Generator().manual_seed(0)) < harm
        return (torch.where(wrong[:, None], -logits, logits)).numpy()

    return Opened(facts=facts(), answer=answer, shape=(None, 1))


class Pretended:
    """A quantiser whose layers do a harm that is known."""

    def __init__(self, harms: dict[str, float]) -> None:
        self.harms = harms
        self.layers = {node: f"layer {node}" for node in harms}
        self.float_file = "float"

    def opened(self, nodes: Sequence[str]) -> Opened:
        return answering(sum(self.harms[node] for node in nodes))


@pytest.fixture(autouse=True)
def exact_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantization, "onnx_files", SimpleNamespace(opened=lambda path: answering(0.0)))


def chosen(harms: dict[str, float]) -> quantization.Chosen:
    quantiser: Any = Pretended(harms)
    return search(quantiser, IMAGES, TARGETS, max_drop=0.5, say=lambda text: None)


def test_all_layers_are_taken_where_none_does_harm() -> None:
    assert chosen({"a": 0.0, "b": 0.0}).nodes == ("a", "b")


def test_the_harmful_layers_stay_in_float_and_no_others() -> None:
    found = chosen({"a": 0.0, "b": 0.9, "c": 0.0, "d": 0.5, "e": 0.0})
    assert (found.nodes, found.kept) == (("a", "c", "e"), ("b", "d"))


def test_where_every_layer_does_harm_nothing_is_left() -> None:
    assert chosen({"a": 0.9, "b": 0.9, "c": 0.9}).nodes == ()


def quantised(after: float, **changes: Any) -> Quantised:
    told = {"layers": 3, "kept": (), "speeds": {1: (10.0, 5.0)}} | changes
    return Quantised(images=100, float_accuracy=0.8, int8_accuracy=after, max_drop=0.5, **told)


def test_a_loss_beyond_what_is_allowed_is_a_problem() -> None:
    assert quantised(0.796).problems == ()
    assert quantised(0.79).problems == ("int8 loses 1.00 points of top-1, and 0.5 are allowed",)
    assert quantised(0.8, layers=0).problems == ("each of its layers costs too much accuracy in 8 bits",)
    assert "0.50 times, so it is slower" in quantised(0.8).text()


def test_probabilities_are_of_every_image(monkeypatch: pytest.MonkeyPatch) -> None:
    found: Tensor = quantization._probabilities(answering(0.0), IMAGES[:11])
    assert found.shape == (11, CLASSES)
