"""Table and pictures of the stash study: docs/stash-study.md, docs/images/stash-study.svg."""

from pathlib import Path

import numpy as np
from scipy.stats import t as student

from gradmill.report.style import INK, MUTED, drawing, svg


__all__ = ["bias", "fails", "interval", "write"]

_PAGE = Path("docs/stash-study.md")
_PICTURE = Path("docs/images/stash-study.svg")
_COLOURS = {"digits": "#4178be", "mnist": "#e8912d", "mnist1d": "#2f9e8f"}
#: The run in which formats adapt, and the widest of them.
_LONG, _WIDEST = "digits, long", "ubfp(4)/64, stochastic"

_HEAD = """\
# Which stash format for which loss

`make bench-stash` makes every number here; it appends a line for each run to
`docs/stash-study.jsonl`, goes on where it was stopped, and at the end writes this page. Runs are on
the emulator, which has the bits of the RTL (`python -m bench.stash --rtl` compares them).

Networks are 64-128-10 (digits), 196-64-64-10 (mnist) and 40-100-100-10 (mnist1d), with ReLU; SGD
with momentum 0.9, B = M = 128; epochs: {epochs}. The input
of every layer but the first is stashed, and nothing but its weight gradient is made of what comes
back.

- **bits** per stored value: bytes of class stash on the bus, by the device's counters, over
  values of whole rows; the range is over data sets.
- **QSNR** in dB of a rectified Gaussian, 65,536 values.
- **cosine**, **error** |g - g0| / |g0| of the weight gradients that the device computed for one
  virtual minibatch after an epoch, g0 without a stash; **bias**: that error of the expected
  gradient, from the mean over 16 draws of the random bits. Random rounding loses its error in the
  mean; what saturates stays (in 1 bit, the largest values of a block). Without random bits all
  error is bias.
- **accuracy** on the test samples: difference to `none` in points, with the same seed, initial
  weights and order of samples; mean and 95 % interval (Student's t) over the seeds.

"""

#: The control with the fewest bits.
_SIGNS = "mask/128"
_CONTROLS = f"""
## Negative controls
They round to nearest with too few bits, or ({_SIGNS}) take all positive values for the same. By
gradient, a control *fails* where a format with random rounding and no more bits has less than half
of its bias; there is none with as few as {_SIGNS}. By accuracy it fails where the interval lies
below 0.

| control | data set | bias | least bias of random rounding | by gradient | accuracy |
|---|---|---|---|---|---|"""


def interval(differences):
    """Mean and half width of the 95 % interval of paired differences."""
    values = np.asarray(differences, float)
    if len(values) < 2:
        return float(values.mean()), float("nan")
    return (float(values.mean()), float(student.ppf(0.975, len(values) - 1)
                                        * values.std(ddof=1) / np.sqrt(len(values))))


def bias(error, mean_error, draws):
    """Error of an expectation of which one draw has ``error`` and the mean of ``draws`` has
    ``mean_error``: what a mean still has of the variance is taken off."""
    if draws == 1:
        return mean_error
    return float(np.sqrt(max(0.0, (draws * mean_error**2 - error**2) / (draws - 1))))


def fails(own, others):
    """Whether a control with (bits, bias) ``own`` fails: one of ``others``, formats with random
    rounding, has no more bits and less than half of its bias."""
    return any(bits <= own[0] and found < own[1] / 2 for bits, found in others)


def write(lines, entries):
    """The page and its picture from all ``lines``, in the order of ``entries``."""
    rows = [row for label in entries if (row := _row(lines, label))]
    tasks = [task for task in _COLOURS if any(task in row["accuracy"] for row in rows)]
    _PICTURE.write_text(_standalone(_picture(rows, tasks)))
    _PAGE.write_text(_head(lines) + _table(rows, tasks, lines) + _controls(rows, tasks)
                     + _adaptive(lines) + _tail(lines))


def _of(lines, kind, label, task=None):
    return [line for line in lines if line["kind"] == kind and line["label"] == label
            and (task is None or line["task"] == task)]


def _of_task(lines, task):
    return [line for line in lines if line["kind"] == "training" and line["task"] == task]


