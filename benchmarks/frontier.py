"""Typed bounds on fairness, held-out: repairopt next to tuned fine-tuning, fairlearn, AIF360 and thresholds by group.

    python benchmarks/frontier.py [--quick] [--cases ...] [--methods ...] [--splits N] [--first N] [--read] [--further]

Writes ``frontier.md``, every run to ``frontier.csv``, and ``frontier.png``. ``--methods`` and ``--cases`` run some anew
and take the other rows from the CSV file; ``--read`` takes all from there. The methods ``repairopt``, ``peers`` and
``limits`` stand for all of these. ``--further`` runs SQP with the chosen weights on further divisions, for the bars
that so few as ten leave to chance, into ``frontier_further.csv``. Needs ``REPAIROPT_DATA`` and the ``bench`` extra.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import environment  # noqa: F401 (before numpy and torch)
import frontier_libraries as libraries
import torch
from benchmark_files import read_csv, write_csv
from frontier_cases import CONFIDENCE, PARITY, Case, Part, cases
from frontier_ours import NAN, Method, Run, in_sight, sqp
from frontier_peers import Sweep, Tried, choose, tune
from frontier_plot import draw
from frontier_tables import report
from protocol import Task

CURVE = (0.01, 0.02, 0.03, 0.04, 0.05, 0.07, 0.10, 0.13)  # bounds for the curve of thresholds by group
QUICK = ("gender, parity", "gender, parity and odds", "gender, sampled, 95 %")
TEXT = ("case", "method", "setting")


def tuned(sweep: Sweep) -> Method:
    """A sweep: what is chosen on the validation part and fitted anew on all rows, for each bound; and every run."""

    def run(case: Case, split: int, part: Part) -> Iterator[Run]:
        prices = sweep.prices(case)
        tries = [tried for penalty in prices for tried in fitted(case, split, sweep, penalty, False)]
        validation = case.divided(split, 1000 + split)[1]
        each = [tried.seconds for tried in tries if tried.stop == max(sweep.stops)]
        for typed in case.targets:
            started = time.process_time()
            best = choose(tries, validation, typed, confident=case.confident)
            choice = time.process_time() - started
            again = fitted(case, split, sweep, best.penalty, True)
            found = next(tried for tried in again if tried.setting == best.setting)
            extra = {"penalty": best.penalty, "stop": best.stop, "seconds of one run": sum(each) / len(each)}
            yield Run(typed, found.network, sum(each) + choice + found.seconds, extra=extra)
        if not case.confident and not case.odds:
            for penalty in prices:
                for tried in fitted(case, split, sweep, penalty, True):
                    yield Run(NAN, tried.network, tried.seconds, f"penalty {penalty:g}, {tried.stop} steps")

    return run


def fitted(case: Case, split: int, sweep: Sweep, penalty: float, whole: bool) -> list[Tried]:
    """One run of a sweep, on the whole repair half or on three quarters of it."""
    return _fitted(case.task, case.kind, split, sweep, penalty, whole)


@lru_cache(maxsize=256)
def _fitted(task: Task, kind: str, split: int, sweep: Sweep, penalty: float, whole: bool) -> list[Tried]:
    """Cases that differ in their bounds alone share the runs."""
    case = Case("a sweep", task, kind, targets=())
    part = case.halves(split)[0] if whole else case.divided(split, 1000 + split)[0]
    return tune(case, part, penalty, sweep)


def thresholds(case: Case, split: int, part: Part) -> Iterator[Run]:
    """The reference: the best that thresholds by group make of the original score."""
    curve = () if case.odds else CURVE
    started = time.process_time()
    found = libraries.by_thresholds(case, part, [part.target(t) for t in case.targets] + list(curve))
    seconds = (time.process_time() - started) / len(found)
    for typed, predict in zip(case.targets, found, strict=False):
        yield Run(typed, predict, seconds)
    for typed, predict in zip(curve, found[len(case.targets) :], strict=True):
        yield Run(NAN, predict, seconds, f"gap {typed:g}")


def post_processed(constraints: str) -> Method:
    """Fairlearn's ThresholdOptimizer, once for each bound; equalized odds cannot be relaxed there."""

    def run(case: Case, split: int, part: Part) -> Iterator[Run]:
        parity = constraints == "demographic_parity"
        for typed in case.targets if parity else case.targets[:1]:
            started = time.process_time()
            limit = part.target(typed) if parity else None
            predict = libraries.threshold_optimizer(case, part, limit, constraints, split)
            yield Run(typed if parity else NAN, predict, time.process_time() - started)

    return run


