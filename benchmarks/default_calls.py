"""Default calls on a public table, held-out: the gap, its price, and whether what is claimed of new data is true.

    python benchmarks/default_calls.py [--quick] [--jobs ...] [--methods ...] [--seeds N] [--read]

Writes ``default_calls.md`` and every run to ``default_calls.csv``.
Each run trains a network on some rows of a table, repairs it on others by ``solve_repair(model, goal, ...)`` with
default arguments, and measures it on all rows that remain. Beside it stand fairlearn's ThresholdOptimizer, the most
accurate thresholds by group that meet the typed bound on the repair rows, and the peers of ``default_peers.py``. The
jobs are those that users have: a gap of two groups, odds, a recall that is kept beside it, crossed groups, few rows,
six groups; two of them on other tables.
Needs ``REPAIROPT_DATA`` and the ``bench`` extra.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import environment  # noqa: F401 (before numpy and torch)
import numpy as np
import torch
from benchmark_files import read_csv, write_csv
from default_measures import YES, answers, gap_of, measured
from default_peers import PEERS
from default_reading import READING
from default_tables import (
    Rows,
    absent_tables,
    adult,
    arrests,
    bank,
    credit,
    incomes,
    insurance,
    recidivism,
    wages_1988,
    wages_2004,
)
from torch import nn

from repairopt import SQP, Bound, GroupGap, MissRate, OddsGap, solve_repair

TRAINING, STEPS, BATCH = 8_000, 600, 256
CUTS, FLOORS = 400, (0.05, 0.03)  # thresholds of each group that are looked at, and gaps, where nobody can be better
TEXT = ("job", "method", "verdict", "claimed", "weights")


@dataclass(frozen=True)
class Job:
    """A task: a table, its groups, what is asked for, and how many rows there are to repair on and to train on."""

    name: str
    groups: Callable[[Rows], np.ndarray]
    target: float
    rows: int = 2_600
    kind: str = "parity"
    score: str = "max_difference"
    recall: bool = False
    table: Callable[[], Rows] = adult
    training: int = TRAINING

    def goal(self, rows: Rows) -> Any:
        """The goal on some rows."""
        given: Any = {"sensitive_features": self.groups(rows).tolist(), "favorable": YES, "target": self.target}
        if self.kind == "odds":
            return OddsGap.observed(rows.x, rows.y, **given)
        return GroupGap.observed(rows.x, score=self.score, **given)


def by_sex(rows: Rows) -> np.ndarray:
    """Two groups."""
    return rows.words["sex"]


def by_age(rows: Rows) -> np.ndarray:
    """Up to 30 years, and older."""
    return np.where(rows.words["age"].astype(float) <= 30, "young", "older")


def crossed(rows: Rows) -> np.ndarray:
    """Sex and whether race is White: four groups."""
    white = np.where(rows.words["race"] == "White", "White", "other")
    return np.char.add(np.char.add(rows.words["sex"].astype(str), " "), white)


def by_race(rows: Rows) -> np.ndarray:
    """Two groups."""
    return rows.words["race"]


def by_education(rows: Rows) -> np.ndarray:
    """Tertiary education, and other."""
    return rows.words["tertiary"]


def told(name: str) -> Callable[[Rows], np.ndarray]:
    """Groups of a column that comes with the rows."""
    return lambda rows: rows.words[name]


def by_six(rows: Rows) -> np.ndarray:
    """Six ranges of age."""
    return np.digitize(rows.words["age"].astype(float), [24, 30, 37, 45, 53]).astype(str)


JOBS = [
    Job("parity", by_sex, 0.05),
    Job("equalized odds", by_sex, 0.08, kind="odds"),
    Job("parity, recall kept", by_sex, 0.05, recall=True),
    Job("four crossed groups", crossed, 0.05),
    Job("500 rows", by_age, 0.05, rows=500),
    Job("200 rows", by_sex, 0.05, rows=200),
    Job("six groups, mean gap", by_six, 0.05, score="difference"),
    Job("six groups, limit 0.09", by_six, 0.09, score="difference"),
    Job("bank marketing, parity", by_education, 0.02, rows=5_000, table=bank),
    Job("recidivism, parity", by_race, 0.05, rows=1_500, table=recidivism, training=2_500),
    Job("recidivism, odds", by_race, 0.08, rows=1_500, kind="odds", table=recidivism, training=2_500),
    Job("incomes, parity", told("gender"), 0.05, table=incomes),
    Job("incomes, odds", told("gender"), 0.08, kind="odds", table=incomes),
    Job("incomes, four crossed groups", told("crossed"), 0.05, table=incomes),
    Job("wages of 1988, parity", told("ethnicity"), 0.05, table=wages_1988),
    Job("insurance, parity of ethnicity", told("ethnicity"), 0.05, rows=1_500, table=insurance, training=3_000),
    Job("insurance, parity of self-employed", told("employed"), 0.05, rows=1_500, table=insurance, training=3_000),
    Job("credit, 500 rows, age", told("age"), 0.05, rows=500, table=credit, training=1_500),
    Job("arrests, parity", told("colour"), 0.05, rows=1_000, table=arrests, training=2_000),
    Job("wages of 2004, 200 rows", told("gender"), 0.05, rows=200, table=wages_2004),
]


def trained(rows: Rows, seed: int) -> nn.Module:
    """A network of one hidden layer."""
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(rows.x.shape[1], 32), nn.ReLU(), nn.Linear(32, 2))
    optimizer = torch.optim.Adam(network.parameters(), 3e-3, weight_decay=1e-4)
    for _ in range(STEPS):
        pick = torch.randint(len(rows.x), (BATCH,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(rows.x[pick]), rows.y[pick]).backward()
        optimizer.step()
    return network.eval()


def divided(job: Job, seed: int, half: int) -> tuple[Rows, Rows, Rows]:
    """Rows to train on, to repair on and to measure on; two repair sets of a seed share no row."""
    everything = job.table()
    order = np.random.default_rng(seed).permutation(len(everything.x))
    start = job.training + half * job.rows
    own = order[start : start + job.rows]
    rest = np.concatenate([order[job.training : start], order[start + job.rows :]])
    return everything.at(order[: job.training]), everything.at(own), everything.at(rest)


def repaired(job: Job, network: nn.Module, own: Rows, rest: Rows, method: Any = "auto") -> dict[str, Any]:
    """The default call, or that with another method, and what is true of its claims."""
    bounds = [Bound(MissRate(own.x, own.y, label=YES), slack=0.02, name="recall")] if job.recall else []
    started = time.process_time()
    found = solve_repair(network, job.goal(own), bounds, data=(own.x, own.y), method=method)
    seconds = time.process_time() - started
    record = measured(job, rest, answers(found.model, rest)) | {"cpu seconds": seconds}
    record |= {"verdict": str(found.report.verdict), "gap here": gap_of(job, own, answers(found.model, own))}
    claim = next((c for c in found.report.claims if c.source != "held-out data"), None)
    said = "no claim" if claim is None else "met" if claim.met else "open"
    record["claimed"] = said if method == "auto" else ""  # claims of 50 % are no word to hold anyone to
    return record | {"weights": found.report.location.method}


def by_fairlearn(job: Job, network: nn.Module, own: Rows, rest: Rows) -> dict[str, Any]:
    """Thresholds by group, drawn at random where they must be."""
    from fairlearn.postprocessing import ThresholdOptimizer
    from frontier_libraries import Scored

    class Ours(Scored):  # labels 0 and 1 in the order of the table
        def predict_proba(self, x: Any) -> np.ndarray:
            assert self.network is not None
            with torch.no_grad():
                return torch.softmax(self.network(torch.as_tensor(np.asarray(x)).float()), 1).double().numpy()

    started = time.process_time()
    kind = "equalized_odds" if job.kind == "odds" else "demographic_parity"
    made = ThresholdOptimizer(
        estimator=Ours(network),
        constraints=kind,
        objective="accuracy_score",
        prefit=True,
        predict_method="predict_proba",
    )
    made.fit(own.x.numpy(), own.y.numpy(), sensitive_features=job.groups(own))
    seconds = time.process_time() - started
    yes = made.predict(rest.x.numpy(), sensitive_features=job.groups(rest), random_state=0) == YES
    return measured(job, rest, np.asarray(yes)) | {"cpu seconds": seconds}


def by_thresholds(job: Job, network: nn.Module, own: Rows, rest: Rows) -> dict[str, Any] | None:
    """The most accurate thresholds by group that meet the bound on the repair rows; parity of few groups alone."""
    from frontier_libraries import CELLS, best_rates

    names = np.unique(job.groups(own))
    if job.kind == "odds" or len(names) not in CELLS:
        return None

    def score(rows: Rows) -> np.ndarray:
        with torch.no_grad():
            outputs = network(rows.x)
        return np.asarray((outputs[:, YES] - outputs[:, 1 - YES]).double().numpy())

    started = time.process_time()
    cuts = best_rates(score(own), own.y.numpy() == YES, job.groups(own), [job.target])[0]
    seconds = time.process_time() - started
    yes = score(rest) >= np.array([cuts[name] for name in job.groups(rest)])
    return measured(job, rest, yes) | {"cpu seconds": seconds}


def by_floor(limit: float, job: Job, network: nn.Module, own: Rows, rest: Rows) -> dict[str, Any] | None:
    """The most accurate thresholds for two groups that there are on the measured rows: nobody can choose them."""
    groups, labels = job.groups(rest), rest.y.numpy() == YES
    names = np.unique(groups)
    if job.kind == "odds" or len(names) != 2:
        return None
    with torch.no_grad():
        outputs = network(rest.x)
    score, sides = (outputs[:, YES] - outputs[:, 1 - YES]).double().numpy(), []
    for name in names:
        cuts = np.quantile(score[groups == name], np.linspace(0, 1, CUTS))
        yes = score[groups == name] > cuts[:, None]
        told = labels[groups == name]
        sides.append((cuts, yes.mean(1), (yes == told).sum(1), (yes & told).sum(1)))
    (_, rate, right, found), (_, rate_too, right_too, found_too) = sides
    allowed = np.abs(rate[:, None] - rate_too) <= limit
    if job.recall:
        kept = (labels & (score > 0)).sum() - 0.02 * labels.sum()
        allowed &= found[:, None] + found_too >= kept
    best = np.unravel_index(np.where(allowed, right[:, None] + right_too, -1).argmax(), allowed.shape)
    chosen = {name: cuts[k] for name, (cuts, *_), k in zip(names, sides, best, strict=True)}
    return measured(job, rest, score > np.array([chosen[name] for name in groups])) | {"cpu seconds": 0.0}


def by_peer(peer: Callable[..., Any], job: Job, network: nn.Module, own: Rows, rest: Rows) -> dict[str, Any] | None:
    """A peer's answers to rows that it has not seen."""
    started = time.process_time()
    found = peer(job, network, own)
    seconds = time.process_time() - started
    return None if found is None else measured(job, rest, found(rest)) | {"cpu seconds": seconds}


