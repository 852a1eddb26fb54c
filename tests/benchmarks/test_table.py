"""The repository's benchmarks: what they promise, and how a report becomes a table."""

import json
import sys
from dataclasses import replace

import pytest
import torch
from cases import CASES, CONVOLUTION, OURS, QUANTITIES, SIDES
from cpu import reached
from peers import Layer
from table import DRAWN, ROOT, SHORT, between_markers, drawn, main, markdown, short_markdown

from parhelion.errors import UserError

pytestmark = pytest.mark.usefixtures("one_thread")
BEGIN, END = "<!-- benchmark -->", "<!-- /benchmark -->"

# The table of the issue 'Fast on the CPU', in its order: bound, aim.
PROMISED = {
    "halo-layer-forward": [(1.0, 0.6), (6, 10)],
    "halo-layer-backward": [(1.0, 0.7), (4, 6)],
    "halonet-h1-float32": [(6, 9), (1.2, 1.8)],
    "halonet-h1-bfloat16": [(5, 9), (2, 4)],
    "gsa-resnet50": [(0.85, 1.15)],
    "gsa-module-56": [(1.5, 1.0)],
    "halonet-h1-training": [(4, 6), (0.5, 0.35)],
    "accelerate-halonet_h1": [(5, 8)],
    "accelerate-halonet50ts": [(1.15, 1.3)],
    "halo-per-pixel": [(1.15, None)],
    "gsa-per-pixel": [(1.0, None)],
}
BY_NAME = {case.name: case for case in CASES}


def row(name, seconds, batch=8, memory=None):
    return {
        "name": name,
        "batch": batch,
        "seconds": {"median": seconds, "lower_quartile": seconds, "upper_quartile": seconds, "rounds": 1},
        "images_per_second": batch / seconds,
        "share_of_matrix_product": 0.5,
        "peak_memory_mib": memory,
    }


def test_every_promise_has_a_case():
    found = {case.name: [(target.bound, target.aim) for target in case.targets] for case in CASES if case.targets}
    assert found == PROMISED


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_target_names_candidates_of_its_case(case):
    names = [candidate.name for candidate in case.candidates]
    assert len(set(names)) == len(names)
    for target in case.targets:
        assert target.quantity in QUANTITIES
        assert {*target.ours, *target.over} <= set(names)
        assert target.ours[0] == names[0]


def test_a_promise_is_kept_from_the_side_that_is_better():
    rows = [row(OURS, 0.5), row(CONVOLUTION, 1.0), row("timm HaloAttn", 4.5)]
    time, speed = reached(BY_NAME["halo-layer-forward"], rows)
    assert (time["reached"], time["bound_met"], time["aim_met"]) == (0.5, True, True)
    assert (speed["reached"], speed["bound_met"], speed["aim_met"]) == (9, True, False)


def test_what_was_not_measured_is_not_promised():
    speed, memory = reached(BY_NAME["halonet-h1-training"], [row(OURS, 1.0), row("timm halonet_h1", 5.0)])
    assert speed["reached"] == 5
    assert (memory["reached"], memory["bound_met"]) == (None, None)
    (alone,) = reached(BY_NAME["gsa-module-56"], [row(OURS, 1.0)])
    assert alone["reached"] is None


def test_time_that_doubles_with_the_side_grows_with_exponent_one():
    sides = [row(name, 2.0**doubled) for doubled, name in enumerate(SIDES)]
    assert reached(BY_NAME["gsa-per-pixel"], sides)[0]["reached"] == pytest.approx(1.0)
    assert reached(BY_NAME["halo-per-pixel"], sides)[0]["reached"] == pytest.approx(8.0)
    for name in ("gsa-per-pixel", "halo-per-pixel"):
        assert reached(BY_NAME[name], sides[1:])[0]["reached"] is None


@pytest.mark.parametrize("name", ["halo-layer-backward", "gsa-module-28"])
def test_layers_agree_with_float64_and_a_wrong_one_is_found_out(name):
    for layer in BY_NAME[name].candidates:
        if layer.why_not() is None and not layer.compiled:
            small = replace(layer, batch=1, side=16) if "halo" in name else replace(layer, batch=1)
            answer = list(small.build()())
            assert small.problem(answer) is None, layer.name
            assert small.multiply_adds() > 0
            answer[0] = answer[0] * 1.001
            assert "errs by" in small.problem(answer)
            assert isinstance(small, Layer)


def test_a_report_becomes_a_table_between_the_markers():
    case = BY_NAME["gsa-module-56"]
    rows = [row(OURS, 0.010), row(CONVOLUTION, 0.008)]
    measured = {
        "title": case.title,
        "candidates": rows,
        "left_out": [{"name": "gsa-pytorch", "reason": "not installed: gsa_pytorch"}],
        "targets": reached(case, rows),
    }
    report = {
        "time": "2026-01-02T03:04:05+00:00",
        "machine": {"cpu": "Some CPU", "capability": "AVX2", "threads": 2, "cores": 4, "gpus": []},
        "versions": {"torch": torch.__version__, "openvino": None},
        "cases": [measured],
    }
    table = markdown(report, "benchmarks/results/cpu.json")
    assert "| ≤ 1.5 | ≤ 1 | **1.25** |" in table
    assert "| gsa-pytorch | not installed: gsa_pytorch |" in table
    assert "Some CPU (AVX2), 2 threads of 4 cores" in table
    assert "openvino" not in table
    text = between_markers(f"before\n{BEGIN}\nold\n{END}\nafter\n", table)
    assert text.startswith(f"before\n{BEGIN}\n\n| case")
    assert text.endswith(f"\n\n{END}\nafter\n")
    assert between_markers(text, table) == text
    with pytest.raises(UserError, match="once each"):
        between_markers("no markers here", table)


REPORT = ROOT / "benchmarks" / "results" / "cpu.json"
PAGES = (("README.md", "speed"), ("docs/benchmarks.md", "benchmark"))


def test_the_pages_show_the_report(tmp_path, monkeypatch):
    (tmp_path / "docs" / "images").mkdir(parents=True)
    for page, name in PAGES:
        (tmp_path / page).write_text(f"above\n<!-- {name} -->\nold\n<!-- /{name} -->\nbelow\n", encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["table.py", str(REPORT), "--root", str(tmp_path)])
    main()
    for page, name in PAGES:
        begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        shown, made = ((root / page).read_text(encoding="utf-8") for root in (ROOT, tmp_path))
        assert shown.partition(begin)[2].partition(end)[0] == made.partition(begin)[2].partition(end)[0], page
    assert (tmp_path / "docs" / "images" / "speed.png").read_bytes().startswith(b"\x89PNG")


def test_the_report_says_of_every_target_what_its_rows_reach():
    for case in json.loads(REPORT.read_text(encoding="utf-8"))["cases"]:
        assert reached(BY_NAME[case["name"]], case["candidates"]) == case["targets"]


def test_the_readme_and_the_chart_name_cases_and_candidates_that_exist():
    report = json.loads(REPORT.read_text(encoding="utf-8"))
    assert {name for name, _, _ in SHORT} | set(DRAWN) <= set(BY_NAME)
    assert all(number < len(BY_NAME[name].targets) for name, number, _ in SHORT)
    for case in drawn(report)["cases"]:
        assert [row["name"] for row in case["candidates"]] == list(DRAWN[case["name"]])
    assert short_markdown(report).count("not measured") == 0
    assert short_markdown(report | {"cases": []}).count("not measured") == len(SHORT) == 6
