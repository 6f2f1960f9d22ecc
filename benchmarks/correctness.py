"""Repair of wrong answers on shifted inputs, held-out, next to tuned fine-tuning; and how its time grows with samples.

    python benchmarks/correctness.py [--quick] [--parts ...] [--methods ...] [--splits N] [--read] [--out FOLDER]

Writes ``correctness.md`` and every run to ``correctness.csv`` and ``correctness_samples.csv``. ``--methods`` and
``--parts`` run some anew and take the other rows from the CSV files; ``--read`` takes all from there. The methods
``repairopt`` and ``peers`` stand for all of these. Needs ``REPAIROPT_DATA``.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import environment  # noqa: F401 (before numpy and torch)
import torch
from benchmark_files import Record, read_csv, write_csv
from correctness_data import Digits, network, split_digits
from correctness_peers import (
    CLEAN,
    CONSERVATIVE,
    FLIPS,
    HARD,
    SOFT,
    SWEEP,
    Sweep,
    Tried,
    choose,
    outcome,
    tune,
    tune_all_layers,
)
from correctness_samples import measure_samples
from correctness_tables import report
from torch import nn

from repairopt import SQP, Bound, ErrorRate, FlipRate, KeepLabels, Settings, solve_repair

SHIFTED = 0.927  # accuracy on shifted inputs that the soft mode is asked for
TYPED = {SOFT: 1 - SHIFTED, CONSERVATIVE: 0.09, HARD: 1 - SHIFTED}  # error rates; a repair rate of 0.45 leaves 0.09
MARGIN = 1.0  # logits by which kept samples must lead, in the hard mode
MODES = (SOFT, CONSERVATIVE, HARD)
TEXT = ("mode", "method", "setting")


@dataclass(frozen=True, eq=False)
class Setting:
    """What a method gets: the whole network, its last layer, and the features that enter it.

    Attributes:
        model: The network.
        layer: Its last layer.
        images: The repair half.
        here: Features of the repair half.
        there: Features of the held-out half.
        split: Which division.
        share: Of each half that is used.
        seconds: CPU seconds that the features of the repair half took.
    """

    model: nn.Sequential
    layer: nn.Module
    images: Digits
    here: Digits
    there: Digits
    split: int
    share: float
    seconds: float

    def divided(self) -> tuple[Digits, Digits]:
        """Three quarters to fit on, and a quarter to choose on."""
        order = torch.randperm(len(self.here.labels), generator=torch.Generator().manual_seed(1000 + self.split))
        cut = 3 * len(order) // 4
        return self.here.part(order[:cut]), self.here.part(order[cut:])


@dataclass(frozen=True, eq=False)
class Run:
    """What a method returned in one mode.

    Attributes:
        mode: ``"soft"``, ``"conservative"`` or ``"hard"``.
        layer: The repaired last layer, or None with ``network``.
        seconds: CPU seconds of the call; of a sweep, all of it, the choice, and the last fit.
        network: The repaired network where more than the last layer ran or changed.
        extra: Anything more for the CSV file.
    """

    mode: str
    layer: nn.Module | None
    seconds: float
    network: nn.Module | None = None
    extra: dict[str, Any] = field(default_factory=dict)


Method = Callable[[Setting], Iterator[Run]]


@lru_cache(maxsize=2)
def setting(split: int, share: float) -> Setting:
    """Networks and data of a division; features are computed once."""
    model = network()
    trunk, layer = model[:-1], model[-1]
    images, others = split_digits(split, share)
    with torch.no_grad():
        started = time.process_time()
        here = Digits(trunk(images.clean), trunk(images.shifted), images.labels)
        seconds = time.process_time() - started
        there = Digits(trunk(others.clean), trunk(others.shifted), others.labels)
    return Setting(model, layer, images, here, there, split, share, seconds)


def statement(mode: str, data: Digits, fix: float) -> tuple[Any, list[Any]]:
    """Goal and constraints of a mode: as many errors as possible with ``fix`` 0, else a typed error rate."""
    goal = ErrorRate(data.shifted, data.labels, target=fix, name="errors on shifted inputs")
    if mode == SOFT:
        clean = ErrorRate(data.clean, data.labels, target=1 - CLEAN, name="errors on clean inputs")
        return goal, [Bound(clean, limit=1 - CLEAN)]
    if mode == CONSERVATIVE:
        return goal, [Bound(FlipRate(data.clean, data.labels, target=FLIPS), limit=FLIPS)]
    return goal, [KeepLabels(data.clean, data.labels, tolerance=0.0, margin=MARGIN)]


@dataclass(frozen=True)
class Ours:
    """How the library is called in a mode.

    Attributes:
        fix: Typed error rate on shifted inputs; 0 asks for as many right answers as possible.
        method: With its settings.
        keep: How often the clean samples stand in the data whose loss is kept small.
    """

    fix: float
    method: SQP
    keep: int = 1


def sqp(ours: Ours | dict[str, Ours], *, whole: bool = False) -> Method:
    """The library's method: one call for each mode, on the last layer given its inputs, or on the whole network.

    With a confidence it is told on how many samples the bounds will be measured, by way of the held-out data.
    """

    def run(given: Setting) -> Iterator[Run]:
        data = given.images if whole else given.here
        for mode in (SOFT,) if whole else MODES:
            how = ours[mode] if isinstance(ours, dict) else ours
            goal, constraints = statement(mode, data, how.fix)
            twin, twins = statement(mode, given.there, how.fix)
            started = time.process_time()
            repair = solve_repair(
                given.model if whole else given.layer,
                goal,
                constraints,
                data=[(torch.cat([data.clean] * how.keep), data.labels.repeat(how.keep)), (data.shifted, data.labels)],
                held_out=[] if how.method.confidence is None else [twin, *twins],
                weights="last",
                method=how.method,
                settings=Settings(seed=given.split),
            )
            seconds = time.process_time() - started
            extra = {"rounds": len(repair.report.rounds), "met here": float(repair.report.verdict == "repaired")}
            layer = repair.model[-1] if whole else repair.model
            yield Run(mode, layer, seconds, extra=extra)

    return run


def tuned(sweep: Sweep) -> Method:
    """A sweep: for each mode what is chosen on the validation part, fitted anew on the whole repair half."""

    def run(given: Setting) -> Iterator[Run]:
        fit, validation = given.divided()
        tries: list[Tried] = [one for each in sweep.settings() for one in tune(given.layer, fit, sweep, each)]
        each = [tried.seconds for tried in tries if tried.stop == max(sweep.stops)]
        for mode in MODES:
            started = time.process_time()
            best = choose(given.layer, tries, fit, validation, mode)
            choice = time.process_time() - started
            short = replace(sweep, stops=tuple(stop for stop in sweep.stops if stop <= best.stop))
            found = tune(given.layer, given.here, short, best.setting)[-1]
            keep, decay, rate = best.setting
            extra = {"keep": keep, "decay": decay, "rate": rate, "stop": best.stop}
            extra["seconds of one run"] = sum(each) / len(each)
            yield Run(mode, found.layer, sum(each) + choice + found.seconds, extra=extra)
        for each_setting in sweep.settings():
            for tried in tune(given.layer, given.here, sweep, each_setting):
                keep, decay, _ = tried.setting
                text = f"keep {keep:g}, decay {decay:g}, {tried.stop} steps"
                yield Run(SWEEP, tried.layer, tried.seconds, extra={"setting": text})

    return run


def all_layers(given: Setting) -> Iterator[Run]:
    """Adam on every weight, no sweep: what is possible where any layer may change."""
    started = time.process_time()
    found = tune_all_layers(given.model, given.images, epochs=2.0 if given.share == 1.0 else 0.5)
    yield Run(SOFT, None, time.process_time() - started, network=found)


def typed(confidence: float | None) -> dict[str, Ours]:
    """By mode, the library's own settings with the error rate that the bar of the mode asks for."""
    return {mode: Ours(rate, SQP(confidence=confidence)) for mode, rate in TYPED.items()}


