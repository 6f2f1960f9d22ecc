"""Repair of all layers, held-out, next to tuned fine-tuning at equal processor time.

    python benchmarks/deep.py [--quick] [--first N] [--splits N] [--methods ...] [--read] [--out FOLDER]

The network conv4 of the AutoRIC paper (358,186 weights); MNIST test images, clean and shifted as in
``correctness.py``; every division gives one half to the repair and judges on the other. Rivals are tuned on a quarter
of the repair half and fitted anew on all of it, for about as long as the repair takes: Adam on all layers (weight of
the clean images, learning rate), the mean of two such runs, and parts of the way back (WiSE-FT). Divisions 0 and 2
settled the defaults, 40 to 42 the rows of a step, 40 the shares of the way; figures are of 30 to 39 and 50 to 69, which
nothing was settled on. Writes ``deep.md`` and every run to ``deep.csv``. Needs ``REPAIROPT_DATA``.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import environment  # noqa: F401 (before numpy and torch)
import numpy as np
import torch
from benchmark_files import Record, read_csv, write_csv
from correctness_data import Digits, network, split_digits
from deep_networks import train_on_both
from torch import nn

from repairopt import Bound, ErrorRate, FlipRate, KeepLabels, Settings, TrainThenCorrect, solve_repair

FLIPS = 0.004
RATES, KEEPS, EPOCHS, LONG = (1e-3, 2e-3, 4e-3), (1.0, 3.0), 3, 9  # LONG: about as long as a repair takes
SMALL: Any = {"batch": 32, "epochs": 7, "rate": 5e-4, "keep": 1.0}  # of six on divisions 40 to 42; as long as ours
FEW = "Adam, tuned, 32 rows a side"
PLAIN, WAYS = "repairopt, plain", (0.6, 0.8)
BACK, WISE = "repairopt, {:g} of the way", "WiSE-FT, {:g} of the way, three times the epochs"
TEXT = ("method",)
COLUMNS = ("repair rate", "shifted accuracy", "clean accuracy", "negative flips", "guard flips", "cpu seconds")


@dataclass(frozen=True, eq=False)
class Given:
    """The repair half, the held-out half and the network."""

    model: nn.Module
    here: Digits
    there: Digits
    split: int


def outputs(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Classes of images, in batches."""
    with torch.no_grad():
        return torch.cat([model(part).argmax(1) for part in images.split(1000)])


def figures(before: nn.Module, after: nn.Module, data: Digits) -> dict[str, float]:
    """Shares on some images; negative flips are clean images that were right and are wrong now."""
    old = [outputs(before, x) == data.labels for x in (data.clean, data.shifted)]
    new = [outputs(after, x) == data.labels for x in (data.clean, data.shifted)]
    found = {"repair rate": float((new[1] & ~old[1]).sum() / (~old[1]).sum())}
    found |= {"shifted accuracy": float(new[1].double().mean()), "clean accuracy": float(new[0].double().mean())}
    return found | {"negative flips": float((old[0] & ~new[0]).double().mean())}


def ours(mode: str, confidence: float | None = 0.95) -> Callable[[Given], nn.Module]:
    """The library's default for many weights."""

    def run(given: Given) -> nn.Module:
        here = given.here
        constraints: list[Any] = []
        if mode == "hard":
            constraints = [KeepLabels(here.clean, here.labels, tolerance=0.0)]
        if mode == "conservative":
            constraints = [Bound(FlipRate(here.clean, here.labels), limit=FLIPS)]
        how = "auto" if confidence == 0.95 else TrainThenCorrect(confidence=confidence)
        return solve_repair(
            given.model,
            ErrorRate(here.shifted, here.labels, target=0.0),
            constraints,
            data=[(here.clean, here.labels), (here.shifted, here.labels)],
            weights="all",
            method=how,
            settings=Settings(seed=given.split),
        ).model

    return run


