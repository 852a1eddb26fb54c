"""The benchmark of GPUs, as far as a machine without one can tell: what it asks, checks and counts."""

import time
from dataclasses import replace
from functools import partial

import gpu_timing
import pytest
import torch
from cases import CONVOLUTION, OURS
from cpu import reached
from gpu_cases import COMPILED, FLEX, FULL, HALO_LAYERS, LAYER_PEERS, SDPA, TINY, cases, choices
from gpu_floor import ATTENTION, PROJECTIONS, Rates, Work
from gpu_measure import auto_shape, measured_case, put_case
from gpu_networks import GpuNetwork, operators
from gpu_parts import HALO_64, LAYERS, NETWORKS
from gpu_peers import GpuLayer, by_flex, by_sdpa, choices_noted, forget_expected
from gpu_record import Record
from gpu_session import ONCE, TINY_YARDSTICK, new_session
from gpu_timing import Yardstick, noted

from parhelion.ops import halo_attention
from parhelion.speed import products
from parhelion.speed.turns import CPU_CLOCK, in_turns

pytestmark = pytest.mark.usefixtures("one_thread")

# The table of the issue 'Fast on the GPU': bound, aim.
PROMISED = {
    **{f"halo-layer-{channels}": [(0.35, 0.6), (3, 6)] for channels in (64, 128, 256)},
    **{f"halo-layer-{channels}-backward": [(2.5, 5)] for channels in (64, 128, 256)},
    "halonet-h1-inference": [(3, 5), (0.8, 1.3)],
    "halonet-h1-training": [(2.5, 4), (0.5, 0.3)],
    "gsa-resnet50-inference": [(0.8, 1.1), (3, 5)],
    "gsa-resnet50-training": [(0.8, 1.1), (3, 5)],
}
BY_NAME = {case.name: case for case in cases(FULL)}
TINY_BY_NAME = {case.name: case for case in cases(TINY)}


@pytest.fixture
def session(tmp_path):
    return new_session(tmp_path / "gpu.json", seconds=600, rehearsal=True, part="test")


def row(name, seconds, share=None, memory=None):
    floor = None if share is None else {"share": share}
    rate = 8 / seconds
    times = {"median": seconds}
    return {"name": name, "seconds": times, "images_per_second": rate, "floor": floor, "peak_memory_mib": memory}


# What it asks


def test_every_promise_of_the_gpu_has_a_case():
    found = {name: [(one.bound, one.aim) for one in case.targets] for name, case in BY_NAME.items() if case.targets}
    assert found == PROMISED


@pytest.mark.parametrize("case", BY_NAME.values(), ids=BY_NAME)
def test_every_target_on_a_gpu_names_candidates_of_its_case(case):
    names = [candidate.name for candidate in case.candidates]
    assert len(set(names)) == len(names)
    assert names[0] == OURS
    for target in case.targets:
        assert {*target.ours, *target.over} <= set(names)


def test_a_rehearsal_has_the_same_cases_as_a_run():
    assert TINY_BY_NAME.keys() == BY_NAME.keys()


def test_every_case_is_measured_by_one_part():
    assert sorted((*HALO_64, *LAYERS, *NETWORKS)) == sorted(BY_NAME)


def test_the_fastest_of_ours_meets_the_fastest_of_the_others():
    rows = [row(OURS, 0.6, share=0.2), row(COMPILED, 0.5, share=0.4), *(row(peer, 2.0) for peer in LAYER_PEERS)]
    share, speed = reached(BY_NAME["halo-layer-64"], rows)
    assert (share["reached"], share["bound_met"], share["aim_met"]) == (0.4, True, False)
    assert (speed["reached"], speed["bound_met"], speed["aim_met"]) == (4, True, False)
    _, speed = reached(BY_NAME["halo-layer-64"], [one for one in rows if one["name"] != FLEX])
    assert (speed["reached"], speed["bound_met"], speed["without"]) == (4, None, [FLEX])
    peers = [row(OURS, 0.5, memory=30), row(COMPILED, 0.6, memory=10), row("timm halonet_h1, compiled", 1, memory=100)]
    _, memory = reached(BY_NAME["halonet-h1-training"], peers)
    assert (memory["reached"], memory["bound_met"], memory["aim_met"]) == (0.3, True, True)


