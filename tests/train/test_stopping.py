import os
import signal
import threading
import time

import pytest

from parhelion.train import stopping
from parhelion.train.stopping import Stopped, StopRequest


def signalled_soon() -> threading.Timer:
    timer = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    return timer


def test_a_process_that_is_asked_to_stop_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "PATIENCE_SECONDS", 0.1)
    for asked_before in (False, True):
        with StopRequest() as stop:
            if asked_before:
                os.kill(os.getpid(), signal.SIGTERM)
            else:
                signalled_soon()
            with pytest.raises(Stopped, match="stopped while waiting for images") as stopped, stop.waiting():
                time.sleep(60)
            assert stopped.value.code == 143


def test_images_that_arrive_in_time_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "PATIENCE_SECONDS", 0.1)
    with StopRequest() as stop:
        with stop.waiting():
            os.kill(os.getpid(), signal.SIGTERM)
        # The update that they are for may take its time.
        time.sleep(0.3)
        assert stop.asked
