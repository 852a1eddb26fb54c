"""The benchmark of GPUs, as far as a machine without one can tell: what it asks, refuses, checks and writes down."""

import json
from dataclasses import replace

import gpu
import gpu_timing
import pytest
import torch
from cases import CONVOLUTION, OURS, Case
from cpu import reached
from gpu_cases import COMPILED, FLEX, FULL, LAYER_PEERS, NOT_MEASURED, SDPA, TINY, cases, choices, markdown
from gpu_measure import Session, auto_shape, measured_case, training_steps
from gpu_networks import GpuNetwork, operators
from gpu_peers import GpuLayer, by_flex, by_sdpa, choices_noted
from gpu_timing import Rates, Yardstick, host_clock, in_turns
from table import between_markers

from parhelion.cli import exit_code
from parhelion.ops import halo_attention
from parhelion.speed import products

pytestmark = pytest.mark.usefixtures("one_thread")

# The table of the issue 'Fast on the GPU': at least, aim.
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
DRY = ("--device", "cpu", "--quick", "--eager", "--skip-tests")


@pytest.fixture
def session():
    return Session(TINY, host_clock, Yardstick(copy_bytes=1024, product_side=16), quick=True, eager=True)


def row(name, seconds, share=None, memory=None):
    floor = None if share is None else {"share": share}
    rate = 8 / seconds
    times = {"median": seconds}
    return {"name": name, "seconds": times, "images_per_second": rate, "floor": floor, "peak_memory_mib": memory}


# What it asks


def test_every_promise_of_the_gpu_has_a_case():
    found = {name: [(one.at_least, one.aim) for one in case.targets] for name, case in BY_NAME.items() if case.targets}
    assert found == PROMISED


@pytest.mark.parametrize("case", BY_NAME.values(), ids=BY_NAME)
def test_every_target_on_a_gpu_names_candidates_of_its_case(case):
    names = [candidate.name for candidate in case.candidates]
    assert len(set(names)) == len(names)
    assert names[0] == OURS
    for target in case.targets:
        assert {*target.ours, *getattr(target, "over", ())} <= set(names)


def test_a_dry_run_has_the_same_parts_as_a_run():
    assert gpu.part_names(cases(TINY)) == gpu.part_names(cases(FULL))


def test_the_fastest_of_ours_meets_the_fastest_of_the_others():
    rows = [row(OURS, 0.6, share=0.2), row(COMPILED, 0.5, share=0.4), row(SDPA, 3.0), row(FLEX, 2.0)]
    share, speed = reached(BY_NAME["halo-layer-64"], rows)
    assert (share["reached"], share["at_least_met"], share["aim_met"]) == (0.4, True, False)
    assert (speed["reached"], speed["at_least_met"], speed["aim_met"]) == (4, True, False)
    peers = [row(OURS, 0.5, memory=30), row(COMPILED, 0.6, memory=10), row("timm halonet_h1, compiled", 1, memory=100)]
    _, memory = reached(BY_NAME["halonet-h1-training"], peers)
    assert (memory["reached"], memory["at_least_met"], memory["aim_met"]) == (0.3, True, True)


def test_a_target_without_its_candidates_is_not_reached():
    share, speed = reached(BY_NAME["halo-layer-64"], [row(OURS, 1.0), row(CONVOLUTION, 1.0)])
    assert (share["reached"], speed["reached"], speed["at_least_met"]) == (None, None, None)
    speed, memory = reached(BY_NAME["halonet-h1-training"], [row(OURS, 1.0), row("timm halonet_h1", 5.0)])
    assert (speed["reached"], memory["reached"]) == (None, None)


def test_the_floor_is_the_longer_of_two_times():
    rates = Rates(bytes_per_second=100, flops_per_second=1000)
    moving, computing = rates.floor(400, 500), rates.floor(100, 4000)
    assert (moving["move_seconds"], moving["multiply_seconds"], moving["seconds"]) == (4, 1, 4)
    assert (computing["move_seconds"], computing["multiply_seconds"], computing["seconds"]) == (1, 8, 8)


