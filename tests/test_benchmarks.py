"""The benchmark scripts run, and their tables hold what they should."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
pytestmark = [pytest.mark.slow, pytest.mark.data]


def printed(script: str, data_dir: Path, out: Path) -> dict[str, list[list[str]]]:
    """The rows of each table that a quick run prints, by the table's title."""
    command = [sys.executable, str(BENCHMARKS / script), "--quick", "--out", str(out)]
    environment = {**os.environ, "REPAIROPT_DATA": str(data_dir)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    tables: dict[str, list[list[str]]] = {}
    for line in done.stdout.splitlines():
        if line.startswith("### "):
            rows = tables[line[4:]] = []
        elif line.startswith("| "):
            rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return tables


def numbers(cells: list[str]) -> list[float]:
    return [
        float(found.replace(",", "")) for cell in cells for found in re.findall(r"[-+]?\d[\d,]*\.?\d*|nan|inf", cell)
    ]


def test_autoric_tables(data_dir, tmp_path):
    tables = printed("autoric_tables.py", data_dir, tmp_path)
    assert [title.split(":")[0] for title in tables] == ["Table 4", "Table 6", "Table 7", "Table 8"]
    methods = {row[1] for rows in tables.values() for row in rows[1:]}
    for method in ("one-shot QP, projected", "incremental", "bisection", "sequential, buffer", "one-shot LP, no rows"):
        assert method in methods
    for peer in ("AutoRIC, paper", "Adam + penalty, same weights", "fine-tuning, all weights", "CARE swarm"):
        assert peer in methods
    for head, *rows in tables.values():
        assert rows
        for row in rows:
            assert len(row) == len(head)
            found = numbers(row[2:])
            assert found
            assert all(map(math.isfinite, found))
    lines = (tmp_path / "autoric_runs.csv").read_text().splitlines()
    assert len(lines) - 1 == len(methods) - 7  # 5 rows of the paper and 2 of its networks are quoted


def test_speed(data_dir, tmp_path):
    tables = printed("speed.py", data_dir, tmp_path)
    assert len(tables) == 4
    for rows in tables.values():
        assert len(rows) > 2
        for row in rows[1:]:
            found = numbers(row[1:])
            assert found
            assert all(map(math.isfinite, found))
    floor = next(rows for title, rows in tables.items() if title == "Floor")
    assert float(dict(map(tuple, floor[1:]))["ratio to the floor"]) > 1