def test_a_target_without_its_candidates_is_not_reached():
    share, speed = reached(BY_NAME["halo-layer-64"], [row(OURS, 1.0), row(CONVOLUTION, 1.0)])
    assert (share["reached"], speed["reached"], speed["bound_met"]) == (None, None, None)
    speed, memory = reached(BY_NAME["halonet-h1-training"], [row(OURS, 1.0), row("timm halonet_h1", 5.0)])
    assert (speed["reached"], memory["reached"]) == (None, None)


def test_the_longest_of_three_times_binds_a_stage_and_stages_add_up():
    rates = Rates(bytes_per_second=100, flops_per_second=1000, exponentials_per_second=10)
    stages = {
        "moves": Work(numbers=200, multiply_adds=500),
        "multiplies": Work(numbers=50, multiply_adds=4000),
        "raises": Work(numbers=50, multiply_adds=500, exponentials=30),
    }
    floor = rates.floor(stages, 2)
    found = {name: (stage["binds"], stage["seconds"]) for name, stage in floor["stages"].items()}
    assert found == {"moves": ("moving", 4), "multiplies": ("products", 8), "raises": ("exponentials", 3)}
    assert floor["seconds"] == 15


def test_the_work_of_a_halo_layer_is_that_of_its_sizes():
    """Counted by hand: 5 maps through the projections, 4 through the attention, 196 keys to a query."""
    channels, side, heads = HALO_LAYERS[0]
    layer = BY_NAME["halo-layer-64"].candidates[0]
    work, pixels = layer.work(), layer.batch * side**2
    map_numbers, tables, projections = pixels * channels, 2 * 21 * 8, 3 * channels**2
    assert work[PROJECTIONS].numbers == 5 * map_numbers + projections
    assert work[PROJECTIONS].multiply_adds == 3 * map_numbers * channels
    assert work[ATTENTION].numbers == 4 * map_numbers + tables
    assert work[ATTENTION].exponentials == pixels * heads * 196
    relative = pixels * channels // 2 * (14 + 14)
    assert work[ATTENTION].multiply_adds == 2 * pixels * channels * 196 + relative
    both = replace(layer, backward=True).work()
    assert both[ATTENTION].exponentials == 2 * work[ATTENTION].exponentials
    assert both[ATTENTION].multiply_adds == 3.5 * work[ATTENTION].multiply_adds
    assert both[PROJECTIONS].multiply_adds == 3 * work[PROJECTIONS].multiply_adds


def test_the_floor_of_the_first_layer_at_the_rates_of_an_h100():
    """3.0 TB/s, 790 TFLOP/s, 16 exponentials a clock of 132 multiprocessors at 1.755 GHz."""
    rates = Rates(bytes_per_second=3e12, flops_per_second=790e12, exponentials_per_second=16 * 132 * 1.755e9)
    floor = rates.floor(BY_NAME["halo-layer-64"].candidates[0].work(), 2)
    assert floor["seconds"] == pytest.approx(223e-6, rel=0.01)
    assert floor["stages"][PROJECTIONS]["binds"] == "moving"
    assert floor["stages"][ATTENTION]["binds"] == "exponentials"


def test_a_convolution_alone_is_one_stage():
    layer = GpuLayer(name="", make=lambda: torch.nn.Conv2d(3, 3, 1, bias=False), channels=3, side=5, batch=2)
    assert layer.work() == {PROJECTIONS: Work(numbers=150 + 9 + 150, multiply_adds=2 * 25 * 9)}
    both = replace(layer, backward=True)
    assert both.work() == {PROJECTIONS: Work(numbers=5 * 150 + 3 * 9, multiply_adds=3 * 2 * 25 * 9)}
    assert (layer.multiply_adds(), both.multiply_adds()) == (2 * 25 * 9, 3 * 2 * 25 * 9)


# Numbers


@pytest.mark.parametrize("attend", [by_sdpa, by_flex])
def test_peers_attend_as_the_reference_does(attend):
    block, halo = 2, 3
    q, k, v = (torch.randn(2, 6, 10, 3, 8) for _ in "qkv")
    tables = tuple(torch.randn(2 * block + 2 * halo - 1, 4) for _ in "hw")
    expected = halo_attention(*(q, k, v, *tables), block=block, halo=halo, scale=q.shape[-1] ** -0.5, impl="reference")
    torch.testing.assert_close(attend(q, k, v, tables, block, halo), expected)


