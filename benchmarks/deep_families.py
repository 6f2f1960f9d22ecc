"""Repair of all layers of a ResNet-20, a Transformer and an LSTM, and by factors of low rank, beside tuned fine-tuning.

    python benchmarks/deep_families.py [--quick] [--networks ...] [--first N] [--splits N] [--share S] [--ours ...]
                                        [--rivals ...] [--read] [--out FOLDER]

MNIST test digits at half the resolution. The networks are trained by the script on 3,000 of them; a division gives
2,000 of the others, clean and rotated with noise, to the repair and judges on 5,000. Rivals are tuned on a quarter of
the repair part of division 0 (learning rate, weight of the clean digits), on which no figure is reported, and train for
as long as the plain repair of the same division took: Adam and SGD with momentum on all layers, the mean of two runs of
half the length, parts of the way back (WiSE-FT), and LoRA of the same rank through ``peft``. Batch normalization is
frozen for all. Writes ``deep_families.md``, and every run to ``deep_families.csv``. Needs ``REPAIROPT_DATA`` and the
library ``peft``.
"""

from __future__ import annotations

import argparse
import copy
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import environment  # noqa: F401 (before numpy and torch)
import numpy as np
import torch
from benchmark_files import Record, read_csv, write_csv
from correctness_data import Digits
from deep import BACK, COLUMNS, FEW, PLAIN, SMALL, WAYS, between, figures
from deep_networks import NETWORKS, division, train_on_both, trained
from torch import nn

from repairopt import ErrorRate, KeepLabels, LowRank, Settings, TrainThenCorrect, solve_repair

RANK = 4
EPOCHS = 6  # of tuning
KEEPS = (1.0, 3.0)
RATES = {"Adam": (1e-3, 2e-3, 4e-3, 8e-3), "SGD": (0.01, 0.03, 0.1), "LoRA": (5e-3, 1e-2, 2e-2, 4e-2)}
RATES[FEW] = (5e-4, 1e-3, 2e-3, 4e-3)
WISE = "WiSE-FT, {:g} of the way of Adam"
TEXT = ("network", "method")


@dataclass(frozen=True)
class Tuned:
    """The best rate and weight of the clean digits of a rival, and its processor seconds for an epoch."""

    rate: float
    keep: float
    seconds: float


def repaired(model: nn.Module, here: Digits, split: int, weights: Any, hard: bool, method: Any = "auto") -> nn.Module:
    """The library's default for these weights, unless a method is given."""
    goal = ErrorRate(here.shifted, here.labels, target=0.0)
    keep = [KeepLabels(here.clean, here.labels, tolerance=0.0)] if hard else []
    data = [(here.clean, here.labels), (here.shifted, here.labels)]
    asked: Any = {"data": data, "weights": weights, "method": method, "settings": Settings(seed=split)}
    return solve_repair(model, goal, keep, held_out=(here.shifted[:1], here.labels[:1]), **asked).model


def with_factors(model: nn.Module) -> nn.Module:
    """The network with LoRA's factors beside its linear and convolutional layers, by ``peft``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import peft

        layers = [re.escape(name) for name, layer in model.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
        config = peft.LoraConfig(r=RANK, lora_alpha=RANK, target_modules="|".join(layers))
        made: nn.Module = peft.get_peft_model(copy.deepcopy(model), config)
    return made


def tune(kind: str, model: nn.Module, data: Digits, epochs: int, rate: float, keep: float, seed: int) -> nn.Module:
    """Fine-tuning with linear decay: cross-entropy on shifted digits, and on clean ones times ``keep``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = with_factors(model) if kind == "LoRA" else copy.deepcopy(model).requires_grad_(True)
    own = [parameter for parameter in made.eval().parameters() if parameter.requires_grad]
    optimizer: Any = torch.optim.SGD(own, rate, momentum=0.9) if kind == "SGD" else torch.optim.Adam(own, rate)
    batch = {"batch": SMALL["batch"]} if kind == FEW else {}
    train_on_both(made, optimizer, data, epochs, rate, keep, seed, **batch)
    return made


