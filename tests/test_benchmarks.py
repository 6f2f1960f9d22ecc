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


def test_solvers(data_dir, tmp_path):
    pytest.importorskip("matplotlib")
    tables = printed("solvers.py", data_dir, tmp_path)
    accuracy = {row[0]: row for row in tables["Accuracy"][1:]}
    for way in ("daqp", "piqp", "highs", "scip", "woodbury", "default", "rows + daqp"):
        tried, right, _, wrong = map(int, accuracy[way][1:5])
        assert tried == right > 0
        assert wrong == 0
    assert len(tables["Answers that are not right"]) == 2  # the head alone
    assert {row[0] for row in tables["Mixed-integer programs"][1:]} == {
        "at most 8 of 12 weights change",
        "at most 5 of 30 rows break",
    }
    for title in (
        "What solve() adds to the native call",
        "Direct, through CVXPY, through Pyomo",
        "Rules against measurements",
    ):
        assert len(tables[title]) > 1
    for head, *rows in tables.values():
        assert all(len(row) == len(head) for row in rows)
    assert "## Reading" in (tmp_path / "solvers.md").read_text()
    picture = (tmp_path / "solver_profiles.png").read_bytes()
    assert picture[:8] == b"\x89PNG\r\n\x1a\n"
    runs = (tmp_path / "solver_programs.csv").read_text().splitlines()
    assert len(runs) - 1 >= sum(int(row[1]) for row in accuracy.values())


def test_solvers_are_held_to_the_best_bound():
    """An answer off by more than 1e-6 is not right, whoever calls it optimal; nor is one that violates a row."""
    sys.path.insert(0, str(BENCHMARKS))
    from solver_tables import cells

    good = {
        "way": "good",
        "status": "optimal",
        "objective": 1.0,
        "violation": 0.0,
        "gap": 1e-9,
        "scale": 1.0,
        "cpu": 1.0,
    }
    far = {**good, "way": "far", "objective": 1.0 + 3e-6, "gap": float("nan")}
    outside = {**good, "way": "outside", "violation": 1e-4}
    gone = {"way": "gone", "status": "infeasible", "message": ""}
    found = cells([good, far, outside, gone])
    assert [way for way, one in found.items() if one.right] == ["good"]
    assert [way for way, one in found.items() if one.wrong] == ["far", "outside", "gone"]
    assert found["far"].seconds == math.inf