def adam(
    model: nn.Module, data: Digits, epochs: int, rate: float, keep: float, seed: int, batch: int = 128
) -> nn.Module:
    """Adam on all layers, cross-entropy on both kinds of images, linear decay."""
    made = copy.deepcopy(model).train()
    for parameter in made.parameters():
        parameter.requires_grad_(True)
    optimizer = torch.optim.Adam(made.parameters(), lr=rate, fused=batch < 128)
    train_on_both(made, optimizer, data, epochs, rate, keep, seed, batch)
    return made.eval()


def between(first: nn.Module, second: nn.Module, share: float) -> nn.Module:
    """Weights ``share`` of the way from the first to the second."""
    made = copy.deepcopy(first)
    with torch.no_grad():
        for own, old, new in zip(made.parameters(), first.parameters(), second.parameters(), strict=True):
            own.copy_(old + share * (new - old))
    return made


def tuned(given: Given) -> tuple[float, float]:
    """Rate and weight of the clean images with the best sum of both accuracies on a quarter of the repair half."""
    order = torch.randperm(len(given.here.labels), generator=torch.Generator().manual_seed(1000 + given.split))
    cut = 3 * len(order) // 4
    fit, other = given.here.part(order[:cut]), given.here.part(order[cut:])
    best: tuple[float, tuple[float, float]] = (-np.inf, (RATES[0], KEEPS[0]))
    for rate in RATES:
        for keep in KEEPS:
            found = figures(given.model, adam(given.model, fit, EPOCHS, rate, keep, given.split), other)
            best = max(best, (found["shifted accuracy"] + found["clean accuracy"], (rate, keep)))
    return best[1]


def rivals(given: Given) -> Iterator[tuple[str, nn.Module, float]]:
    """Name, network and processor seconds of the final fit; the tuning is not counted."""
    rate, keep = tuned(given)

    def timed(make: Callable[[], nn.Module]) -> tuple[nn.Module, float]:
        started = time.process_time()
        return make(), time.process_time() - started

    one, seconds = timed(lambda: adam(given.model, given.here, EPOCHS, rate, keep, given.split))
    yield "Adam, tuned", one, seconds
    long, double = timed(lambda: adam(given.model, given.here, LONG, rate, keep, given.split))
    yield "Adam, tuned, three times the epochs", long, double
    second, again = timed(lambda: adam(given.model, given.here, EPOCHS, rate, keep, given.split + 10_000))
    yield "mean of two runs of Adam, tuned", between(one, second, 0.5), seconds + again
    for share in WAYS:
        yield WISE.format(share), between(given.model, long, share), double


def last_layer(given: Given) -> nn.Module:
    """The repair of the last layer alone, as the library does it by default."""
    here = given.here
    goal = ErrorRate(here.shifted, here.labels, target=0.0)
    data = [(here.clean, here.labels), (here.shifted, here.labels)]
    return solve_repair(given.model, goal, data=data, weights="last", settings=Settings(seed=given.split)).model


def small_steps(given: Given) -> nn.Module:
    """Adam with as few rows in a step as the repair takes, and as many steps as its time allows."""
    return adam(given.model, given.here, seed=given.split, **SMALL)


METHODS: dict[str, Callable[[Given], nn.Module]] = {
    PLAIN: ours("plain"),
    "repairopt, hard": ours("hard"),
    "repairopt, conservative, on average": ours("conservative", 0.5),
    "repairopt, conservative, 95 %": ours("conservative"),
    "repairopt, last layer": last_layer,
    FEW: small_steps,
}


def measured(given: Given, name: str, model: nn.Module, seconds: float) -> Record:
    """One row."""
    record: Record = {"split": given.split, "method": name, "cpu seconds": seconds}
    here = figures(given.model, model, given.here)
    record["guard flips"] = round(here["negative flips"] * len(given.here.labels))
    return record | figures(given.model, model, given.there)