METHODS: dict[str, Callable[..., dict[str, Any] | None]] = {
    "repairopt": repaired,
    "repairopt, met on average": partial(repaired, method=SQP(confidence=0.5)),
    "fairlearn ThresholdOptimizer": by_fairlearn,
    "thresholds by group": by_thresholds,
    **{f"floor, thresholds of the measured rows at a gap of {limit}": partial(by_floor, limit) for limit in FLOORS},
    **{name: partial(by_peer, peer) for name, peer in PEERS.items()},
}

LIBRARIES = {"fairlearn ThresholdOptimizer": "fairlearn", "OxonFair merged head": "oxonfair"}
LIBRARIES |= {"AIF360 RejectOption": "aif360", "fairret, Adam": "fairret"}  # what is not installed is left out


def run(jobs: Sequence[Job], seeds: range, halves: int, methods: Sequence[str]) -> Iterator[dict[str, Any]]:
    """A record for each run."""
    for seed in seeds:
        for job in jobs:
            for half in range(halves):
                training, own, rest = divided(job, seed, half)
                network = trained(training, seed)
                before = measured(job, rest, answers(network, rest))
                for method in methods:
                    found = METHODS[method](job, network, own, rest)
                    if found is not None:
                        record = {"job": job.name, "seed": seed, "half": half, "method": method, "target": job.target}
                        yield record | {f"{key} before": value for key, value in before.items()} | found