@pytest.mark.parametrize("name", ["halo-layer-64", "halo-layer-64-backward", "halo-operation-64", "gsa-layer-64"])
def test_layers_in_bfloat16_agree_with_float64_and_a_wrong_one_is_found_out(name):
    for layer in TINY_BY_NAME[name].candidates:
        if layer.why_not() is None and not layer.compiles:
            answer = list(layer.build()())
            assert layer.problem(answer) is None, layer.name
            answer[-1] = answer[-1] * 1.2
            assert "errs by" in layer.problem(answer)


def test_peers_are_held_to_the_truth_of_our_layer_which_is_computed_once(monkeypatch):
    forget_expected()
    computed = []
    truth = GpuLayer._truth
    monkeypatch.setattr(GpuLayer, "_truth", lambda self, *args: computed.append(self.name) or truth(self, *args))
    for layer in TINY_BY_NAME["halo-layer-64"].candidates:
        if layer.name in (OURS, COMPILED, SDPA, FLEX):
            layer.expected()
    assert computed == [OURS]


def test_true_gradients_of_chunks_are_those_of_the_batch():
    layer = replace(TINY_BY_NAME["halo-layer-64-backward"].candidates[0], batch=11, side=8)
    answer = layer.build()()
    assert layer.problem(answer) is None


def test_logits_of_every_image_are_checked():
    network = GpuNetwork(name=OURS, model="halonet_tiny", image_px=32, batch=5, precision="bfloat16", device="cpu")
    (logits,) = network.build()()
    assert network.problem((logits,)) is None
    wrong = logits.clone()
    wrong[4] *= 2
    assert "errs by" in network.problem((wrong,))


def test_gradients_are_checked_before_a_step_is_timed():
    network = GpuNetwork(
        name=OURS, model="halonet_tiny", image_px=32, batch=2, precision="autocast", device="cpu", train=True
    )
    assert network.problem(network.build()()) is None


# Measuring


def test_a_candidate_that_fails_is_left_out_with_its_reason(session):
    def no_memory():
        raise torch.OutOfMemoryError("CUDA out of memory")

    case = TINY_BY_NAME["halo-layer-64"]
    ours, *_, convolution = case.candidates
    broken = replace(convolution, name="broken", make=no_memory)
    measured = measured_case(replace(case, candidates=(ours, broken, convolution), rounds=1), session)
    assert [row["name"] for row in measured["candidates"]] == [OURS, CONVOLUTION]
    assert measured["left_out"] == [{"name": "broken", "reason": "it runs out of GPU memory"}]
    assert not session.record.rows("failures")
    measured_case(replace(case, candidates=(replace(broken, name=OURS),), rounds=1), session)
    assert session.record.rows("failures") == [f"halo-layer-64, {OURS}: it runs out of GPU memory"]


def test_a_candidate_with_wrong_numbers_is_not_timed(session, monkeypatch):
    monkeypatch.setattr(GpuLayer, "problem", lambda self, answer: "wrong" if self.name == SDPA else None)
    case = TINY_BY_NAME["halo-layer-64"]
    chosen = tuple(one for one in case.candidates if one.name in (OURS, SDPA))
    measured = measured_case(replace(case, candidates=chosen, rounds=1), session)
    assert [row["name"] for row in measured["candidates"]] == [OURS]
    (failure,) = session.record.rows("failures")
    assert SDPA in failure


def test_one_that_fails_between_turns_drops_out():
    calls = []

    def fails_later():
        calls.append(0)
        if len(calls) > 40:
            raise RuntimeError("worn out\nand more")

    runs = {"worn": fails_later, "well": lambda: ()}
    failed = {}
    samples = in_turns(runs, CPU_CLOCK, rounds=5, say=lambda text: None, guard=partial(noted, failed))
    assert failed == {"worn": "RuntimeError: worn out"}
    assert {name: len(turns) for name, turns in samples.items()} == {"well": 5}