LBFGS = Sweep("lbfgs")
ADAM = Sweep("adam", decay=(1e-3,), rates=(5e-3,), stops=(100, 300, 1000))
LONG = SQP(confidence=None, closeness=0.0, ridge=0.02, inner_steps=100, smallest_fall=1e-4, lead=0.0)
BY_HAND = {  # chosen with held-out figures in sight
    SOFT: Ours(1 - SHIFTED, LONG),
    CONSERVATIVE: Ours(0.09, replace(LONG, closeness=0.15), keep=5),
    HARD: Ours(0.05, LONG),
}
METHODS: dict[str, Method] = {
    "SQP, all errors": sqp(Ours(0.0, SQP(confidence=None))),
    "SQP, typed error rate": sqp(typed(None)),
    "SQP at 50 %, typed error rate": sqp(typed(0.5)),
    "SQP at 95 %, typed error rate": sqp(typed(0.95)),
    "SQP, settings by hand": sqp(BY_HAND),
    "SQP, all errors, whole network": sqp(Ours(0.0, SQP(confidence=None)), whole=True),
    "L-BFGS": tuned(LBFGS),
    "L-BFGS without keep data": tuned(replace(LBFGS, keep=(0.0,))),
    "Adam": tuned(ADAM),
    "Adam without keep data": tuned(replace(ADAM, keep=(0.0,))),
    "Adam, all layers, no sweep": all_layers,
}
SHORT = {
    "repairopt": [name for name in METHODS if name.startswith("SQP")],
    "peers": [name for name in METHODS if not name.startswith("SQP")],
}


