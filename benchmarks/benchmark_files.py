"""Records to and from CSV files."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Record = dict[str, Any]
DATA = Path(os.environ.get("REPAIROPT_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))


def write_csv(records: Sequence[Record], path: Path, figures: int | None = 6) -> None:
    """One line a record; numbers to so many figures, None for all; lists as words."""

    def written(value: Any) -> Any:
        if isinstance(value, list):
            return " ".join(value)
        return f"{value:.{figures}g}" if isinstance(value, float) and figures else value

    columns = list(dict.fromkeys(key for record in records for key in record))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        for record in records:
            writer.writerow({key: written(value) for key, value in record.items()})


def read_csv(path: Path, text: Sequence[str]) -> list[Record]:
    """Records as :func:`write_csv` wrote them; ``text`` columns as they are, else numbers, without the empty ones."""

    def value(cell: str) -> float | int:
        return int(cell) if cell.lstrip("-").isdigit() else float(cell)

    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [{k: cell if k in text else value(cell) for k, cell in row.items() if cell or k in text} for row in rows]
