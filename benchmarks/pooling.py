"""The size of a gap between several groups: as measured, less its noise, and partially pooled, against the truth.

    python benchmarks/pooling.py [--draws N] [--quick]

Writes ``pooling.md``. True rates of groups lie around 0.15, uniformly between two that lie a true gap apart; rates are
measured on few rows. Seconds of one core; needs nothing but the base install.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import environment  # noqa: F401 (before numpy and torch)
import numpy as np
import torch

from repairopt.specify import pooled_gap

COUNTS = {
    "700, 1,550, 150 and 200 rows": (700, 1_550, 150, 200),
    "300, 600, 60 and 80 rows": (300, 600, 60, 80),
    "six of 430 rows": (430,) * 6,
    "six of 90 rows": (90,) * 6,
}
GAPS, MEAN = (0.0, 0.03, 0.05, 0.08, 0.15), 0.15
READING = """# Sizes of gaps between several groups

Made by `python benchmarks/pooling.py`: mean error and root mean square error of three estimates of the largest
difference, over drawn tasks. "Less its noise" is the root of the square less `1 + log p` variances, as repairs were
steered before, and as they are between two groups. Measured sizes are too large, those less their noise too small at
usual bounds. From a true gap of 0.03 to 0.08 pooled ones have the smallest root mean square error, but for one row
where two are 0.001 apart; at 0 it is the ones less their noise, and at 0.15 there is little to tell them apart.
"""


def estimates(rates: np.ndarray, counts: np.ndarray) -> tuple[float, float, float]:
    """As measured, less its noise, pooled."""
    high, low = int(rates.argmax()), int(rates.argmin())
    size = float(rates[high] - rates[low])
    variance = float(sum(rates[k] * (1 - rates[k]) / counts[k] for k in (high, low)))
    pairs = len(rates) * (len(rates) - 1) / 2
    quiet = float(np.sqrt(max(0.0, size**2 - (1 + np.log(pairs)) * variance)))
    return size, quiet, pooled_gap(torch.tensor(rates)[None], torch.tensor(counts)[None], "max")


def errors(counts: tuple[int, ...], gap: float, draws: int) -> np.ndarray:
    """Errors of the estimates, ``(draws, 3)``."""
    random, rows = np.random.default_rng(0), np.array(counts)
    found = []
    for _ in range(draws):
        place = random.random(len(rows))
        place = (place - place.min()) / np.ptp(place)
        rates = random.binomial(rows, MEAN + gap * (place - 0.5)) / rows
        found.append(estimates(rates, rows))
    return np.array(found) - gap


def main() -> None:
    """Run, write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=1_000)
    parser.add_argument("--quick", action="store_true", help="few draws")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="folder for the results")
    options = parser.parse_args()
    lines = ["| groups | true gap | measured | less its noise | pooled |", "|---|---|---|---|---|"]
    for name, counts in COUNTS.items():
        for gap in GAPS:
            found = errors(counts, gap, 20 if options.quick else options.draws)
            cells = [f"{own.mean():+.3f}, {np.sqrt((own**2).mean()):.3f}" for own in found.T]
            lines.append(f"| {name} | {gap:.2f} | {' | '.join(cells)} |")
    text = "### Errors: mean, root mean square\n\n" + "\n".join(lines) + "\n"
    (options.out / "pooling.md").write_text(f"{READING}\n{text}", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
