"""What a training run did: report.json and its plot."""

import json
from pathlib import Path

from gradmill_hw.isa import Class
from gradmill_hw.regs import COUNTERS, Tier, byte_counter


__all__ = ["differences", "performance", "plot_history", "write_report"]


def performance(counters, config):
    """Utilisation and traffic from a device's counters.

    ``utilisation`` is useful MACs / (n · n · tiles · cycles), ``None`` without a clock.
    """
    names = {counter.index: counter.name for counter in COUNTERS}
    cycles = counters["cycles"]
    peak = config.n * config.n * config.tiles * cycles
    return {
        "cycles": cycles,
        "macs": counters["macs"],
        "utilisation": counters["macs"] / peak if cycles else None,
        "stash": _stash(counters, config),
        "bytes": {tier.name.lower(): {
            cls.name.lower(): {direction: counters[names[byte_counter(tier, write, cls)]]
                               for write, direction in enumerate(("read", "write"))}
            for cls in Class} for tier in Tier},
    }


def _stash(counters, config):
    """What was encoded, in values of whole rows; ``None`` if nothing was."""
    values = counters["stash_rows"] * config.n
    written = sum(counters[f"{tier.name.lower()}_write_stash_bytes"] for tier in Tier)
    return {"values": values, "bytes": written, "bits_per_value": 8 * written / values,
            "saturated_outliers": counters["stash_saturated"]} if values else None


def differences(trainer, reference):
    """Names of weights and clock-less counters in which two trained devices differ, by bits."""
    ours, theirs = trainer.model.state_dict(), reference.model.state_dict()
    weights = [name for name in ours if ours[name].tobytes() != theirs[name].tobytes()]
    ours, theirs = trainer.device.counters(), reference.device.counters()
    return weights + [counter.name for counter in COUNTERS
                      if not counter.timing and ours[counter.name] != theirs[counter.name]]


def write_report(directory, report):
    """``report.json`` in ``directory``; returns its path."""
    path = Path(directory) / "report.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    return path


def plot_history(directory, history, title):
    """``training.png`` in ``directory``: loss and accuracy by epoch; returns its path."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    epochs = range(1, len(history.train_loss) + 1)
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    left.plot(epochs, history.train_loss, marker=".", label="train, measured on the device")
    left.plot(epochs, [entry["loss"] for entry in history.validation], marker=".", label="test")
    left.set(xlabel="epoch", ylabel="loss", ylim=(0, None))
    left.legend()
    right.plot(epochs, [100 * entry["accuracy"] for entry in history.validation], marker=".")
    right.set(xlabel="epoch", ylabel="test accuracy [%]")
    figure.suptitle(title)
    path = Path(directory) / "training.png"
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path