def tuned(kind: str, model: nn.Module, share: float) -> Tuned:
    """The settings with the best sum of both accuracies on a quarter of the repair part of division 0."""
    here = division(0, share)[0]
    cut = 3 * len(here.labels) // 4
    fit, other = here.part(torch.arange(cut)), here.part(torch.arange(cut, len(here.labels)))
    best, started, tried = (-np.inf, (0.0, 0.0)), time.process_time(), list(product(RATES[kind], KEEPS))
    for rate, keep in tried:
        found = figures(model, tune(kind, model, fit, EPOCHS, rate, keep, 0), other)
        best = max(best, (found["shifted accuracy"] + found["clean accuracy"], (rate, keep)))
    seconds = (time.process_time() - started) / len(tried) / EPOCHS * len(here.labels) / cut
    print(f"{kind}: rate {best[1][0]:g}, keep {best[1][1]:g}, {seconds:.2f} s an epoch", file=sys.stderr, flush=True)
    return Tuned(*best[1], seconds)


OURS: dict[str, tuple[Any, ...]] = {
    PLAIN: ("all", False),
    "repairopt, hard": ("all", True),
    f"repairopt, rank {RANK}": (LowRank(RANK), False),
    f"repairopt, rank {RANK}, hard": (LowRank(RANK), True),
    "repairopt, last layer": ("last", False),
    "repairopt, closeness 0.5": ("all", False, TrainThenCorrect(keep=1.0, closeness=0.5)),
}


def timed(make: Callable[[], nn.Module]) -> tuple[nn.Module, float]:
    """A network, and the processor seconds that it took."""
    started = time.process_time()
    return make(), time.process_time() - started


def runs(
    model: nn.Module, here: Digits, split: int, settings: dict[str, Tuned], ours: list[str]
) -> Iterator[tuple[str, nn.Module, float]]:
    """Name, network and processor seconds of each method on a division; without settings there are no rivals."""
    seconds = 0.0
    for name in ours:
        after, spent = timed(lambda asked=OURS[name]: repaired(model, here, split, *asked))
        seconds = spent if name == PLAIN else seconds
        yield name, after, spent
        for share in WAYS if name == PLAIN else ():
            yield BACK.format(share), between(model, after, share), spent
    if not settings:
        return

    def rival(kind: str, time_share: float, seed: int) -> tuple[nn.Module, float]:
        chosen = settings[kind]
        epochs = max(1, round(time_share * seconds / chosen.seconds))
        return timed(lambda: tune(kind, model, here, epochs, chosen.rate, chosen.keep, seed))

    long, spent = rival("Adam", 1.0, split)
    yield "Adam", long, spent
    for kind in ("SGD", FEW):
        if kind in settings:
            yield kind, *rival(kind, 1.0, split)
    one, first = rival("Adam", 0.5, split)
    other, second = rival("Adam", 0.5, split + 10_000)
    yield "mean of two runs of Adam of half the length", between(one, other, 0.5), first + second
    for share in WAYS:
        yield WISE.format(share), between(model, long, share), spent
    if "LoRA" in settings:
        yield f"LoRA, rank {RANK}", *rival("LoRA", 1.0, split)


def run_network(name: str, splits: range, share: float, ours: list[str], rivals: list[str]) -> Iterator[Record]:
    """All methods on some divisions."""
    model = trained(name)
    if "LoRA" in rivals:
        with_factors(model)  # imports peft, which is in nobody's time
    settings = {kind: tuned(kind, model, share) for kind in rivals}
    for split in splits:
        here, there = division(split, share)
        for method, after, seconds in runs(model, here, split, settings, ours):
            record: Record = {"network": name, "split": split, "method": method, "cpu seconds": seconds}
            record["guard flips"] = round(figures(model, after, here)["negative flips"] * len(here.labels))
            yield record | figures(model, after, there)
        print(f"{time.strftime('%H:%M:%S')} {name} {split} done", file=sys.stderr, flush=True)


def cell(values: list[float], sign: str = "") -> str:
    """Mean and standard error; a single value alone."""
    found = np.asarray(values)
    digits = 1 if abs(found.mean()) > 2 else 4
    if len(found) == 1:
        return f"{found[0]:{sign}.{digits}f}"
    error = found.std(ddof=1) / len(found) ** 0.5
    return f"{found.mean():{sign}.{digits}f} ± {error:.{digits}f}"