def _row(lines, label):
    """What is known of one entry; ``None`` if nothing is."""
    if not any("cosine" in line or "accuracy" in line for line in lines
               if line["label"] == label and line["task"] in _COLOURS):
        return None
    row = {"label": label, "accuracy": {}, "bits": {}, "cosine": {}}
    for task in _COLOURS:
        own = {line["seed"]: line for line in _of(lines, "training", label, task)}
        base = {line["seed"]: line for line in _of(lines, "training", "none", task)}
        both = sorted(own.keys() & base.keys())
        if both:
            row["accuracy"][task] = (*interval([100 * (own[s]["accuracy"] - base[s]["accuracy"])
                                                for s in both]), len(both),
                                     100 * np.mean([own[s]["accuracy"] for s in both]))
        values = sum(line["values"] for line in own.values())
        if values:
            row["bits"][task] = 8 * sum(line["bytes"] for line in own.values()) / values
        for line in _of(lines, "gradient", label, task):
            if "cosine" in line:
                row["cosine"][task] = line["cosine"], line["error"], bias(
                    line["error"], line["mean_error"], line["draws"])
    found = (_of(lines, "qsnr", label) or [{}])[0]
    row["qsnr"] = found.get("qsnr")
    row["size"] = found.get("bits")
    return row


def _head(lines):
    runs = [line for line in lines if line["kind"] == "training"]
    epochs = {line["task"]: line["epochs"] for line in runs}
    return _HEAD.format(epochs=", ".join(
        f"{count} ({task})" for task, count in epochs.items() if task in _COLOURS))


def _table(rows, tasks, lines):
    columns = ["format", "bits", "QSNR", *(f"{task}: cosine / error / bias" for task in tasks),
               *(f"{task}: accuracy" for task in tasks)]
    text = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for row in rows:
        bits = sorted(row["bits"].values())
        cells = [row["label"], _range(bits) or (f"{row['size']:.3f}*" if row["size"] else ""),
                 "" if row["qsnr"] is None else f"{row['qsnr']:.1f}"]
        for task in tasks:
            found = row["cosine"].get(task)
            cells.append("" if found is None else "{:.3f} / {:.2f} / {:.2f}".format(*found))
        for task in tasks:
            found = row["accuracy"].get(task)
            if found is None:
                cells.append("")
            elif found[2] == 1 and row["label"] != "none":
                cells.append(f"{found[0]:+.2f} (1)")
            elif row["label"] == "none":
                cells.append(f"{found[3]:.2f} % ({found[2]} seeds)")
            else:
                cells.append(f"{found[0]:+.2f} ± {found[1]:.2f}"
                             + (f" ({found[2]})" if found[2] != len(_of(
                                 lines, "training", "none", task)) else ""))
        text.append("| " + " | ".join(cells) + " |")
    return "\n".join(text) + "\n"


def _controls(rows, tasks):
    """Which negative controls fail where, by bias and by accuracy."""
    controls = [row for row in rows
                if ("control" in row["label"] or row["label"] == _SIGNS) and row["size"]]
    random = [row for row in rows if "stochastic" in row["label"] and row["size"]]
    text, below = [], []
    for row in controls:
        for task in (task for task in tasks if task in row["cosine"]):
            own = row["size"], row["cosine"][task][2]
            others = [(other["size"], other["cosine"][task][2]) for other in random
                      if task in other["cosine"]]
            least = min((found for bits, found in others if bits <= own[0]), default=None)
            mean, half, count, _ = row["accuracy"].get(task, (np.nan, np.nan, 0, 0))
            if count > 1:
                below.append(mean + half < 0)
            text.append(f"| {row['label']} | {task} | {own[1]:.2f} | "
                        f"{'' if least is None else f'{least:.2f}'} | "
                        f"{_verdict(own, others) if least is not None else ''} | "
                        + (f"{mean:+.2f} ± {half:.2f} ({count})" if count > 1 else "")
                        + (", fails" if count > 1 and below[-1] else "") + " |")
    if not text:
        return ""
    return "\n".join([_CONTROLS, *text]) + f"""

By accuracy {sum(below)} of {len(below)} fail. Nothing but
the weight gradient is made of the narrowed copy: forward values and data gradients stay exact,
errors of one layer do not reach another, and a gradient that has lost length but kept its direction
(cosine) still descends. Rounding to nearest loses length: small values become zero. Where they
become large ones instead, direction suffers too.
"""


def _verdict(own, others):
    return "fails" if fails(own, others) else "holds"