def reduced(learner: str, rounds: int = 50) -> Method:
    """Fairlearn's ExponentiatedGradient, once for each bound."""

    def run(case: Case, split: int, part: Part) -> Iterator[Run]:
        for typed in case.targets:
            started = time.process_time()
            predict = libraries.exponentiated_gradient(case, part, part.target(typed), learner, split, rounds)
            yield Run(typed, predict, time.process_time() - started)

    return run


def reweighed(steps: int = 300) -> Method:
    """AIF360's Reweighing and fine-tuning; it knows no bound."""

    def run(case: Case, split: int, part: Part) -> Iterator[Run]:
        reweigh = libraries.reweighing(steps)
        started = time.process_time()
        predict = reweigh(case, part)
        yield Run(NAN, predict, time.process_time() - started)

    return run


ADAM = Sweep()
SAME = replace(ADAM, whole=False, rate=1e-2)
LBFGS = replace(ADAM, optimizer="lbfgs", stops=(10, 30))
TWO = replace(ADAM, both=True)
METHODS: dict[str, Method] = {
    "SQP, chosen weights": sqp("chosen"),
    "SQP, automatic weights": sqp("auto"),
    "SQP at 50 %, chosen weights": sqp("chosen", 0.5),
    "SQP at 95 %, chosen weights": sqp("chosen", CONFIDENCE),
    "SQP at 95 %, automatic weights": sqp("auto", CONFIDENCE),
    "SQP at 95 %, chosen weights, rates at most 0.1": sqp("chosen", CONFIDENCE, 0.1),
    "SQP at 95 %, chosen weights, odds typed": sqp("chosen", CONFIDENCE, typed_odds=True),
    "SQP, far columns": sqp("far"),
    "SQP at 50 %, far columns": sqp("far", 0.5),
    "SQP at 95 %, far columns": sqp("far", CONFIDENCE),
    "SQP, farthest column, half the bound": sqp("farthest", share=0.5, damping=1e-3, smallest_fall=0.02),
    "SQP, offsets by group": sqp("offsets"),
    "SQP at 50 %, offsets by group": sqp("offsets", 0.5),
    "SQP at 50 %, automatic weights and offsets": sqp("auto with offsets", 0.5),
    "Adam + penalty, all weights": tuned(ADAM),
    "Adam + penalty, same weights": tuned(SAME),
    "Adam + two penalties, all weights": tuned(TWO),
    "L-BFGS + penalty, all weights": tuned(LBFGS),
    "fairlearn ThresholdOptimizer, parity": post_processed("demographic_parity"),
    "fairlearn ThresholdOptimizer, odds": post_processed("equalized_odds"),
    "fairlearn ExponentiatedGradient, this network": reduced("network"),
    "fairlearn ExponentiatedGradient, boosting": reduced("boosting"),
    "AIF360 Reweighing + fine-tuning": reweighed(),
    "thresholds by group": thresholds,
    "SQP on both halves": in_sight(0.0),
    "SQP on both halves, half the bounds": in_sight(0.5),
    "SQP on both halves, a tenth of the bounds": in_sight(0.9),
}
FURTHER = [
    name
    for name in METHODS
    if name.startswith("SQP") and name.endswith(("weights", "columns", "by group", "typed", "half the bound"))
]
FURTHER = [name for name in FURTHER if "automatic" not in name]
FIRST_FURTHER, LAST_FURTHER = 20, 60  # splits; those before are the ones on which all methods are compared
SHORT = {
    "repairopt": [name for name in METHODS if name.startswith("SQP") and "both" not in name],
    "peers": [name for name in METHODS if not name.startswith("SQP")],
    "limits": [name for name in METHODS if "both halves" in name],
}