def tables(name: str, records: list[Record]) -> list[str]:
    """Means and paired differences of a network."""
    own = [r for r in records if r["network"] == name]
    splits = sorted({int(r["split"]) for r in own})
    by: dict[str, dict[int, Record]] = {}
    for r in own:
        by.setdefault(str(r["method"]), {})[int(r["split"])] = r
    original = figures(trained(name), trained(name), division(splits[0])[1])
    weights = sum(p.numel() for p in trained(name).parameters())
    lines = [f"## {name}, {weights:,} weights, divisions {splits[0]} to {splits[-1]}", ""]
    lines += [f"Before: shifted {original['shifted accuracy']:.4f}, clean {original['clean accuracy']:.4f}.", ""]
    lines += ["| method | divisions | " + " | ".join(COLUMNS) + " |", "|---|---|" + "---|" * len(COLUMNS)]
    for method, rows in by.items():
        found = [cell([float(r[column]) for r in rows.values()]) for column in COLUMNS]
        lines.append(f"| {method} | {len(rows)} | " + " | ".join(found) + " |")
    lines += ["", "Paired differences:", "", "| | less | divisions | " + " | ".join(COLUMNS[:4]) + " |"]
    lines.append("|---|---|---|" + "---|" * 4)
    pairs = [(PLAIN, method) for method in by if method != PLAIN]
    pairs += [(BACK.format(share), other) for share in WAYS for other in ("Adam", WISE.format(share)) if other in by]
    for first, method in pairs:
        both = [(by[first][s], rows[s]) for rows in [by[method]] for s in rows if s in by.get(first, {})]
        if both:
            found = [cell([float(a[c]) - float(b[c]) for a, b in both], "+") for c in COLUMNS[:4]]
            lines.append(f"| {first} | {method} | {len(both)} | " + " | ".join(found) + " |")
    return [*lines, ""]


