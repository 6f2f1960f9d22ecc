"""Turns the records of ``correctness.py`` into tables, the bars beside what was measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from benchmark_files import Record
from correctness_peers import CLEAN, CONSERVATIVE, FLIPS, HARD, SOFT, SWEEP
from frontier_statistics import NONE, error, markdown, mean, spread, values

COLUMNS = ("repair rate", "shifted accuracy", "clean accuracy", "negative flips", "guard flips")
KEYS = ("repair rate", "shifted accuracy", "clean accuracy", "flips")
OURS = (
    "SQP, all errors",
    "SQP, typed error rate",
    "SQP at 50 %, typed error rate",
    "SQP at 95 %, typed error rate",
    "SQP, settings by hand",
)
TUNED = ("L-BFGS", "Adam")
ALL_LAYERS = "Adam, all layers, no sweep"
Check = tuple[str, Callable[[Record], float]]
BARS: dict[str, tuple[str, tuple[Check, ...]]] = {  # by how much a run falls short; not at all where negative
    SOFT: (
        "repair rate >= 0.63, shifted accuracy >= 0.927, clean >= 0.986, <= 1 s",
        (
            ("repair rate", lambda r: 0.63 - r["repair rate"]),
            ("shifted accuracy", lambda r: 0.927 - r["shifted accuracy"]),
            ("clean accuracy", lambda r: CLEAN - r["clean accuracy"]),
            ("seconds", lambda r: r["cpu seconds"] - 1.0),
        ),
    ),
    CONSERVATIVE: (
        "repair rate >= 0.45, negative flips <= 0.004",
        (("repair rate", lambda r: 0.45 - r["repair rate"]), ("flips", lambda r: r["flips"] - FLIPS)),
    ),
    HARD: ("0 flips on the guard set", (("guard flips", lambda r: r["flipped here"]),)),
}


def report(records: Sequence[Record], samples: Sequence[Record]) -> str:
    """Everything as markdown."""
    seconds = mean(values(records, "seconds of the features")) if records else math.nan
    splits = 1 + max((r["split"] for r in records), default=-1)
    before = [mean(values(records, f"{key} accuracy before")) if records else math.nan for key in ("shifted", "clean")]
    lines = [HEADER.format(splits=splits, seconds=seconds, shifted=before[0], clean=before[1])]
    if records:
        lines += [bars_table(records), against_table(records), *(mode_table(records, mode) for mode in BARS)]
    if any(record["mode"] == SWEEP for record in records):
        lines.append(sweep_table(records))
    if samples:
        lines.append(samples_table(samples))
    return "\n\n".join([*lines, "## Reading", *reading(records, samples)]) + "\n"


def runs_of(records: Sequence[Record], mode: str, method: str) -> list[Record]:
    """In the order of the splits."""
    found = [r for r in records if r["mode"] == mode and r["method"] == method]
    return sorted(found, key=lambda r: r["split"])


def verdict(mode: str, runs: Sequence[Record]) -> str:
    """Met, or what is missed; what is missed by less than a standard error is said to be so."""
    missed = []
    for name, short in BARS[mode][1]:
        lacking = [short(run) for run in runs]
        if mean(lacking) > 1e-9:
            missed.append(name + (" (within its error)" if mean(lacking) <= error(lacking) else ""))
    return f"**missed: {', '.join(missed)}**" if missed else "met"


def bars_table(records: Sequence[Record]) -> str:
    """What is asked for."""
    head = ["mode", "bar", "method", *COLUMNS]
    body = []
    for mode, (text, _) in BARS.items():
        for method in (*OURS, *TUNED):
            runs = runs_of(records, mode, method)
            if runs:
                body.append([mode, text, method, *cells(runs), seconds_of(runs), verdict(mode, runs)])
    return markdown("Bars", [*head, "CPU s", "verdict"], body)


def cells(runs: Sequence[Record]) -> list[str]:
    """Measures on the held-out half, and flips among the samples to keep."""
    found = [spread(values(runs, key), ".4f") for key in KEYS]
    return [*found, f"{mean(values(runs, 'flipped here')):.1f}"]


def seconds_of(runs: Sequence[Record]) -> str:
    """Of the call; of a sweep, of one run and of all."""
    total = f"{mean(values(runs, 'cpu seconds')):.2f}"
    if "seconds of one run" not in runs[0]:
        return total
    return f"{mean(values(runs, 'seconds of one run')):.2f} a run, {total} the sweep"


def mode_table(records: Sequence[Record], mode: str) -> str:
    """Every method in one mode."""
    head = ["method", *COLUMNS, "CPU s"]
    methods = dict.fromkeys(r["method"] for r in records if r["mode"] == mode)
    runs = {method: runs_of(records, mode, method) for method in methods}
    body = [[method, *cells(own), seconds_of(own)] for method, own in runs.items()]
    return markdown(f"Mode: {mode}", head, body)


def against_table(records: Sequence[Record]) -> str:
    """The library less each tuned peer, split by split."""
    head = ["mode", "method", "less", "repair rate", "shifted accuracy", "clean accuracy", "negative flips"]
    body = []
    for mode in BARS:
        for method in OURS:
            for peer in (*TUNED, ALL_LAYERS):
                ours, theirs = ({r["split"]: r for r in runs_of(records, mode, name)} for name in (method, peer))
                both = sorted(set(ours) & set(theirs))
                if both:
                    cells = [spread([ours[s][key] - theirs[s][key] for s in both], "+.4f") for key in KEYS]
                    body.append([mode, method, peer, *cells])
    return markdown("Against tuned fine-tuning: differences", head, body)


def sweep_table(records: Sequence[Record]) -> str:
    """Every setting of the sweeps: what the best choice could have been."""
    body = []
    own = [r for r in records if r["mode"] == SWEEP]
    for method, setting in dict.fromkeys((r["method"], r["setting"]) for r in own):
        runs = [r for r in own if (r["method"], r["setting"]) == (method, setting)]
        body.append([method, setting, *cells(runs), seconds_of(runs)])
    return markdown("Sweeps: every setting", ["method", "setting", *COLUMNS, "CPU s"], body)


def samples_table(samples: Sequence[Record]) -> str:
    """Time against the number of samples."""
    head = ["samples", "method", "CPU s", "one evaluation, CPU s", "ratio", "accuracy", "loss"]
    body = []
    for r in samples:
        ratio = r["cpu seconds"] / r["floor"]
        row = [f"{r['samples']:,}", r["method"], f"{r['cpu seconds']:.3f}", f"{r['floor']:.4f}", f"{ratio:.1f}"]
        body.append([*row, f"{r['accuracy before']:.4f} → {r['accuracy']:.4f}", f"{r['loss']:.4f}"])
    for method in dict.fromkeys(r["method"] for r in samples):
        own = [r for r in samples if r["method"] == method]
        body.append(["slope of log time", method, f"{slope(own):.2f}", NONE, NONE, NONE, NONE])
    return markdown("Samples: 10 classes, 1,000 weights of a last layer, generated", head, body)


def slope(samples: Sequence[Record]) -> float:
    """Of log time over log samples; 1 is linear."""
    x, y = (np.log(values(samples, key)) for key in ("samples", "cpu seconds"))
    return float(np.polyfit(x, y, 1)[0]) if len(samples) > 1 else math.nan


def reading(records: Sequence[Record], samples: Sequence[Record]) -> list[str]:
    """What the figures say, in words made from them."""
    lines = []
    for mode in BARS:
        said = [f"{m}: {verdict(mode, runs_of(records, mode, m))}" for m in OURS if runs_of(records, mode, m)]
        if said:
            lines.append(f"Mode {mode}. " + "; ".join(said) + ".")
    for method in dict.fromkeys(r["method"] for r in samples if "SQP" in r["method"]):
        own = [r for r in samples if r["method"] == method]
        for one in own:
            if one["samples"] == 100_000:
                met = "met" if one["cpu seconds"] <= 1.1 else "**missed**"
                text = f"{method}, 100,000 samples: {one['cpu seconds']:.2f} CPU s against the bar of 1.1, {met}; "
                lines.append(text + f"time grows with the power {slope(own):.2f} of the samples.")
    return lines


HEADER = """# Repair of wrong answers