def written(records: Sequence[dict[str, Any]]) -> str:
    """The table: means over runs."""
    head = "job | method | runs | gap before | gap after | met | accuracy, points | rates after | claims | CPU s"
    lines = [f"| {head} |", f"|{'---|' * (head.count('|') + 1)}"]
    for job in dict.fromkeys(r["job"] for r in records):
        for method in dict.fromkeys(r["method"] for r in records):
            own = [r for r in records if r["job"] == job and r["method"] == method]
            if own:
                lines.append(_line(job, method, own))
    return "\n".join(lines)


def _line(job: str, method: str, own: Sequence[dict[str, Any]]) -> str:
    def mean(key: str) -> float:
        return float(np.mean([float(r[key]) for r in own]))

    points = 100 * (mean("accuracy") - mean("accuracy before"))
    met = [float(r["gap"]) <= float(r["target"]) for r in own]
    claims = ""
    if own[0].get("claimed"):
        said = [r["claimed"] == "met" for r in own]
        false = sum(s and not m for s, m in zip(said, met, strict=True))
        silent = sum(m and not s for s, m in zip(said, met, strict=True))
        claims = f"{sum(said)} of {len(own)}, {false} false; {silent} met without"
    cells = [job, method, str(len(own)), f"{mean('gap before'):.3f}", f"{mean('gap'):.3f}", f"{sum(met)} of {len(own)}"]
    cells += [f"{points:+.2f}", f"{mean('lowest rate'):.2f} to {mean('highest rate'):.2f}", claims]
    seconds = mean("cpu seconds")
    return f"| {' | '.join([*cells, f'{seconds:.2f}'])} |"


