"""How long ``import repairopt`` takes beyond ``import torch``: best and median of some fresh interpreters."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys

CODE = """
import time
started = time.perf_counter()
import torch
torch_done = time.perf_counter()
import repairopt
print(torch_done - started, time.perf_counter() - torch_done)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    times = []
    for _ in range(runs):
        out = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True).stdout
        times.append([float(number) for number in out.split()])
    names = ("torch", "repairopt beyond torch")
    columns = zip(names, zip(*times, strict=True), strict=True)
    print(json.dumps({n: {"best": min(t), "median": statistics.median(t), "seconds": t} for n, t in columns}))


if __name__ == "__main__":
    main()
