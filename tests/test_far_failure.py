"""Far memory fails in layer-to-layer execution: training stops, and nothing is lost."""

from functools import partial

import pytest

import gradmill as gm
from gradmill_hw.isa import Queue
from gradmill_hw.regs import Tier
from tests.test_layer_to_layer import LARGE, SMALL, result, samples, trainer


def refuse(device, region, *, writes):
    """Let far memory fail for ``region``: the bus, or, where there is none, the windows of far
    memory. Returns what repairs it."""
    first, end = region.address, region.address + region.nbytes
    if hasattr(device, "inject"):
        from gradmill.verilator.backend import Fault
        device.inject(Fault(Tier.FAR, first, end - 1, writes=writes))
        return device.clear_faults
    grant(device, 1, end, device.size(Tier.FAR))
    grant(device, 2, first, end, read=int(writes))
    grant(device, 0, 0, first)
    return lambda: grant(device, 0, 0, device.size(Tier.FAR))


def silence(device, monkeypatch):
    """Let far memory not answer the host either."""
    def of_near(original, tier, *rest, **options):
        assert tier is Tier.NEAR, "far memory has failed"
        return original(tier, *rest, **options)

    for name in ("read_memory", "write_memory"):
        monkeypatch.setattr(device, name, partial(of_near, getattr(device, name)))


def grant(device, number, base, limit, read=1):
    name = f"far_window{number}"
    device.write_pair(f"{name}_base", base)
    device.write_pair(f"{name}_limit", limit)
    device.write_register(f"{name}_control", read=read, write=int(number != 2))


@pytest.mark.parametrize("backend", [
    "emulator", pytest.param("verilator", marks=pytest.mark.rtl)])
@pytest.mark.parametrize("writes", [False, True])
def test_a_failing_far_memory_stops_at_a_boundary_and_nothing_is_lost(backend, writes, tmp_path,
                                                                      monkeypatch):
    widths, size, sub, count = (32,) * 9, 16, 8, 48
    x, y = samples(widths, count)
    expected = result(LARGE, widths, size, sub, count, epochs=2)[0]
    with gm.open(backend, SMALL, near_bytes=1 << 21, far_bytes=1 << 21) as device:
        made, repair = trainer(device, widths, size, sub, layer_to_layer=True), []

        def fail(running, batch, batches):
            if (running.epoch, batch) == (1, 0):
                region = made._lowering.regions[1]["weight"]  # those above have been updated
                repair.append(refuse(device, region, writes=writes))
                silence(device, monkeypatch)

        with pytest.raises(gm.FarMemoryError, match="training stopped") as stopped:
            made.fit(x, y, epochs=2, checkpoint=tmp_path / "kept", on_step=fail)
        assert stopped.value.far
        assert stopped.value.queue is (Queue.STORE if writes else Queue.LOAD)
        assert (made.epoch, made.step) == (1, 1)
        repair[0]()
        monkeypatch.undo()
        made.resume(x, y)
        found = made.model.state_dict()
    with gm.open("emulator", SMALL) as device:
        again = gm.Trainer.load(tmp_path / "kept", device, layer_to_layer=True)
        assert (again.epoch, again.step) == (1, 1)
        again.resume(x, y)
    for name, values in expected.items():
        assert found[name].tobytes() == values.tobytes(), name
        assert again.model.state_dict()[name].tobytes() == values.tobytes(), name


def test_far_memory_may_fail_in_validation_too(tmp_path, monkeypatch):
    widths, size, sub, count = (32,) * 9, 16, 8, 48
    x, y = samples(widths, count)
    data = {"validation_data": (x[:16], y[:16])}
    with gm.open("emulator", SMALL) as device:
        undisturbed = trainer(device, widths, size, sub, layer_to_layer=True)
        undisturbed.fit(x, y, epochs=2, **data)
        expected = undisturbed.model.state_dict()
    with gm.open("emulator", SMALL, near_bytes=1 << 21, far_bytes=1 << 21) as device:
        made, repair = trainer(device, widths, size, sub, layer_to_layer=True), []

        def fail(running, batch, batches):
            if (running.epoch, batch + 1) == (0, batches):
                region = made._lowering.memory.weights[5]
                repair.append(refuse(device, region, writes=False))
                silence(device, monkeypatch)

        with pytest.raises(gm.FarMemoryError, match="prediction stopped"):
            made.fit(x, y, epochs=2, checkpoint=tmp_path / "kept", on_step=fail, **data)
        assert (made.epoch, made.step) == (0, 3)
        repair[0]()
        monkeypatch.undo()
        made.resume(x, y, **data)
    with gm.open("emulator", SMALL) as device:
        again = gm.Trainer.load(tmp_path / "kept", device, layer_to_layer=True)
        assert (again.epoch, again.step) == (0, 3)
        again.resume(x, y, **data)
    for found in (made, again):
        assert found.history == undisturbed.history
        for name, values in expected.items():
            assert found.model.state_dict()[name].tobytes() == values.tobytes(), name