def run_split(split: int, share: float, wanted: list[str]) -> Iterator[Record]:
    """All methods on one division."""
    here, there = split_digits(split, share)
    given = Given(network(), here, there, split)
    for name in wanted:
        if name == "rivals":
            for own, model, seconds in rivals(given):
                yield measured(given, own, model, seconds)
            continue
        started = time.process_time()
        model = METHODS[name](given)
        seconds = time.process_time() - started
        yield measured(given, name, model, seconds)
        for share in WAYS if name == PLAIN else ():
            yield measured(given, BACK.format(share), between(given.model, model, share), seconds)


READING = """## Reading

* The repair is ahead of tuned Adam over all layers of about the same time (three times the epochs) by 3 to 4 standard
  errors of the paired difference in repair rate and shifted accuracy, by 2 in clean accuracy and 1.3 in negative
  flips. It is level with the mean of two runs in the last two, and ahead by six in the first two.
* The fair rival of small steps is Adam with small steps: 32 rows a side, both in one pass, as many steps as the repair
  takes (1,099 and 1,121), tuned on divisions 40 to 42 (rates 5e-4, 1e-3, 2e-3; weights 1 and 3). Small steps are worth
  as much to Adam as to the repair: clean accuracy is level, and negative flips differ by .0007 +-
  .0004, more by the repair. The repair is ahead by 6 standard errors in repair rate (.034) and by 5 in shifted
  accuracy (.005). At 0.8 of its way it is ahead by 3 standard errors in shifted and clean accuracy and flips, and
  within 1.3 in repair rate: what the mean of the weights at a constant rate is worth beside a rate that falls to 0.
* WiSE-FT buys clean accuracy and flips with repair rate, and so does the same share of the repair's own way, which is
  better than WiSE-FT's in all four columns at 0.8 (shifted accuracy by 4.4 standard errors, clean by 1.7) and level at
  0.6. The repair at its end has .0015 +- .0006 more flips than WiSE-FT at 0.8, and at 0.8 of its way .0005 fewer.
* Tried on division 40 for fewer flips, none better than a part of the way: half of the rate, a rate that falls in the
  second half, and closeness to the original's outputs on clean digits in the loss (temperature 1 and 2).
* A default that goes a part of the way was tried on divisions 40 to 42 and left: no part is level with all rivals. At
  0.9 the repair has .790 / .960 / .989 and .0065 flips (at the end .809 / .962 / .988 / .0077), which is level with or
  ahead of Adam, three times the epochs, the mean of two runs and small steps, but WiSE-FT at 0.8 has .990 and .0051; at
  0.8, where flips are level with it (.0055), Adam of three times the epochs repairs more (.782 after .758). On the LSTM
  (divisions 10 and 11) and the Transformer (10 alone), whose plain repair is ahead of tuned Adam in every column, 0.9
  of the way costs .01 of the repair rate for .0015 flips. `TrainThenCorrect(ways=(0.9,))` goes as far.
* Time: plain and hard are of the version of today, at a load of 2 to 4 on two cores, 16.4 and 17.5 s on average after
  20.5; rivals and the last layer ran at 5. Passes that only count, 40,000 rows of them, are taken in parts that stay in
  the cache, and weights of convolutions lie pixel by pixel.
* Hard: no guard flips on any of the ten divisions. It ends with the network of plain on all ten, since plain breaks no
  guard either: what training does not give is the promise. 16.5 to 18.2 s: the bar of 22 s holds on all ten, the aim of
  12 s on none.
* Conservative, 95 %: flips on new data that were asked for, without a look at these data, at four trainings more.
  On 19 of the 20 divisions held-out flips are within .004, on one .0044; their mean is .0024, and the repair rate .529
  +- .015, at least .55 on seven divisions: what is kept for chance among 5,000 rows costs .15 of it. 76 to 93 s.
  Shares of the way are tested in steps of 0.05 since the first three of these divisions, with shares of 0.3, 0.5, 0.65
  and on, had ended with .0014 to .0016 flips and repair rates of .40 to .42 (now .0016 to .0026, .45 to .56); on
  division 40 the bound is shown at 0.45, and not at 0.5.
* Conservative, on average, of the version of today: over its ten divisions the bound of .004 is met (.0039 +- .0005),
  on five of them by itself; four have .0042 to .0048, and one, where plain has .009, .0076: what is tested is a mean
  over folds, with no margin for chance. The repair rate of .692 is above the bar of .55 on every division, in 61 to 70
  s. Interpolation (WiSE-FT) reaches such shares too and does not know where to stop.
"""


