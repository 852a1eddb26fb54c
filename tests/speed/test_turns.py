"""Candidates take turns on a clock."""

import time
from dataclasses import replace

import pytest

from parhelion.speed.turns import CPU_CLOCK, in_turns

ONE_CALL = replace(CPU_CLOCK, turn_seconds=0.0)


def test_all_take_turns_and_a_different_one_begins_each_round():
    called = []
    runs = {name: (lambda name=name: called.append(name) or ()) for name in "abc"}
    samples = in_turns(runs, ONE_CALL, rounds=4, say=lambda text: None)
    assert "".join(called[-12:]) == "abcbcacababc"
    assert {name: len(values) for name, values in samples.items()} == {"a": 4, "b": 4, "c": 4}


def test_a_short_call_is_repeated_until_the_clock_can_tell():
    calls = []
    samples = in_turns({"short": lambda: calls.append(1) or time.sleep(0.004) or ()}, rounds=2, say=lambda text: None)
    assert len(calls) > 2 * 5
    assert min(samples["short"]) >= 0.004


@pytest.mark.parametrize(("seconds_for_all", "rounds"), [(1.0, 10), (0.05, 5), (1e-3, 3)])
def test_slow_candidates_take_fewer_turns_unless_their_number_is_given(monkeypatch, seconds_for_all, rounds):
    monkeypatch.setattr("parhelion.speed.turns.ALL_ROUNDS_SECONDS", seconds_for_all)
    clock = replace(ONE_CALL, seconds=lambda run, calls: [0.01])
    heard = []
    assert len(in_turns({"slow": lambda: ()}, clock, rounds=None, say=heard.append)["slow"]) == rounds
    assert heard[1].startswith(f"timing, round 1 of {rounds}, ")
    assert len(in_turns({"slow": lambda: ()}, clock, rounds=7, say=heard.append)["slow"]) == 7


def test_a_call_that_takes_long_warms_up_once(monkeypatch):
    monkeypatch.setattr("parhelion.speed.turns.WARMUP_SECONDS", 0.0)
    calls = []
    in_turns({"slow": lambda: calls.append(1) or time.sleep(0.001) or ()}, ONE_CALL, rounds=1, say=lambda text: None)
    assert len(calls) == 2
