import time
from types import SimpleNamespace

import pytest
import torch

from sami.callbacks.throughput import Throughput
from sami.clock import StageClock


def test_clock_adds_up_and_forgets() -> None:
    clock = StageClock()
    for _ in range(2):
        with clock("teacher"):
            time.sleep(0.02)
    assert 0.04 <= clock.collect()["teacher"] < 1
    assert clock.collect() == {}


def test_shares_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """0.5 s in all: 0.1 s waiting, 0.2 s in the teacher, two batches of 8 images on each of 2 ranks."""
    now, logged = [100.0], {}
    monkeypatch.setattr("sami.callbacks.throughput.time.perf_counter", lambda: now[0])
    loader = SimpleNamespace(seconds_waited=3.0)
    trainer = SimpleNamespace(train_dataloader=loader, world_size=2, training=True)
    module = SimpleNamespace(
        clock=StageClock(),
        rest="student",
        batches_per_log=2,
        log=lambda name, value, **_: logged.update({name: value}),
        log_dict=logged.update,
    )
    callback = Throughput()
    callback.on_train_start(trainer, module)
    with module.clock("teacher"):
        now[0] += 0.2
    now[0], loader.seconds_waited = now[0] + 0.3, loader.seconds_waited + 0.1
    for batch_idx in range(2):
        callback.on_train_batch_end(trainer, module, None, {"image": torch.zeros(8)}, batch_idx)
    assert logged["speed/images_per_second"] == pytest.approx(64)
    assert logged["speed/data"] == pytest.approx(0.2) and logged["speed/teacher"] == pytest.approx(0.4)
    assert logged["speed/student"] == pytest.approx(0.4)
