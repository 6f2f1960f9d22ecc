"""Claims of the post-training paper examined anew: DARE's robustness, FMT's fairness, each beside ours.

    python benchmarks/post_training.py [--part fairness|robustness] [--subject digits|LeNet5] [--seeds N] [--out FOLDER]

Fairness: a network that learned 6,000 rows of Adult, 1,500 to choose by, the other 22,662 to measure on. Robustness: a
network with its history (scikit-learn's digits, or LeNet5 on 8,100 MNIST images); C&W, FGSM, JSMA and PGD make points
against the original network from test images, and robustness is the accuracy on them. One thread, CPU s. Needs
``REPAIROPT_DATA``.
"""

from __future__ import annotations

import argparse
import gzip
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import environment  # noqa: F401  (one thread)
import numpy as np
import pandas as pd
import torch
from solver_instances import DATA
from study_subjects import SUBJECTS, trained
from torch import Tensor, nn

from repairopt import KeepLabels, OddsGap, Settings, solve_repair
from repairopt.methods import DARE, FMT, AdversarialTraining, Debias, DropColumn, Reweigh
from repairopt.methods.training.attacks import CarliniWagner, attacked, find_attack
from repairopt.pipeline import propose_candidate
from repairopt.specify import AdversarialError, ErrorRate

FOLDER = Path(__file__).resolve().parent
SEX = 0  # column, 1 for men
LEARNED, IMAGES, ATTACKED = 6_000, 2_000, 300  # rows of Adult, and images, to learn from; test images attacked
LONGEST = 300.0  # seconds of our own repair
Pair = tuple[Tensor, Tensor]
Row = list[str]


