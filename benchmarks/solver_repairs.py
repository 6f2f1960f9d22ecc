"""The known answers of ``tests/pipeline/test_known_answers.py`` once more, for their times."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import environment  # noqa: F401  (one thread)
import numpy as np
from solver_instances import DATA

from repairopt.program import solve

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))

Record = dict[str, Any]
PUBLISHED = {  # drawdown, generalization, seconds, by whom
    "fog 3x100, last layer": "1.28, 31.5, 5 s (APRNN)",
    "fog 3x100, last layer, published margins": "1.28, 31.5, 5 s (APRNN)",
    "fog 9x200, last layer": "1.38, 24.7, 455 s (APRNN); 3.92, 6.6, 5 s (PRDNN)",
    "fog 9x200, third layer": "1.38, 24.7, 455 s (APRNN); 3.92, 6.6, 5 s (PRDNN)",
    "misclassified 256x2, last layer": "-, -, 2117 s (REASSURE)",
}


def watermarks(solver: str = "highs", form: str = "reciprocal") -> list[Record]:
    """Every published set, one line for each size: largest relative error, mean CPU seconds of the solve."""
    from real_programs import Watermarks

    marks, found = Watermarks.load(DATA), []
    for size, optima in sorted(marks.optima.items()):
        errors, seconds = [], 0.0
        for samples, optimum in zip(marks.sets[size], optima, strict=True):
            program = getattr(marks, form)(samples)
            started = time.process_time()
            answer = solve(program, solver)
            seconds += time.process_time() - started
            value = -1.0 / answer.objective if form == "reciprocal" else answer.objective
            errors.append(abs(value / optimum - 1.0))
        found.append({"size": size, "sets": len(optima), "error": float(np.max(errors)), "cpu": seconds / len(optima)})
    return found


def repairs() -> list[Record]:
    """Each repair with its figures and CPU seconds, data and network loaded before."""
    from real_programs import PointRepair, repair_last_layer, repair_layer

    small = PointRepair.fog(DATA, "mnist_relu_3_100", fix_margin=0.3, keep_margin=5.0)
    plain = PointRepair.fog(DATA, "mnist_relu_3_100")
    deep = PointRepair.fog(DATA, "mnist_relu_9_200", keep_margin=0.3)
    hidden = PointRepair.fog(DATA, "mnist_relu_9_200", fix_margin=0.3, keep_margin=0.3)
    wrong = PointRepair.misclassified(DATA, keep_margin=4.0)
    repair_last_layer(plain, "daqp")  # loads the libraries
    found = []
    for name, task in (
        ("fog 3x100, last layer", small),
        ("fog 3x100, last layer, published margins", plain),
        ("fog 9x200, last layer", deep),
        ("misclassified 256x2, last layer", wrong),
    ):
        for way in ("daqp", "woodbury", None):
            found.append(repaired(name, way or "default", task, lambda: repair_last_layer(task, way)[0]))  # noqa: B023
    walk: Callable[[], Any] = lambda: repair_layer(hidden, 4, [0.3] * 3 + [0.6] * 12)[0]  # noqa: E731
    return [*found, repaired("fog 9x200, third layer", "woodbury", hidden, walk)]


def repaired(name: str, way: str, task: Any, run: Callable[[], Any]) -> Record:
    """One repair."""
    started = time.process_time()
    try:
        model = run()
    except ValueError as error:
        return {"repair": name, "way": way, "status": str(error)[:60], "published": PUBLISHED[name]}
    seconds = time.process_time() - started
    return {"repair": name, "way": way, "status": "", "cpu": seconds, "published": PUBLISHED[name]} | task.measured(
        model
    )