def test_what_auto_chose_is_noted_and_compared(session):
    (case, *_) = choices(TINY, [TINY_BY_NAME["halo-layer-64"]])
    assert [one.name for one in case.candidates] == ["auto", "cpu", "reference"]
    shape = auto_shape(case, session)
    assert set(shape["seconds"]) == {"auto", "cpu", "reference"}
    assert shape["chosen"] == ["cpu"]
    reference = replace(case.candidates[0], impl="reference")
    with choices_noted() as names:
        reference.build()()
    assert names == {"reference"}


def test_auto_is_tried_on_every_shape_within_our_networks():
    shapes = operators("halonet_tiny", 32)
    assert len({side for _, _, side, _ in shapes}) > 1
    assert len({number for number, *_ in shapes}) == len(shapes)
    titles = [case.title for case in choices(TINY, list(TINY_BY_NAME.values()))]
    assert len(set(titles)) == len(titles)
    for model in ("halonet_h1", "gsa_resnet50"):
        assert any(model in title for title in titles)


def test_no_round_begins_that_would_end_too_late():
    samples = in_turns({"one": lambda: ()}, ONCE, rounds=50, say=lambda text: None, until=time.monotonic())
    assert len(samples["one"]) == 1


def test_an_error_that_spoils_the_gpu_ends_the_part():
    def spoils():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    runs = {"spoils": spoils, "well": lambda: ()}
    with pytest.raises(RuntimeError, match=r"spoils spoils the GPU for this process: .* illegal memory access"):
        in_turns(runs, ONCE, rounds=1, say=lambda text: None, guard=partial(noted, {}))


def test_a_case_is_written_after_every_check_and_every_round(session):
    case = TINY_BY_NAME["halo-layer-64"]
    few = replace(case, candidates=tuple(one for one in case.candidates if one.name in (OURS, SDPA, CONVOLUTION)))
    written = []
    measured_case(few, session, write=written.append)
    checked = [row["checked"] for row in written]
    assert checked[:3] == [[OURS], [OURS, SDPA], [OURS, SDPA, CONVOLUTION]]
    rounds = [row["rounds"] for row in written]
    assert rounds == [0, 0, 0, 1, 2, 2]


def test_without_time_left_candidates_are_left_out(session):
    case = TINY_BY_NAME["halo-layer-64"]
    measured = measured_case(case, session, until=time.monotonic() - 1)
    assert not measured["candidates"]
    assert {one["reason"] for one in measured["left_out"]} <= {"there was no time for it", "CUDA graphs want a GPU"}
    assert not session.record.rows("failures")


def test_rows_of_two_parts_stand_in_one_case(session):
    case = TINY_BY_NAME["halo-layer-64"]
    for names in ((OURS, SDPA), (OURS, CONVOLUTION)):
        few = replace(case, candidates=tuple(one for one in case.candidates if one.name in names))
        measured_case(few, session, write=put_case(session, case))
    (row,) = Record(session.record.path).rows("cases")
    assert [one["name"] for one in row["candidates"]] == [OURS, SDPA, CONVOLUTION]
    _, speed = row["targets"]
    assert speed["reached"] > 0


def test_the_yardstick_is_sized_by_measured_time(monkeypatch):
    monkeypatch.setattr(products, "LAST_SIDE", 64)
    monkeypatch.setattr(gpu_timing, "seconds_per_call", lambda run, calls: run()[0].numel() / 1e10)
    yardstick = Yardstick.sized("cpu")
    assert yardstick.copy_bytes == 2**23  # the first that takes half a millisecond at 10 GB/s
    assert yardstick.product_side == 64


def test_the_yardstick_does_what_its_rates_count():
    copied, product, raised = (run()[0] for run in TINY_YARDSTICK.runs("cpu").values())
    assert copied.numel() == TINY_YARDSTICK.copy_bytes
    assert product.shape == (TINY_YARDSTICK.product_side,) * 2
    assert raised.numel() == TINY_YARDSTICK.raised_numbers
    rates = TINY_YARDSTICK.rates({"copy": 2.0, "matrix product": 4.0, "exponentials": 8.0})
    assert rates.bytes_per_second == TINY_YARDSTICK.copy_bytes
    assert rates.flops_per_second == TINY_YARDSTICK.product_side**3 / 2
    assert rates.exponentials_per_second == raised.numel() * TINY_YARDSTICK.raised_times / 8