def test_a_layer_moves_its_map_its_weights_and_its_output_once():
    layer = GpuLayer(name="", make=lambda: torch.nn.Conv2d(3, 3, 1, bias=False), channels=3, side=5, batch=2)
    assert layer.moved_bytes() == 2 * (150 + 9 + 150)
    assert replace(layer, backward=True).moved_bytes() == 4 * (150 + 9 + 150)
    assert layer.multiply_adds() == 2 * 25 * 9


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
        if layer.why_not() is None and not layer.compiled and not (layer.name == FLEX and layer.backward):
            answer = list(layer.build()())
            assert layer.problem(answer) is None, layer.name
            answer[-1] = answer[-1] * 1.2
            assert "errs by" in layer.problem(answer)


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
    assert not session.failures
    measured_case(replace(case, candidates=(replace(broken, name=OURS),), rounds=1), session)
    assert session.failures == [f"halo-layer-64, {OURS}: it runs out of GPU memory"]


def test_a_candidate_with_wrong_numbers_is_not_timed(session, monkeypatch):
    monkeypatch.setattr(GpuLayer, "problem", lambda self, answer: "wrong" if self.name == SDPA else None)
    case = TINY_BY_NAME["halo-layer-64"]
    chosen = tuple(one for one in case.candidates if one.name in (OURS, SDPA))
    measured = measured_case(replace(case, candidates=chosen, rounds=1), session)
    assert [row["name"] for row in measured["candidates"]] == [OURS]
    (failure,) = session.failures
    assert SDPA in failure


def test_one_that_fails_between_turns_drops_out():
    calls = []

    def fails_later():
        calls.append(0)
        if len(calls) > 40:
            raise RuntimeError("worn out\nand more")

    runs = {"worn": fails_later, "well": lambda: ()}
    samples, failed = in_turns(runs, host_clock, rounds=5, say=lambda text: None)
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


def test_a_step_that_is_not_finite_is_counted(session, monkeypatch):
    halves = iter([1.0, float("nan"), 1.0])
    cross_entropy = torch.nn.functional.cross_entropy
    monkeypatch.setattr(torch.nn.functional, "cross_entropy", lambda *args: cross_entropy(*args) * next(halves))
    monkeypatch.setattr("parhelion.create_model", lambda name, **_: torch.nn.Sequential(*pooled()))
    run = training_steps("halonet_h1", session, 3)
    assert run["finite_steps"] == 1
    assert "2 of 3" in session.failures[0]
    json.dumps(run, allow_nan=False)


def pooled():
    return torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(3, 10)


# The command


def test_a_gpu_is_asked_for_in_one_sentence(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert exit_code(lambda: gpu.main([])) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "needs an NVIDIA GPU" in said


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--device", "cpu"], "wants --quick"),
        ([*DRY, "--out", str(gpu.RESULTS / "gpu")], "a dry run is no result"),
        ([*DRY, "--only", "nothing"], "halo-layer-64"),
        ([*DRY, "--steps", "0"], "at least 1"),
        ([*DRY, "--add"], "wants --out"),
    ],
)
def test_what_cannot_be_measured_is_refused(arguments, says, capsys):
    assert exit_code(lambda: gpu.main(arguments)) == 2
    assert says in capsys.readouterr().err


def test_nothing_is_timed_where_tests_fail(monkeypatch, capsys):
    monkeypatch.setattr(gpu, "TESTS", ("-c", "raise SystemExit(3)"))
    monkeypatch.setattr(gpu, "measure_all", lambda *_, **__: pytest.fail("something was timed"))
    assert gpu.main(["--device", "cpu", "--quick", "--only", "halo-layer-64"]) == 1
    assert "ends with code 3" in capsys.readouterr().err


def test_nothing_is_timed_where_a_kernel_does_not_build(monkeypatch, capsys):
    def broken(layer):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(GpuLayer, "build", broken)
    assert gpu.main([*DRY, "--only", "halo-layer-64"]) == 1
    assert "the kernels do not build: halo-layer-64: RuntimeError: no compiler" in capsys.readouterr().err


