"""The demo: made-up loan decisions, a network that learned their bias, a spec, and the repair."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from repairopt.compare import train_network
from repairopt.errors import ResultError
from repairopt.interfaces.commandline.bars import Bars
from repairopt.interfaces.specfile.networks import mlp
from repairopt.patches import save_weights

from .results import SolveResult
from .run_folder import RunFolder
from .solve_run import Options, Progress, solve_spec

SIZES = [6, 16, 8, 2]
COLUMNS = ("income", "debt", "years", "savings", "age", "group", "decision")
SPEC = """\
# Loan decisions of the past favored group B, and the network learned that. Try it:
#   repairopt check spec.yaml
#   repairopt solve spec.yaml --out repair
model:
  factory: repairopt.interfaces.specfile.networks:mlp
  arguments: {sizes: [6, 16, 8, 2]}
  weights: model.safetensors
data:
  repair: loans.csv
split: {held_out: 0.4}
inputs:                      # in the order in which the network reads them
  income:
  debt:
  years:
  savings:
  age: {mean: 45, std: 12}
  group: {categories: [A, B]}
label: {column: decision, classes: [refused, granted]}
sensitive_features: [group]
goal: gap(group, favorable=granted, kind=parity) <= 0.05
bounds:
  - accuracy_drop <= 0.02
  - recall(granted) >= 0.8
watch:
  - equalized_odds_difference(group, granted)
change: {layers: last, columns: group}
"""


def run_demo(out: str | Path, *, overwrite: bool = False, progress: Progress | None = None) -> SolveResult:
    """Write data, network and spec into a folder, and repair the network; the repair lies in ``repair`` in it."""
    tell = progress or Bars(quiet=True)
    folder = Path(out)
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not overwrite)):
        raise ResultError(f"'{folder}' exists. Use --overwrite to write into it, or another --out.")
    if overwrite and RunFolder(folder / "repair").started and not (folder / "loans.csv").exists():
        raise ResultError(f"'{folder}' holds no demo. Use another --out.")
    folder.mkdir(parents=True, exist_ok=True)
    files = {"data": "loans.csv", "weights": "model.safetensors", "spec": "spec.yaml"}
    with tell.stage("training a network"):
        inputs, labels = _loans(5000)
        _write_table(folder / files["data"], inputs, labels)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = mlp(SIZES)
        save_weights(train_network(network, inputs, labels), folder / files["weights"])
        (folder / files["spec"]).write_text(SPEC, encoding="utf-8")
    options = Options(overwrite=overwrite)
    result = solve_spec(folder / files["spec"], folder / "repair", options, tell, command="demo")
    made: dict[str, str] = {kind: str(folder / name) for kind, name in files.items()}
    return result.model_copy(update={"files": made | result.files})


def _loans(count: int) -> tuple[Tensor, Tensor]:
    """Features ``(count, 6)`` as the network reads them, the last one the group; past decisions ``(count,)``."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(count, 6, generator=draw)
    x[:, 4] = (x[:, 4] * 12).round() / 12  # whole years of age
    x[:, 5] = (x[:, 5] > 0).float()
    noise = 0.5 * torch.randn(count, generator=draw)
    return x, (x[:, 0] - 0.5 * x[:, 1] + 0.4 * x[:, 5] + noise > 0).long()


def _write_table(path: Path, inputs: Tensor, labels: Tensor) -> None:
    rows: list[list[Any]] = []
    for row, label in zip(inputs.tolist(), labels.tolist(), strict=True):
        money = [f"{value:.5f}" for value in row[:4]]
        rows.append([*money, round(45 + 12 * row[4]), "B" if row[5] else "A", ("refused", "granted")[label]])
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(rows)