def applies(name: str, case: Case) -> bool:
    """Which methods can speak of a case, and where a run would say nothing new."""
    if "both halves" in name:
        return True
    if "offsets" in name:
        return case.kind == PARITY and not (case.confident or case.odds)
    if "far columns" in name or "farthest" in name:
        return case.kind != PARITY and case.confident == ("95 %" in name)
    if "odds typed" in name:
        return case.odds
    if "rates" in name:
        return case.confident and case.kind != PARITY
    if name.startswith("SQP at 95"):
        return case.odds or case.confident
    if name.startswith("SQP"):
        return not case.confident and not (case.odds and "50 %" in name)
    if "two penalties" in name or "odds" in name:
        return case.odds
    if name.startswith("Adam") and "all" in name:
        return True
    if case.confident or case.odds:
        return False
    gender = case.task.name.startswith("M1 gender")
    if "same weights" in name:
        return gender
    if name.startswith("L-BFGS") or "Reweighing" in name:
        return True
    return case.kind == PARITY and (gender or "Exponentiated" not in name)


def measured(case: Case, names: list[str], split: int, settings: dict[str, Method]) -> Iterator[dict[str, Any]]:
    """A record for each run: before and after, on the held-out half."""
    part, other = case.halves(split)
    for name in names:
        for run in settings[name](case, split, part):
            target = NAN if run.typed != run.typed else part.target(run.typed)
            record = {"case": case.name, "split": split, "method": name, "setting": run.setting}
            record |= {"typed": run.typed, "target": target, "cpu seconds": run.seconds} | run.extra
            record |= {f"{key} before": value for key, value in other.before.items()}
            record |= {f"{key} here": value for key, value in part.measured(run.predict).items() if key == "gap"}
            yield record | {f"{key} after": value for key, value in other.measured(run.predict).items()}


def run_all(
    wanted: list[Case], names: list[str], settings: dict[str, Method], *, first: int, splits: int | None
) -> Iterator[list[dict[str, Any]]]:
    """The records of each split in turn, so that cases share their sweeps."""
    for split in range(first, max(splits or case.splits for case in wanted)):
        records: list[dict[str, Any]] = []
        for case in wanted:
            if split < (splits or case.splits):
                records += measured(case, [name for name in names if applies(name, case)], split, settings)
        print(f"{time.strftime('%H:%M:%S')} split {split} done", file=sys.stderr, flush=True)
        yield records


def run_further(wanted: list[Case], names: list[str], path: Path, *, first: int, splits: int) -> None:
    """Further divisions into a file of their own; what is not run anew stays in it."""
    warm_up(cases()["gender, parity"], METHODS)
    anew = {(case.name, name) for case in wanted for name in names}
    known = read_csv(path, TEXT) if path.is_file() else []
    records = [r for r in known if (r["case"], r["method"]) not in anew or r["split"] < first]
    for found in run_all(wanted, names, METHODS, first=max(first, FIRST_FURTHER), splits=splits):
        records += found
        write_csv(records, path)


def quick_methods() -> dict[str, Method]:
    """The same methods with short runs."""
    short: Any = {"penalties": (1.0, 10.0), "stops": (5, 10)}
    sweeps = {"same": SAME, "two": TWO, "L-BFGS": LBFGS}
    found = dict(METHODS)
    for name in found.copy():
        if (
            name == "SQP at 95 %, automatic weights"
            or "50 %" in name
            or "rates" in name
            or "odds typed" in name
            or "farthest" in name
            or name in {"SQP at 95 %, far columns", "SQP on both halves, half the bounds"}
            or name.endswith("of the bounds")
        ):
            del found[name]
    slow = found["SQP at 95 %, chosen weights"]
    found["SQP at 95 %, chosen weights"] = lambda case, *rest: slow(case, *rest) if case.confident else iter(())
    for name in list(found):
        if "Exponentiated" in name:
            found[name] = reduced("network" if "network" in name else "boosting", 1)
        if "Reweighing" in name:
            found[name] = reweighed(10)
        if "penalt" in name:
            sweep = next((sweeps[key] for key in sweeps if key in name), ADAM)
            found[name] = tuned(replace(sweep, **short))
    return found