Made by `python benchmarks/correctness.py`; every run in `correctness.csv` and `correctness_samples.csv`. The MNIST
network conv4 of the AutoRIC paper, last layer (1,010 weights). Inputs are shifted by a rotation of up to 45 degrees
and noise of 0.2; the corruption behind the bars is only known as "rotated/noisy", these values give the accuracy that
it had. Fitted on one half of the test images, clean and shifted; figures from the other half, where the network has
an accuracy of {shifted:.4f} on shifted and {clean:.4f} on clean images. Means over {splits} splits with standard
errors. One thread; CPU seconds of the call on the last layer given its inputs, which one pass through the network
makes in {seconds:.2f} s; for a sweep those of all its runs, the choice and the last fit. "Negative flips": share of
the clean held-out images that were right and are wrong now. "Guard flips": clean images of the repair half that were
right and are wrong now.

Modes: `soft` allows a clean error rate of 0.014; `conservative` a flip rate of 0.004; `hard` no flip in the repair
half, with a margin of 1 logit. "All errors" asks for no error on shifted inputs, "typed" for an error rate of 0.073,
in the conservative mode of 0.09, which is what a repair rate of 0.45 leaves. "At 50 %" has bounds met on average.
Sweeps choose on a quarter of the repair half: the most accurate on shifted inputs with that clean accuracy; the
highest repair rate with those flips; the highest repair rate with the fewest flips among the fitted samples. They fit
anew on the whole half with what was chosen. "Settings by hand": no closeness to the original network but in the
conservative mode, more ridge, more steps, no lead; there the clean samples count five times; chosen with held-out
figures in sight, to show what the formulation can do, not what it does by itself; compare it with the best setting in
the table of sweeps. The default of `lead`, an eighth for so many weights, was chosen among 0, 1/32, 1/16 and 1/8 on
divisions 20 to 23 of the same images, by their held-out figures; that of `closeness` on other data, but for 0.4 beside
a bound on flips, chosen among 0, 0.15, 0.3, 0.4 and 0.5 on divisions 20 to 25 and with those of the comparison in
sight."""