READING = """## Reading

* Small steps (32 rows of each side in place of 128, and as many more as about the same time allows) are the rule for
  all three now. What kept the LSTM and the Transformer from them was a second stage, which was begun because single
  weights of small steps get more than one row in twenty wrong; their mean, which is delivered, got fewer wrong, and
  tells now whether a run goes on. Settled on divisions 10 and 11: LSTM .897 and .898 of shifted accuracy after .885
  and .886, clean .966 and .967 after .962 and .961, in the same time; Transformer (10) .886 and .961 after .880 and
  .955, in 8.1 s after 9.9.
* LSTM, five divisions: the bar is kept against all but WiSE-FT at 0.6. Ahead of tuned Adam of the same time, with
  steps of 128 rows and of 32, in all four columns by at least 3 standard errors of the paired difference (.012 to
  .014, .009 to .011, .008, .004 to .005 flips), and of the mean of two runs. WiSE-FT at 0.8 of the way is level in
  flips and behind in the others.
* Transformer, five divisions: the bar is kept against all but WiSE-FT. Ahead in all four columns of tuned Adam with
  steps of 128 rows (.019, .011, .007, .005 flips) and of 32 (.037, .017, .003, .002), of SGD, of the mean of two runs
  and of LoRA, by 3 standard errors and more. WiSE-FT at 0.8 has .0006 +- .0003 fewer flips and is behind in the
  others.
* WiSE-FT at 0.6 of the way has fewer flips than the whole way of any method (.004 of both networks), and repairs less
  by .13 to .17; at the same share of its own way the repair is ahead of it or level in every column.
* ResNet-20, half of the rows (1,000 of the repair), five divisions: the bar is missed, in less time than the rivals
  (10.6 s after 13.6; theirs take 13.3). Ahead of tuned Adam with steps of 128 rows in repair rate (.051) and shifted
  accuracy (.018) by 6 standard errors and more, behind in clean accuracy by .0025 +- .0017 and in flips by .0044 +-
  .0020. Adam that takes small steps repairs .012 +- .009 less, has .003 +- .002 less shifted accuracy, .0022 +- .0023
  more clean accuracy and .0023 +- .0019 fewer flips. WiSE-FT has fewer flips for what it repairs.
* Why: more training trades clean for shifted accuracy here, and what the repair has beside Adam elsewhere, the mean of
  the weights and a rate by size, gains nothing. Besides, 13 to 16 of the 1,000 reported digits are wrong where training
  ends, which Adam leaves so. On divisions 11 to 13 training ends with .778 / .897 / .9665 / .0169; to mend them by the
  last layer gave .770 / .891 / .9649 / .0187, by all layers .778 / .895 / .9657 / .0179 (with closeness, see below).
  All layers on division 2, though, moved far: .028 flips, and parts of the way worse than either end. Whichever moves
  outputs on known rows less is taken now, a rule that was found after that look at division 2.
* Closeness to the original's outputs on clean digits that it gets right (distillation at temperature 2, weight .5, with
  a weight of 1 for their labels in place of 3) is worth much to the LSTM and the Transformer: all four columns are
  better or level, by .003 of the flips and, of the Transformer, of clean accuracy (rows "closeness 0.5", which mended
  points by all layers first). It is off by default: on conv4 it costs repair rate (division 40 .790 after .804), and on
  the forty reported digits of `examples/digits_failures.py`, whose rows to keep are rotated as well, 9 points of the
  digits that nobody reported (seeds 100 to 105, .777 after .866). On ResNet divisions 10 to 13 it gave .770 / .891 /
  .9662 / .0178 after .767 / .889 / .9630 / .0209, on 1 to 5 nothing (.760 / .881 / .9620 / .0210), both before the
  corrections above.
* Tried on ResNet divisions 10 and 11 at half the steps and not taken (with closeness .804 / .906 / .9668 / .0165): no
  labels where the original is right (.796 / .905 / .9686 / .0148, but the LSTM falls to .958 of clean accuracy),
  closeness on rotated digits as well (.774 / .893 / .9665 / .0177), mixing of rows (mixup, .757 / .885 / .9682 /
  .0158), half as many sharpness-aware steps (.735 / .878 / .9631 / .0198); earlier half of the rate, a cap for it,
  steps of 16 rows and twice the weight of clean rows.
* Low rank (Transformer): the repair of rank 4 is about level with LoRA fine-tuning of a tuned rate in all four columns
  (less by .010 +- .006 in repair rate, more by .003 +- .003 in clean accuracy), and takes 23 s on average in place of
  12. All layers are ahead of both by .024 of shifted accuracy.
* Hard: no guard flips in any of the fifteen divisions, within .0002 of plain in the other columns on average. The last
  layer alone, by SQP, is behind everywhere and breaks guards that it was not told of.
* The machine was shared: rivals and the last layer ran at a load of 6 to 8 on two cores, plain, hard and low rank of
  the version of today at 2 to 5. Processor seconds are up to 1.5 times those of an idle machine.
"""


def report(records: list[Record]) -> str:
    """The page."""
    lines = ["# Repair of all layers: a ResNet-20, a Transformer, an LSTM, and low rank", ""]
    lines += [
        "Made by `python benchmarks/deep_families.py`. Means with standard errors over divisions, held-out but for"
    ]
    lines += ["guard flips; one thread.", ""]
    for name in dict.fromkeys(str(r["network"]) for r in records):
        lines += tables(name, records)
    return "\n".join([*lines, READING])


def main() -> None:
    """Run what is asked for, write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one division of a tenth of the data")
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--first", type=int, default=1, help="first division, not 0")
    parser.add_argument("--splits", type=int, default=3, help="number of divisions")
    parser.add_argument("--share", type=float, default=1.0, help="of the rows of a division")
    parser.add_argument("--ours", nargs="*", choices=list(OURS), default=list(OURS))
    parser.add_argument(
        "--rivals", nargs="*", choices=list(RATES), default=list(RATES), help="none, or Adam and others"
    )
    parser.add_argument("--read", action="store_true", help="run nothing")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="folder for the results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "deep_families.csv"
    records: list[Record] = read_csv(path, TEXT) if path.is_file() and not options.quick else []
    splits = range(options.first, options.first + (1 if options.quick else options.splits))
    for name in () if options.read else options.networks:
        for record in run_network(name, splits, 0.1 if options.quick else options.share, options.ours, options.rivals):
            same = tuple(record[key] for key in ("network", "split", "method"))
            records = [r for r in records if (r["network"], int(r["split"]), r["method"]) != same] + [record]
            write_csv(records, path)
    text = report(records)
    (options.out / "deep_families.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