def measured(given: Setting, name: str, method: Method) -> Iterator[Record]:
    """A record for each mode: what the repair does on the held-out half, and flips on the samples to keep."""
    before = outcome(given.layer, given.layer, given.there)
    for run in method(given):
        if run.network is None:
            assert run.layer is not None
            after, here = outcome(given.layer, run.layer, given.there), outcome(given.layer, run.layer, given.here)
        else:
            images, others = split_digits(given.split, given.share)
            after, here = (outcome(given.model, run.network, data) for data in (others, images))
        record = {"split": given.split, "mode": run.mode, "method": name, "cpu seconds": run.seconds}
        record |= {"setting": "", "seconds of the features": given.seconds, "flipped here": here["flipped"]}
        record |= run.extra
        record |= {f"{key} before": value for key, value in before.items() if "accuracy" in key}
        yield record | after


def run_all(names: list[str], settings: dict[str, Method], splits: int, share: float) -> Iterator[list[Record]]:
    """The records of each split in turn."""
    for split in range(splits):
        given = setting(split, share)
        yield [record for name in names for record in measured(given, name, settings[name])]
        print(f"{time.strftime('%H:%M:%S')} split {split} done", file=sys.stderr, flush=True)


def quick_methods() -> dict[str, Method]:
    """The same methods with short runs; without those that aim at a confidence, most of the time of all."""
    short: Any = {"decay": (1e-3,), "stops": (10,)}
    return {name: method for name, method in METHODS.items() if "%" not in name} | {
        "L-BFGS": tuned(replace(LBFGS, **short, keep=(1.0, 10.0))),
        "L-BFGS without keep data": tuned(replace(LBFGS, **short, keep=(0.0,))),
        "Adam": tuned(replace(ADAM, **short, keep=(1.0, 10.0))),
        "Adam without keep data": tuned(replace(ADAM, **short, keep=(0.0,))),
    }


def warm_up() -> None:
    """Everything is loaded before anything is timed."""
    given = setting(0, 0.05)
    for name in ("SQP, all errors", "L-BFGS without keep data"):
        for _ in quick_methods()[name](given):
            pass


def main() -> None:
    """Run what is asked for, write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="one split of a twentieth of the data, short runs of the peers"
    )
    parser.add_argument("--parts", nargs="+", choices=["digits", "samples"], default=["digits", "samples"])
    parser.add_argument("--methods", nargs="+", choices=[*SHORT, *METHODS], help="run these, read the others")
    parser.add_argument("--splits", type=int, default=10, help="divisions")
    parser.add_argument("--read", action="store_true", help="run nothing")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="folder for the results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    options.out.mkdir(parents=True, exist_ok=True)
    paths = options.out / "correctness.csv", options.out / "correctness_samples.csv"
    records, samples = (read_csv(path, TEXT) if path.is_file() else [] for path in paths)
    parts = [] if options.read else options.parts
    if parts and not options.quick:
        warm_up()
    if "digits" in parts:
        settings = quick_methods() if options.quick else METHODS
        chosen = [name for given in options.methods or METHODS for name in SHORT.get(given, [given])]
        names = [name for name in settings if name in chosen]
        records = [record for record in records if record["method"] not in names]
        for found in run_all(names, settings, *((1, 0.05) if options.quick else (options.splits, 1.0))):
            records += found
            write_csv(records, paths[0])
        records = read_csv(paths[0], TEXT)  # as it will be read again
    if "samples" in parts:
        samples = measure_samples(quick=options.quick)
        write_csv(samples, paths[1])
    print(f"{resource.getrusage(resource.RUSAGE_SELF).ru_utime / 60:.1f} CPU minutes", file=sys.stderr)
    text = report(records, samples)
    (options.out / "correctness.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
