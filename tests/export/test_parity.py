"""Files that disagree with PyTorch are found, and told by what is wrong with them."""

from collections.abc import Callable

import pytest
import torch
from export.tiny_exports import ONE_CALL, classifier, opened
from torch import Tensor

from parhelion.data.sources import open_source
from parhelion.export.parity import Parity, measured, photos
from parhelion.export.running import Opened
from parhelion.speed import turns

pytestmark = pytest.mark.usefixtures("one_thread", "shapes_unchecked")


@pytest.fixture(autouse=True)
def untimed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "CPU_CLOCK", ONE_CALL)


def parity(found: Opened) -> Parity:
    given = photos(open_source("bundled", splits=("val",)), classifier(), 20)
    return measured(classifier(), found, given, max_difference=1e-4, runtime="a runtime", say=lambda text: None)


def network(images: Tensor) -> Tensor:
    return classifier().model(images)


def values(images: Tensor) -> Tensor:
    """Pixels of 0 to 1."""
    mean, std = (torch.tensor(numbers).view(1, 3, 1, 1) for numbers in ((0.3, 0.4, 0.5), (0.2, 0.3, 0.25)))
    return images * std + mean


def test_a_file_that_says_the_same_passes_at_five_sizes_and_two_batches() -> None:
    found = parity(opened(network))
    assert found.problems == ()
    assert len({(case.height, case.width) for case in found.cases}) == 5
    assert {case.batch for case in found.cases} == {1, 8}
    assert {case.agreement for case in found.cases} == {1.0}
    assert max(case.difference for case in found.cases) < 1e-6
    assert found.accuracy is not None
    assert found.accuracy["PyTorch"] == found.accuracy["a runtime"]
    assert "a runtime" in found.text()
    assert [speed.batch for speed in found.speeds] == [1, 8]


def one_size(images: Tensor) -> Tensor:
    if images.shape[2:] != (16, 16):
        raise RuntimeError("Got invalid dimensions")
    return network(images)


FAULTS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "transposed": (lambda x: network(x.transpose(2, 3).contiguous()), "its map is transposed"),
    "without its mean": (
        lambda x: network(values(x) / torch.tensor((0.2, 0.3, 0.25)).view(1, 3, 1, 1)),
        "its preprocessing does not subtract the mean",
    ),
    "dead": (lambda x: torch.ones(len(x), 1) * torch.arange(10.0), "its output is dead"),
    "not a number": (lambda x: network(x) * torch.nan, "numbers that are not finite"),
    "of one size": (one_size, "it does not take images of 97x131 1 at a time: Got invalid dimensions"),
    "of other classes": (lambda x: network(x)[:, :9], "it gives (4, 9) numbers"),
    "off a little": (lambda x: network(x) * 1.01, "a probability differs by"),
    "blue, green, red": (
        lambda x: network(
            (values(x).flip(1) - torch.tensor((0.3, 0.4, 0.5)).view(1, 3, 1, 1))
            / torch.tensor((0.2, 0.3, 0.25)).view(1, 3, 1, 1)
        ),
        "its channels are in the order blue, green, red",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_file_is_told_by_its_fault(fault: str) -> None:
    answer, words = FAULTS[fault]
    found = parity(opened(answer))
    assert any(words in problem for problem in found.problems), found.problems
    assert found.speeds == ()


def test_a_fixed_size_passed_off_as_any_is_found_in_what_the_file_says() -> None:
    found = parity(opened(network, shape=(None, 3, 16, 16)))
    assert found.problems == ("it says that it takes images of any size, but its sizes are fixed: height 16, width 16",)


def test_a_model_that_says_the_same_of_every_image_proves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = classifier().model[-1].weight
    monkeypatch.setattr(weights, "data", torch.zeros_like(weights))
    found = parity(opened(network))
    assert "itself says the same of all images" in found.problems[0]