def main() -> None:
    """Run what is asked for, write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one run of the smallest job")
    parser.add_argument("--jobs", nargs="+", choices=[job.name for job in JOBS], help="these alone")
    known = [name for name in METHODS if find_spec(LIBRARIES.get(name, "repairopt")) is not None]
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=known, help="these alone")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--halves", type=int, default=2, help="repair sets of each seed")
    parser.add_argument("--read", action="store_true", help="run nothing")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="folder for the results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    path = options.out / "default_calls.csv"
    absent = [name for name in METHODS if name not in known]
    if absent:
        print(f"Left out, not installed: {', '.join(absent)}.")
    wanted = [job for job in JOBS if options.jobs is None or job.name in options.jobs]
    for lacking, tables in ({} if options.read else absent_tables()).items():
        left_out = [job for job in wanted if job.table in tables]
        if left_out:
            print(f"Left out, {lacking} is not here: {', '.join(job.name for job in left_out)}.")
        wanted = [job for job in wanted if job not in left_out]
    seeds, halves = range(options.first, options.first + options.seeds), options.halves
    if options.quick:
        wanted, seeds, halves = [min(wanted, key=lambda job: job.rows)], range(1), 1
        options.methods = [name for name in options.methods if LIBRARIES.get(name, "fairlearn") == "fairlearn"]
    records: list[dict[str, Any]] = []
    for record in () if options.read else run(wanted, seeds, halves, options.methods):
        records.append(record)
        write_csv(records, path)
    text = f"### Default calls, held-out\n\n{written(read_csv(path, TEXT))}\n"
    (options.out / "default_calls.md").write_text(f"{READING}\n{text}", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
