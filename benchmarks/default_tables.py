"""The public tables of default calls: Adult, bank marketing, and ProPublica's two-year recidivism.

``tables/adult.csv.gz`` and ``autoric/bank.npz`` stand in the folder ``REPAIROPT_DATA``;
``tables/compas-scores-two-years.csv`` is the file of that name in ProPublica's repository ``compas-analysis``.
"""

from __future__ import annotations

import csv
import gzip
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from benchmark_files import DATA
from torch import Tensor

RECIDIVISM = DATA / "tables" / "compas-scores-two-years.csv"
NUMBERS = ("age", "education-num", "capital-gain", "capital-loss", "hours-per-week")
WORDS = ("workclass", "marital-status", "occupation", "relationship", "race", "sex")
COUNTS = ("age", "priors_count", "juv_fel_count", "juv_misd_count", "juv_other_count")
STATES = ("c_charge_degree", "sex", "race")


@dataclass(frozen=True, eq=False)
class Rows:
    """Encoded rows ``(N, d)``, their labels and the words that tell groups."""

    x: Tensor
    y: Tensor
    words: dict[str, np.ndarray]

    def at(self, index: np.ndarray) -> Rows:
        """Some of the rows."""
        return Rows(self.x[index], self.y[index], {name: values[index] for name, values in self.words.items()})


def _encoded(numbers: list[np.ndarray], words: list[np.ndarray]) -> Tensor:
    """Numbers standardized, and words as one column each."""
    parts = [((own - own.mean()) / own.std())[:, None] for own in numbers]
    parts += [(own[:, None] == np.unique(own)[None, :]).astype(float) for own in words]
    return torch.tensor(np.concatenate(parts, 1), dtype=torch.float32)


@lru_cache
def adult() -> Rows:
    """Census income: more than 50K is favorable."""
    with gzip.open(DATA / "tables" / "adult.csv.gz", "rt", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    columns = {name: np.array([row[name].strip() for row in rows]) for name in (*NUMBERS, *WORDS)}
    numbers = [columns[name].astype(float) for name in NUMBERS]
    numbers = [np.log1p(own) if name.startswith("capital") else own for name, own in zip(NUMBERS, numbers, strict=True)]
    labels = np.array([row["income-per-year"].strip().startswith(">") for row in rows]).astype(np.int64)
    words = {name: columns[name] for name in ("sex", "race", "age")}
    return Rows(_encoded(numbers, [columns[name] for name in WORDS]), torch.tensor(labels), words)


@lru_cache
def bank() -> Rows:
    """Bank marketing, 45,211 calls: a deposit is favorable."""
    file = np.load(DATA / "autoric" / "bank.npz", allow_pickle=False)
    values = np.concatenate([file["train_x"], file["test_x"]]).astype(float)
    labels = (np.concatenate([file["train_y"], file["test_y"]]) == 0).astype(np.int64)
    columns = dict(zip(file["feature_names"].tolist(), values.T, strict=True))
    coded = ("job", "marital", "education", "contact", "month", "poutcome")
    numbers = [own for name, own in columns.items() if name not in coded]
    words = {"tertiary": np.where(columns["education"] == 3, "tertiary", "other")}
    return Rows(_encoded(numbers, [columns[name] for name in coded]), torch.tensor(labels), words)


@lru_cache
def recidivism() -> Rows:
    """Two-year recidivism, 7,214 people: none is favorable."""
    with RECIDIVISM.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    columns = {name: np.array([row[name] for row in rows]) for name in (*COUNTS, *STATES)}
    labels = np.array([row["two_year_recid"] == "0" for row in rows]).astype(np.int64)
    words = {"race": np.where(columns["race"] == "African-American", "African-American", "other")}
    numbers = [columns[name].astype(float) for name in COUNTS]
    return Rows(_encoded(numbers, [columns[name] for name in STATES]), torch.tensor(labels), words)