def test_a_dry_run_writes_a_whole_report(tmp_path, capsys):
    arguments = [*DRY, "--steps", "1", "--out", str(tmp_path / "dry"), "--add"]
    for part in ("gsa-layer-64", "halo-layer-64", "steps-gsa*"):
        assert gpu.main([*arguments, "--only", part]) == 0
    report = json.loads((tmp_path / "dry.json").read_text())
    assert report["dry_run"]
    assert "no result" in report["title"]
    assert [case["name"] for case in report["cases"]] == ["halo-layer-64", "gsa-layer-64"]
    halo, _ = report["cases"]
    names = [row["name"] for row in halo["candidates"]]
    assert {OURS, SDPA, FLEX, CONVOLUTION, *LAYER_PEERS[:2]} == set(names)
    assert {one["name"] for one in halo["left_out"]} == {one.name for one in BY_NAME["halo-layer-64"].candidates} - {
        *names
    }
    first = halo["candidates"][0]
    assert first["seconds"]["lowest"] <= first["seconds"]["median"] <= first["seconds"]["highest"]
    assert first["floor"]["share"] == pytest.approx(first["floor"]["seconds"] / first["seconds"]["median"])
    assert report["steps"][0]["finite_steps"] == 1
    assert (tmp_path / "dry.png").stat().st_size > 0
    assert "share of the floor" in capsys.readouterr().out


def test_a_report_of_another_machine_is_not_added_to(tmp_path, session, capsys):
    report = gpu.new_report(session)
    (tmp_path / "dry.json").write_text(json.dumps(report | {"versions": {"torch": "1.0"}}))
    assert exit_code(lambda: gpu.main([*DRY, "--out", str(tmp_path / "dry"), "--add"])) == 2
    assert "was measured with another versions" in capsys.readouterr().err


# The table


def test_a_table_without_a_report_says_not_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "RESULTS", gpu.ROOT / "benchmarks" / "nowhere")
    monkeypatch.setattr(gpu, "PAGE", tmp_path / "benchmarks.md")
    gpu.PAGE.write_text("above\n<!-- gpu -->\nold\n<!-- /gpu -->\nbelow\n")
    assert gpu.main(["--table"]) == 0
    printed = capsys.readouterr().out.strip()
    assert gpu.PAGE.read_text() == f"above\n<!-- gpu -->\n\n{printed}\n\n<!-- /gpu -->\nbelow\n"
    lines = printed.splitlines()[2:]
    assert len(lines) == sum(map(len, PROMISED.values())) + 3
    assert all(line.endswith(f"| {NOT_MEASURED} |") for line in lines)


def test_the_page_shows_the_report():
    text = gpu.PAGE.read_text(encoding="utf-8")
    assert between_markers(text, gpu.table(gpu.RESULTS / "gpu.json"), "gpu") == text


def test_a_table_shows_what_was_measured_and_what_was_not(session):
    tiny = TINY_BY_NAME["halo-layer-64"]
    few = tuple(one for one in tiny.candidates if one.name in (OURS, COMPILED, SDPA))
    measured = measured_case(Case(**{**vars(tiny), "candidates": few}), session)
    shapes = [{"picks_the_faster": True}, {"picks_the_faster": False}]
    report = gpu.new_report(session) | {"cases": [measured], "auto": shapes}
    report["steps"] = [{"model": "halonet_h1", "steps": 7, "finite_steps": 7}]
    table = markdown(report, "benchmarks/results/gpu.json")
    lines = table.splitlines()
    assert "| **7 of 7** |" in table
    assert "| 1 of 2 |" in table
    assert sum(NOT_MEASURED in line for line in lines) == sum(map(len, PROMISED.values())) - 2 + 1
    assert any(line.startswith(f"|  | {SDPA} |") and "%" in line for line in lines)
    assert any(COMPILED in line and "only eager candidates" in line for line in lines)


def test_the_yardstick_is_sized_by_measured_time(monkeypatch):
    monkeypatch.setattr(products, "LAST_SIDE", 64)
    monkeypatch.setattr(gpu_timing, "seconds_per_call", lambda run, calls: run()[0].numel() / 1e10)
    yardstick = Yardstick.sized("cpu")
    assert yardstick.copy_bytes == 2**23  # the first that takes half a millisecond at 10 GB/s
    assert yardstick.product_side == 64
    copied, product = (run()[0] for run in yardstick.runs("cpu").values())
    assert copied.numel() == 2**23
    assert product.shape == (64, 64)
