"""A spec file with everything that it names, in a folder: a biased network of 22 weights, solved in a second."""

from __future__ import annotations

import csv
from pathlib import Path

import torch
from biased_task import ramps, task as biased

from repairopt.patches import save_weights

SPEC = """\
model:
  factory: repairopt.interfaces.specfile.networks:mlp
  arguments: {sizes: [2, 4, 2]}
  weights: weights.safetensors
data:
  repair: {file: rows.csv, rows: "0:400"}
  held_out: {file: rows.csv, rows: "400:800"}
  guard: {file: rows.csv, rows: "0:400", where: merit >= 0.8}
inputs:
  merit:
  group: {categories: [women, men]}
label: {column: decision, classes: ["no", "yes"]}
sensitive_features: [group]
goal: gap(group, favorable="yes", kind=parity) <= 0.1
bounds:
  - recall("yes") >= 0.6
  - flips(guard) <= 3
  - max_change <= 2
watch: [equalized_odds_difference(group)]
change: {layers: last}
"""


def write_spec(folder: Path, text: str = SPEC) -> Path:
    """Rows, weights and the spec file in a folder; the path of the spec."""
    task = biased(dtype=torch.float32)
    inputs = torch.cat([task.inputs, task.other_inputs])
    labels = torch.cat([task.labels, task.other_labels])
    with (folder / "rows.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["merit", "group", "decision"])
        for (merit, group), label in zip(inputs.tolist(), labels.tolist(), strict=True):
            writer.writerow([f"{merit:.6f}", ("women", "men")[int(group)], ("no", "yes")[label]])
    save_weights(ramps().float(), folder / "weights.safetensors")
    (folder / "spec.yaml").write_text(text, encoding="utf-8")
    return folder / "spec.yaml"
