import json
import struct
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from parhelion.errors import UserError
from parhelion.train import trackers
from parhelion.train.trackers import Trackers, check_trackers, open_trackers

CONFIG = {"model": "gsa_tiny", "crop_scale": (0.5, 1.0), "data_dir": None, "lr": 0.5}
needs_tensorboard = pytest.mark.skipif(find_spec("tensorboard") is None, reason="the package tensorboard is absent")
needs_wandb = pytest.mark.skipif(find_spec("wandb") is None, reason="the package wandb is absent")


def row(step: int) -> dict[str, float]:
    return {"loss": 1 / step, "top1": step / 16}


def track(folder: Path, name: str, steps: range, kept: range = range(0)) -> None:
    past = [(step, row(step)) for step in kept]
    with open_trackers([name], folder, run_name="first", config=CONFIG, past=past) as opened:
        for step in steps:
            opened.add(row(step), step)
    opened.close()
    if name == "wandb":
        # Its own process may still be writing; this waits for its end, as the end of ours does.
        import wandb

        wandb.teardown()


def tensorboard_points(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return {name: [(event.step, event.value) for event in events.Scalars(name)] for name in events.Tags()["scalars"]}


def wandb_records(file: Path) -> Iterator[bytes]:
    """The records of a .wandb file, which has LevelDB's log format after a header of seven bytes."""
    data, at, record = file.read_bytes(), 7, b""
    while at + 7 <= len(data):
        _, length, kind = struct.unpack_from("<IHB", data, at)
        if kind:
            record += data[at + 7 : at + 7 + length]
            at += 7 + length
        # 1: whole, 4: the last part. A block has 32 KiB, and no header crosses its end.
        if kind in (1, 4):
            yield record
            record = b""
        if kind == 0:
            at += -at % 32768 or 32768
        elif -at % 32768 < 7:
            at += -at % 32768


def wandb_points(folder: Path) -> list[dict[str, float]]:
    from wandb.proto.wandb_internal_pb2 import Record

    files = sorted(folder.glob("wandb/offline-run-*/*.wandb"), key=lambda file: file.stat().st_mtime)
    found = []
    for data in (data for file in files for data in wandb_records(file)):
        record = Record.FromString(data)
        if record.WhichOneof("record_type") == "history":
            values = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
            found.append({name: value for name, value in values.items() if name in ("loss", "top1", "_step")})
    return found


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    import wandb

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    wandb.teardown()
    yield
    wandb.teardown()


@needs_tensorboard
def test_tensorboard_shows_every_number_and_the_recipe(tmp_path: Path) -> None:
    track(tmp_path, "tensorboard", range(1, 4))
    assert tensorboard_points(tmp_path) == {
        "loss": [(step, pytest.approx(1 / step)) for step in range(1, 4)],
        "top1": [(step, step / 16) for step in range(1, 4)],
    }
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b'"model": "gsa_tiny"' in events.read_bytes()


@needs_tensorboard
def test_a_run_that_goes_on_leaves_each_point_once_in_tensorboard(tmp_path: Path) -> None:
    track(tmp_path, "tensorboard", range(1, 6))
    track(tmp_path, "tensorboard", range(3, 8), kept=range(1, 3))
    assert [step for step, _ in tensorboard_points(tmp_path)["loss"]] == [1, 2, 3, 4, 5, 6, 7]
    # Interrupted before anything that is kept.
    track(tmp_path, "tensorboard", range(1, 3))
    assert [step for step, _ in tensorboard_points(tmp_path)["loss"]] == [1, 2]


@needs_tensorboard
def test_tensorboard_keeps_all_epochs_where_the_clock_was_set_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    track(tmp_path, "tensorboard", range(1, 6))
    monkeypatch.setattr(time, "time", lambda: now - 86400)
    track(tmp_path, "tensorboard", range(5, 8), kept=range(1, 5))
    assert tensorboard_points(tmp_path)["top1"] == [(step, step / 16) for step in range(1, 8)]
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b'"model": "gsa_tiny"' in events.read_bytes()


@needs_wandb
@pytest.mark.usefixtures("offline")
def test_wandb_works_offline_and_a_run_that_goes_on_leaves_each_point_once(tmp_path: Path) -> None:
    track(tmp_path, "wandb", range(1, 6))
    identity = (tmp_path / "wandb_id.txt").read_text()
    assert [point["_step"] for point in wandb_points(tmp_path)] == [1, 2, 3, 4, 5]
    track(tmp_path, "wandb", range(3, 8), kept=range(1, 3))
    assert wandb_points(tmp_path) == [row(step) | {"_step": step} for step in range(1, 8)]
    assert (tmp_path / "wandb_id.txt").read_text() == identity
    assert {file.stem for file in tmp_path.glob("wandb/*/*.wandb")} == {f"run-{identity.strip()}"}


@needs_wandb
def test_wandb_without_login_is_one_sentence_and_asks_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("builtins.input", lambda *words: pytest.fail("a question"))
    wandb.teardown()
    with pytest.raises(UserError, match="run `wandb login` once, or set WANDB_MODE=offline"):
        open_trackers(["wandb"], tmp_path / "run", run_name="first", config={})
    assert not (tmp_path / "run").exists()
    monkeypatch.setenv("WANDB_MODE", "oflfine")
    wandb.teardown()
    with pytest.raises(UserError, match="such as WANDB_MODE, cannot be used") as caught:
        check_trackers(["wandb"])
    assert "\n" not in str(caught.value)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    wandb.teardown()
    check_trackers(["wandb"])
    wandb.teardown()


@pytest.mark.parametrize(
    ("name", "sentence"),
    [("tensorbord", "did you mean tensorboard"), ("wandbb", "did you mean wandb"), ("zz", "are tensorboard, wandb")],
)
def test_an_unknown_tracker_gets_the_nearest_names(name: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        check_trackers([name])


@pytest.mark.parametrize("name", trackers.NAMES)
def test_a_missing_package_is_named_with_the_command(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=f"needs the package {name}: pip install 'parhelion\\[track\\]'"):
        check_trackers([name])


def test_without_names_nothing_is_written(tmp_path: Path) -> None:
    with open_trackers([], tmp_path, run_name="first", config={}) as opened:
        opened.add(row(1), 1)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_one_sentence() -> None:
    class Full:
        name = "tensorboard"

        def log(self, values: dict[str, float], step: int) -> None:
            raise OSError(28, "No space left on device")

        def finish(self) -> None:
            pass

    with Trackers([Full()]) as opened, pytest.raises(UserError, match="tensorboard cannot write: No space left"):
        opened.add(row(1), 1)


@needs_tensorboard
def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "tensorboard").write_text("")
    with pytest.raises(UserError, match=f"cannot write {tmp_path / 'tensorboard'}"):
        track(tmp_path, "tensorboard", range(1))
