import json
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from PIL import Image

from parhelion.errors import UserError
from parhelion.models import create_model, model_info
from parhelion.speed.networks import Network, check_name, image_multiply_adds, noise, original
from parhelion.speed.report import HEADINGS, cells, save_report, speed_case, speed_report
from parhelion.speed.timing import (
    Candidate,
    WrongNumbersError,
    footnote,
    measure,
    not_as_exact,
    peak_memory_mib,
    ready,
    summary,
)

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = Network(name="tiny", model="resnet_tiny", image_px=32, batch=3, folded=False)


@dataclass(frozen=True, kw_only=True)
class Rows(Candidate):
    """Makes a tensor of many MiB and gives back one number."""

    mib: int = 1
    value: float = 1.0
    wrong: str | None = None

    def build(self):
        return lambda: (torch.full((self.mib * 2**18,), self.value).sum()[None],)

    def problem(self, answer):
        return self.wrong

    def multiply_adds(self):
        return None


def test_median_and_quartiles():
    seconds = summary([5.0, 1.0, 2.0, 4.0, 3.0])
    assert (seconds.lower_quartile, seconds.median, seconds.upper_quartile, seconds.rounds) == (2.0, 3.0, 4.0, 5)
    assert summary([7.0]).median == summary([7.0]).upper_quartile == 7.0


def test_ratios_are_quotients_of_medians_and_rates_follow_from_them(tmp_path):
    second = replace(TINY, name="again", batch=5)
    runs = {candidate: ready(candidate) for candidate in (TINY, second)}
    case = speed_case("case", "Title", runs, rounds=2, memory=False, left_out={"absent": "not installed: absent"})
    report = speed_report([case], "Title")
    save_report(report, tmp_path / "report.json")
    read = json.loads((tmp_path / "report.json").read_text())
    (case,) = read["cases"]
    first, other = case["candidates"]
    assert first["ratio"] == 1
    assert other["ratio"] == other["seconds"]["median"] / first["seconds"]["median"]
    assert other["images_per_second"] == 5 / other["seconds"]["median"]
    multiply_adds = 5 * model_info("resnet_tiny").multiply_adds
    assert other["multiply_adds"] == pytest.approx(multiply_adds, rel=0.01)
    assert other["gflops"] == pytest.approx(2e-9 * other["multiply_adds"] / other["seconds"]["median"])
    share = other["gflops"] / case["matrix_product_gflops"]["float32"]
    assert other["share_of_matrix_product"] == pytest.approx(share)
    assert case["left_out"] == [{"name": "absent", "reason": "not installed: absent"}]
    assert len(cells(other)) == len(HEADINGS)
    assert f"torch {torch.__version__.partition('+')[0]}" in footnote(read)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.json", "report.png"]
    pixels = np.asarray(Image.open(tmp_path / "report.png").convert("RGB"))
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20


def test_each_precision_is_compared_with_a_product_in_its_own_dtype():
    runs = {candidate: candidate.build() for candidate in (TINY, replace(TINY, name="half", precision="bfloat16"))}
    rows, products = measure(runs, rounds=1, memory=False)
    assert set(products) == {"float32", "bfloat16"}
    assert rows[1]["share_of_matrix_product"] == rows[1]["gflops"] / products["bfloat16"]["gflops"]


def test_a_report_says_which_dtype_is_emulated(monkeypatch):
    monkeypatch.setattr("parhelion.speed.products.cpu_flags", lambda: ["avx2"])
    half = replace(TINY, precision="bfloat16")
    case = speed_case("case", "Title", {half: half.build()}, rounds=1, memory=False)
    assert case["emulated_dtypes"] == ["bfloat16"]
    assert case["rounds"] == 1
    assert footnote(speed_report([case], "Title")).endswith(
        "; bfloat16 is emulated: no instructions of this processor are used for it"
    )


def test_peak_memory_is_what_a_call_holds_and_not_what_this_process_holds():
    held = torch.ones(300 * 2**18)
    assert 150 <= peak_memory_mib(Rows(name="rows", batch=1, mib=150)) < 190
    assert held.sum() > 0


def test_a_candidate_with_wrong_numbers_is_refused():
    with pytest.raises(WrongNumbersError, match="sum is not timed: seven is not eight"):
        ready(Rows(name="sum", batch=1, wrong="seven is not eight"))


@pytest.mark.parametrize("train", [False, True])
def test_a_network_that_computes_something_else_is_found_out(monkeypatch, train):
    candidate = replace(TINY, model="halonet_tiny", train=train)
    assert candidate.problem(candidate.build()()) is None
    network = original("halonet_tiny", 32)
    with torch.no_grad():
        network.stages[0][0].expand.weight.mul_(1.01)
    monkeypatch.setattr(Network, "network", lambda self: network)
    kind = "gradient" if train else "output"
    assert f"its {kind} errs by" in candidate.problem(candidate.build()())


def test_numbers_that_are_not_finite_are_found_out():
    assert "NaN" in TINY.problem((torch.tensor([1.0, float("nan")]),))
    truth = torch.ones(3).double()
    assert not_as_exact(torch.tensor([1.0, float("nan"), 1.0]), truth.float(), truth, slack=2)
    assert not_as_exact(torch.ones(2), truth.float(), truth, slack=2)
    assert not_as_exact(truth.float(), truth.float(), truth, slack=2) is None


def test_one_wrong_number_among_many_is_found_out():
    truth = torch.randn(10_000).double()
    rounded = truth.bfloat16()
    assert not_as_exact(rounded, rounded, truth, slack=2) is None
    rounded = rounded.clone()
    rounded[77] += 0.2
    assert "its output errs by 0.2" in not_as_exact(rounded, truth.bfloat16(), truth, slack=2)


def test_a_measured_network_computes_in_every_branch_with_activations_of_unit_size():
    network = original("resnet_tiny", 32)
    assert all(block.norm3.weight.any() for block in network.bottlenecks)
    logits = network(noise(4, 32))
    assert 0.01 < logits.std() < 10
    assert torch.equal(logits, original("resnet_tiny", 32)(noise(4, 32)))
    assert torch.equal(noise(5, 32)[:2], noise(2, 32))


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "autocast"])
def test_a_network_is_measured_in_every_precision(precision):
    candidate = replace(TINY, model="gsa_tiny", precision=precision)
    (logits,) = ready(candidate)()
    assert logits.shape == (3, create_model("gsa_tiny").num_classes)


def test_a_training_step_learns():
    step = ready(replace(TINY, train=True))
    losses = [step()[0].item() for _ in range(30)]
    assert losses[-1] < 0.7 * losses[0]


def test_multiply_adds_are_the_catalogues():
    row = model_info("halonet_tiny")
    assert image_multiply_adds("halonet_tiny", row.image_px) == row.multiply_adds
    assert replace(TINY, train=True).multiply_adds() == 3 * TINY.multiply_adds()


def test_names_and_sizes_that_are_not_there_are_named():
    check_name("timm:resnet18")
    for name, sentence in (
        ("halonet_tinny", "did you mean halonet_tiny"),
        ("timm:resnet5O", "did you mean resnet5"),
        ("tim:resnet50", "timm:NAME"),
        ("timm:", "timm.list_models"),
    ):
        with pytest.raises(UserError, match=sentence):
            check_name(name)
    with pytest.raises(UserError, match="resnet_tiny does not take images of 1x1 pixels"):
        original("resnet_tiny", 1)


def test_what_cannot_run_here_says_why():
    assert replace(TINY, needs=("a_module_that_nobody_has",)).why_not() == "not installed: a_module_that_nobody_has"
    assert TINY.why_not() is None