def _adaptive(lines):
    """The adaptive run beside the format that it ends with, from the beginning."""
    own = {line["seed"]: line for line in _of(lines, "training", "adaptive", _LONG)}
    fixed = {line["seed"]: line for line in _of(lines, "training", _WIDEST, _LONG)}
    seeds = sorted(own.keys() & fixed.keys())
    if len(seeds) < 2:
        return ""
    means, shares, of_fixed, steps = [], [], [], []
    for seed in seeds:
        since = own[seed]["switches"][-1]["virtual_minibatch"]
        values, stored = (sum(entry[k] for entry in own[seed]["bits"] if entry[0] > since)
                          for k in (1, 2))
        means.append(8 * own[seed]["bytes"] / own[seed]["values"])
        shares.append(100 * means[-1] * values / (8 * stored))
        of_fixed.append(100 * own[seed]["bytes"] / fixed[seed]["bytes"])
        steps.append(", ".join(f"{entry['virtual_minibatch']} ({entry['formats']['1']})"
                               for entry in own[seed]["switches"][1:]))
    mean, half = interval([100 * (own[s]["accuracy"] - fixed[s]["accuracy"]) for s in seeds])
    columns = ("seed", "switches at virtual minibatch", "mean bits", "of the format at the end",
               f"of {_WIDEST}")
    text = ["", "## Formats that adapt",
            f"`gm.AdaptiveStash()` on digits over {own[seeds[0]]['epochs']} epochs, beside",
            f"{_WIDEST}, from the beginning: {mean:+.2f} ± {half:.2f} points of accuracy over",
            f"{len(seeds)} seeds.", "",
            f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    rows = [*zip(seeds, steps, means, shares, of_fixed, strict=True),
            ("mean", "", np.mean(means), np.mean(shares), np.mean(of_fixed))]
    text += [f"| {seed} | {step} | {bits:.3f} | {share:.0f} % | {of_fixed:.0f} % |"
             for seed, step, bits, share, of_fixed in rows]
    return "\n".join(text + _beside_fixed(lines, own)) + "\n"


def _beside_fixed(lines, own):
    """Bits and accuracy of the adaptive runs ``own`` against each fixed format of the long run."""
    text = ["", "Beside fixed formats in the same run:", "",
            "| fixed format | seeds | its bits | adaptive, share of them | adaptive, accuracy |",
            "|---|---|---|---|---|"]
    labels = dict.fromkeys(line["label"] for line in _of_task(lines, _LONG))
    for label in (label for label in labels if label != "adaptive"):
        fixed = {line["seed"]: line for line in _of(lines, "training", label, _LONG)}
        seeds = sorted(own.keys() & fixed.keys())
        if len(seeds) > 1:
            bits, mine = (np.mean([8 * runs[s]["bytes"] / runs[s]["values"] for s in seeds])
                          for runs in (fixed, own))
            mean, half = interval([100 * (own[s]["accuracy"] - fixed[s]["accuracy"])
                                   for s in seeds])
            text.append(f"| {label} | {len(seeds)} | {bits:.3f} | {100 * mine / bits:.0f} % | "
                        f"{mean:+.2f} ± {half:.2f} |")
    return [*text, "", "What adapting saves depends on the format that would have been fixed."]


def _range(bits):
    if not bits:
        return ""
    low, high = f"{bits[0]:.3f}", f"{bits[-1]:.3f}"
    return low if low == high else f"{low} to {high}"


def _tail(lines):
    seconds = sum(line["seconds"] for line in lines)
    return f"""
A number of seeds in brackets: not all have run; *: never trained, bits of whole blocks of the
rectified Gaussian by the codec's model. Encoder and decoder are one circuit for all
formats; their area stands in [stash-formats.md](stash-formats.md). The runs took
{seconds / 3600:.1f} hours, one after the other.

![Accuracy and gradient cosine over bits per stored value](images/stash-study.svg)
"""


def _picture(rows, tasks):
    with drawing(10.5, 4.2, 1, 2) as (figure, (left, right)):
        for task in tasks:
            colour, named = _COLOURS[task], task
            for row in rows:
                bits = row["bits"].get(task, row["size"])
                if bits is None:
                    continue
                hollow = "control" in row["label"]
                style = {"color": colour, "marker": "X" if hollow else "o", "ms": 5, "ls": "",
                         "label": named}
                if task in row["cosine"]:
                    right.plot(bits, 1 - row["cosine"][task][0], **style)
                if task in row["accuracy"]:
                    mean, half, *_ = row["accuracy"][task]
                    left.errorbar(bits, mean, yerr=half, elinewidth=0.8, capsize=2, **style)
                    named = None
        left.axhline(0, color=INK, lw=0.8)
        left.set(title="Accuracy against none, points, 95 % interval",
                 xlabel="bits per stored value, by the counters")
        right.set(title="1 - cosine of the weight gradients", yscale="log",
                  xlabel="bits per stored value, by the counters")
        if tasks:
            left.legend(loc="lower right")
        right.text(0.99, 0.98, "crosses: negative controls", transform=right.transAxes,
                   ha="right", va="top", color=MUTED)
        return svg(figure, "stash-study")


def _standalone(element):
    """An ``<svg>`` element as a file of its own."""
    if "xmlns=" not in element[:400]:
        element = element.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + element