def adult(seed: int) -> list[Pair]:
    """Training, validation and test rows of the complete rows: sex first, categories one-hot, numbers standardized."""
    with gzip.open(DATA / "tables" / "adult.csv.gz", "rt", encoding="utf-8") as file:
        table = pd.read_csv(file, na_values="?", skipinitialspace=True).dropna()
    y = (table.pop("income-per-year") == ">50K").to_numpy(dtype=np.int64)
    sex = (table.pop("sex") == "Male").to_numpy(dtype=np.float32)
    numbers = table.select_dtypes("number").to_numpy(dtype=np.float32)
    hot = pd.get_dummies(table.select_dtypes(exclude="number")).to_numpy(dtype=np.float32)
    x = np.concatenate([sex[:, None], (numbers - numbers.mean(0)) / numbers.std(0), hot], 1)
    order = np.random.default_rng(seed).permutation(len(x))
    cuts = np.split(order, [LEARNED, LEARNED + LEARNED // 4])
    return [(torch.tensor(x[part]), torch.tensor(y[part])) for part in cuts]


def unfairness(model: nn.Module, rows: Pair) -> list[float]:
    """Accuracy, |SPD|, AAOD and |EOD| on some rows."""
    x, y = rows
    with torch.no_grad():
        found = model(x).argmax(1)
    man = x[:, SEX] > 0
    rates = {(a, b): float(found[(man == a) & (y == b)].float().mean()) for a in (False, True) for b in (0, 1)}
    parity = abs(float(found[man].float().mean()) - float(found[~man].float().mean()))
    odds = [abs(rates[False, b] - rates[True, b]) for b in (0, 1)]
    return [float((found == y).float().mean()), parity, sum(odds) / 2, odds[1]]


def fairness(seeds: int) -> list[Row]:
    """FMT, its ablations, its baselines and the solver on Adult; means over seeds, changes of the original beside."""
    methods: dict[str, Any] = {
        "FMT_s": FMT(protected=(SEX,)),
        "FMT_d": FMT(protected=(SEX,), pairs="double"),
        "FMT_s, no slicing": FMT(protected=(SEX,), slicing=False),
        "FMT_s, last layer": FMT(protected=(SEX,), layer="last"),
        "FMT_s, original loss": FMT(protected=(SEX,), slicing=False, loss="label"),
        "FMT_s, random values": FMT(protected=(SEX,), draw="random"),
        "REW": Reweigh(protected=(SEX,)),
        "ADV": Debias(protected=(SEX,)),
        "SUPP": DropColumn(protected=(SEX,)),
    }
    found: dict[str, list[list[float]]] = {}
    for seed in range(seeds):
        train, validation, test = adult(seed)
        torch.manual_seed(seed)
        sizes = [train[0].shape[1], 64, 32, 16, 8, 4, 2]
        layers = [part for a, b in zip(sizes, sizes[1:], strict=False) for part in (nn.Linear(a, b), nn.ReLU())]
        model = nn.Sequential(*layers[:-1])
        trained(model, *train, epochs=6, seed=seed)
        found.setdefault("original", []).append([*unfairness(model, test), 0.0])
        goal = OddsGap.observed(*train, SEX, favorable=1, target=0.02)
        for name, method in methods.items():
            given = type(method)(**{**vars(method), "validation": validation})
            begun = time.process_time()
            network = propose_candidate(model, goal, data=train, method=given, settings=Settings(seed=seed)).apply()
            found.setdefault(name, []).append([*unfairness(network, test), time.process_time() - begun])
            print(seed, name, found[name][-1], flush=True)
        begun = time.process_time()
        keep = KeepLabels(*train, tolerance=0.02)
        repair = solve_repair(model, goal, [keep], settings=Settings(seed=seed, time_limit=120))
        found.setdefault("sqp (ours)", []).append([*unfairness(repair.model, test), time.process_time() - begun])
        print(seed, "sqp", found["sqp (ours)"][-1], repair.report.verdict, flush=True)
    means = {name: np.mean(rows, 0) for name, rows in found.items()}
    return [[name, *(f"{value:.4f}" for value in mean[:-1]), f"{mean[-1]:.1f}"] for name, mean in means.items()]


def robustness(seeds: int, name: str) -> list[Row]:
    """DARE, its ablations and adversarial training; accuracy on points of four attacks; means over seeds."""
    subject = SUBJECTS[name]()
    assert subject.radius is not None
    model, train = subject.network, subject.train
    model.eval()
    x, y = subject.test[0][:ATTACKED], subject.test[1][:ATTACKED]
    attacks = {"C&W": CarliniWagner(searches=5, steps=60)}
    attacks |= {one.upper(): find_attack(one, subject.radius) for one in ("fgsm", "jsma", "pgd")}
    points = {name: attacked(made, model, x, y) for name, made in attacks.items()}
    few = (train[0][:IMAGES], train[1][:IMAGES])
    shared: dict[str, Any] = {"validation": subject.validation}
    methods: dict[str, tuple[Any, Pair]] = {
        name: (DARE(history=subject.history, **shared, **settings), train) for name, settings in DARE.systems.items()
    }
    for name, made in attacks.items():
        methods[f"trained on {name}"] = (AdversarialTraining(attack=made, radius=subject.radius, **shared), few)

    def figures(network: nn.Module) -> list[float]:
        with torch.no_grad():
            right = [float((network(made).argmax(1) == y).float().mean()) for made in points.values()]
            clean = float((network(subject.test[0]).argmax(1) == subject.test[1]).float().mean())
        return [clean, *right, sum(right) / len(right)]

    rows = [["original", *(f"{value:.3f}" for value in figures(model)), "0.0"]]
    goal = ErrorRate(*subject.repair, target=0.0)
    for name, (method, data) in methods.items():
        every = []
        for seed in range(seeds):
            begun = time.process_time()
            network = propose_candidate(model, goal, data=data, method=method, settings=Settings(seed=seed)).apply()
            every.append([*figures(network), time.process_time() - begun])
            print(name, every[-1], flush=True)
        mean = np.mean(every, 0)
        rows.append([name, *(f"{value:.3f}" for value in mean[:-1]), f"{mean[-1]:.1f}"])
    begun = time.process_time()
    asked = AdversarialError(*few, subject.radius, target=0.02)
    keep = KeepLabels(*train, tolerance=0.01)
    repair = solve_repair(model, asked, [keep], data=train, settings=Settings(time_limit=LONGEST))
    found = figures(repair.model)
    print("ours", found, repair.report.method, repair.report.verdict, flush=True)
    rows.append(["default call (ours)", *(f"{value:.3f}" for value in found), f"{time.process_time() - begun:.1f}"])
    return rows


TITLE = """# Post-training: {part}

Made by `python benchmarks/post_training.py --part {part}{subject} --seeds {seeds}`; one thread, CPU s, means.
"""
READING = {
    "fairness": """\
FMT's claim holds on Adult (sex): at up to 0.2 points of accuracy AAOD falls by 47 % (FMT_s) and 62 % (FMT_d), EOD by
34 % and 75 %. What it learns matters more than the slices, as in the paper: with the original loss EOD rises above that
of the original. REW and SUPP do less. ADV, trained anew in this narrow network, answered no to everybody in one of two
runs. The solver, with a bound of 2 % on right answers that turn wrong, reaches the AAOD of FMT_d and a lower EOD at the
accuracy of the original; its SPD, which was not bounded, stays higher than FMT's.
""",
    "robustness_digits": """\
DARE makes the network more robust, most against C&W, and loses 0.7 points of clean accuracy.
Not confirmed on this network (630 training images): that slicing and the loss on hidden outputs matter, and that
adversarial training does less. Trained on the points of any attack, mixed with clean images, the network is more robust
against all four, and more accurate. The default call, asked for an error under attack (PGD) of at most 2 % at no more
than 1 % of right answers lost, changes 100 weights, does not reach that, and stays at the original accuracy: it is
more robust than DARE, most against C&W, and less than training on attacked points.
""",
    "robustness_lenet5": """\
DARE raises the mean from 0.651 to 0.865 at no loss of clean accuracy, without seeing an attack, and the search of the
history matters (DARE_rand: 0.828). Not confirmed: slicing and the loss on hidden outputs matter little (the original
loss on the same images, DARE_-sl, is slightly better), and adversarial training on 2,000 images, mixed with clean
ones, is at least as robust (0.874 to 0.919). The points were made against the original network, as in the paper;
attacks against the tuned networks themselves are not measured here. The default call, asked for an error under attack
(PGD) of at most 2 % at no more than 1 % of right answers lost, changes nothing within its 300 s: a goal under attack
is not what it is good at on images.
""",
}
HEADS = {
    "fairness": ["method", "accuracy", "SPD", "AAOD", "EOD", "CPU s"],
    "robustness": ["method", "clean", "C&W", "FGSM", "JSMA", "PGD", "mean of four", "CPU s"],
}


def main() -> None:
    """Run the parts, write their tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=list(HEADS))
    parser.add_argument("--subject", choices=["digits", "LeNet5"], default="digits")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=FOLDER / "results")
    given = parser.parse_args()
    torch.set_num_threads(1)
    makes: dict[str, Callable[[], list[Row]]] = {
        "fairness": lambda: fairness(given.seeds),
        "robustness": lambda: robustness(given.seeds, given.subject),
    }
    for part, make in makes.items():
        if given.part in (None, part):
            subject = "" if part == "fairness" else f" --subject {given.subject}"
            name = f"{part}_{given.subject.lower()}" if subject else part
            told = TITLE.format(part=part, subject=subject, seeds=given.seeds) + "\n" + READING[name]
            lines = [f"| {' | '.join(row)} |" for row in (HEADS[part], ["---"] * len(HEADS[part]), *make())]
            text = "\n".join([told, *lines]) + "\n"
            (given.out / f"post_training_{name}.md").write_text(text, encoding="utf-8")
            print(text)


if __name__ == "__main__":
    main()