def report(records: list[Record]) -> str:
    """The tables."""
    names = list(dict.fromkeys(str(r["method"]) for r in records))
    lines = ["# Repair of all layers", ""]
    lines += [
        "Made by `python benchmarks/deep.py`. Means with standard errors over divisions, held-out but for guard flips;"
    ]
    lines += ["one thread.", ""]
    lines += ["| method | divisions | " + " | ".join(COLUMNS) + " |", "|---|---|" + "---|" * len(COLUMNS)]
    by = {name: {int(r["split"]): r for r in records if r["method"] == name} for name in names}

    def cell(values: Any, sign: str = "") -> str:
        found = np.asarray(values, dtype=float)
        error = found.std(ddof=1) / len(found) ** 0.5 if len(found) > 1 else float("nan")
        digits = 1 if abs(found.mean()) > 2 else 4
        return f"{found.mean():{sign}.{digits}f} ± {error:.{digits}f}"

    for name in names:
        rows, splits = by[name].values(), sorted(by[name])
        means = " | ".join(cell([float(r[c]) for r in rows]) for c in COLUMNS)
        lines.append(f"| {name} | {splits[0]} to {splits[-1]} | {means} |")
    lines += ["", f"Where at most {FLIPS:g} negative flips on new data were asked for:", ""]
    for name in names:
        kept = [float(r["negative flips"]) <= FLIPS for r in by[name].values()]
        if "conservative" in name:
            lines.append(f"* {name}: {sum(kept)} of {len(kept)} divisions have no more, held-out.")
    lines += ["", "### Paired differences to repairopt", "", "| | less | " + " | ".join(COLUMNS[:4]) + " |"]
    lines.append("|---|---|" + "---|" * 4)
    pairs = [(PLAIN, name) for name in names if "hard" not in name and "conservative" not in name and name != PLAIN]
    pairs += [(BACK.format(share), other) for share in WAYS for other in (WISE.format(share), FEW)]
    for first, name in pairs:
        both = [(by[first][s], by[name][s]) for s in by.get(name, {}) if s in by.get(first, {})]
        if both:
            found = [cell([float(a[c]) - float(b[c]) for a, b in both], "+") for c in COLUMNS[:4]]
            lines.append(f"| {first} | {name} | " + " | ".join(found) + " |")
    return "\n".join([*lines, "", READING])


def main() -> None:
    """Run what is asked for, write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one division of a tenth of the data")
    parser.add_argument("--first", type=int, default=30, help="first division")
    parser.add_argument("--splits", type=int, default=10, help="number of divisions")
    parser.add_argument("--methods", nargs="+", choices=[*METHODS, "rivals"], default=[*METHODS, "rivals"])
    parser.add_argument("--read", action="store_true", help="run nothing")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="folder for the results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "deep.csv"
    records: list[Record] = read_csv(path, TEXT) if path.is_file() and not options.quick else []
    if not options.read:
        for split in range(options.first, options.first + (1 if options.quick else options.splits)):
            for record in run_split(split, 0.1 if options.quick else 1.0, options.methods):
                same = (record["split"], record["method"])
                records = [r for r in records if (int(r["split"]), r["method"]) != same] + [record]
                write_csv(records, path)
            print(f"{time.strftime('%H:%M:%S')} split {split} done", file=sys.stderr, flush=True)
    text = report(records)
    (options.out / "deep.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