def warm_up(case: Case, settings: dict[str, Method]) -> None:
    """Everything is loaded before anything is timed."""
    part = case.part(*(index[:200] for index in case.task.indices(0)[0]))
    for weights in ("chosen", "auto"):
        next(sqp(weights)(replace(case, targets=(0.1,)), 0, part))
    for name in ("fairlearn ThresholdOptimizer, parity", "AIF360 Reweighing + fine-tuning"):
        next(settings[name](case, 0, part))
    libraries.exponentiated_gradient(case, part, 0.1, "boosting", 0, rounds=1)
    for sweep in (ADAM, LBFGS):
        tune(case, part, 1.0, replace(sweep, stops=(1,)))


def main() -> None:
    """Run what is asked for, write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="one split of a tenth of the data, some cases, one bound, short runs"
    )
    parser.add_argument("--cases", nargs="+", help="run these, read the others")
    parser.add_argument("--methods", nargs="+", choices=[*SHORT, *METHODS], help="run these, read the others")
    parser.add_argument("--splits", type=int, help="divisions; 10, and 20 where a confidence is judged, unless given")
    parser.add_argument("--first", type=int, default=0, help="go on at this split; the ones before it are read")
    parser.add_argument("--read", action="store_true", help="run nothing")
    parser.add_argument("--further", action="store_true", help="SQP with the chosen weights on 20 further divisions")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="folder for the results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    known = cases(10 if options.quick else 1)
    unknown = [name for name in options.cases or [] if name not in known]
    if unknown:
        parser.error(f"--cases: there is no case {unknown[0]!r}; choose from {', '.join(map(repr, known))}")
    wanted = [known[name] for name in (options.cases or (QUICK if options.quick else known))]
    if options.quick:
        wanted = [replace(case, targets=case.targets[:1]) for case in wanted]
    settings = quick_methods() if options.quick else METHODS
    chosen = [name for given in options.methods or METHODS for name in SHORT.get(given, [given])]
    names = [name for name in settings if name in chosen]
    options.out.mkdir(parents=True, exist_ok=True)
    path, further = options.out / "frontier.csv", options.out / "frontier_further.csv"
    if options.further and not path.is_file():
        parser.error(f"--further stands beside the comparison, and there is no {path}; run without --further first")
    if options.further and (options.splits or LAST_FURTHER) <= FIRST_FURTHER:
        parser.error(f"--further begins at split {FIRST_FURTHER}; --splits is the one to end before")
    records = (
        read_csv(path, TEXT)
        if path.is_file() and (options.read or options.further or options.methods or options.cases or options.first)
        else []
    )
    if options.further:
        only = [name for name in FURTHER if options.methods is None or name in names]
        run_further(wanted, only, further, first=options.first, splits=options.splits or LAST_FURTHER)
    elif not options.read:
        if not options.quick:
            warm_up(known["gender, parity"], settings)
        anew = {(case.name, name) for case in wanted for name in names}
        records = [r for r in records if (r["case"], r["method"]) not in anew or r["split"] < options.first]
        count = 1 if options.quick else options.splits
        for found in run_all(wanted, names, settings, first=options.first, splits=count):
            records += found
            write_csv(records, path)
        records = read_csv(path, TEXT)  # as it will be read again
    print(f"{resource.getrusage(resource.RUSAGE_SELF).ru_utime / 60:.1f} CPU minutes", file=sys.stderr)
    text = report(records, known, read_csv(further, TEXT) if further.is_file() else [])
    draw(records, options.out / "frontier.png")
    (options.out / "frontier.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
