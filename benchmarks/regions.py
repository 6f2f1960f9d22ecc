"""Regions: provable repair by the default call, on ACAS Xu, HCAS, a controller and balls around MNIST images.

``python benchmarks/regions.py acas 2 2_1 2_7`` repairs property 2 on two networks (all 45 without names), ``... acas 8
2_9``, ``... attack 2 2_1``, ``... hcas``, ``... controller 0 1``, ``... mnist 20 0.02``. Each run adds rows to
``results/regions.csv``. Networks and properties are those of the folder that ``REPAIROPT_DATA`` names.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import benchmark_files
import environment  # noqa: F401  (first, for one thread)
import numpy as np
import torch
from benchmark_files import Record, read_csv, write_csv
from region_tables import write_tables
from torch import Tensor, nn

from repairopt import Settings, solve_repair
from repairopt.interfaces.specfile.networks import mlp
from repairopt.interfaces.specfile.nnet_file import read_nnet
from repairopt.interfaces.specfile.onnx_model import load_onnx
from repairopt.patches import load_weights
from repairopt.report import Repair
from repairopt.specify import KeepLowest, Region, UnprovedRegions

DATA = benchmark_files.DATA / "provable"
RESULTS = Path(__file__).parent / "results" / "regions.csv"
TEXT = ("case", "network", "version", "verdict", "proof")
VERSION = "choices"  # of the method, in the tables
KEPT, FRESH = 20_000, 10_000  # points of the whole input space that the repair keeps, and others that figures are from


def add(records: Sequence[Record]) -> None:
    """Put records into the file, in place of those of the same case and network."""
    old = read_csv(RESULTS, TEXT) if RESULTS.is_file() else []
    new = {(record["case"], record["network"]) for record in records}
    kept = [one for one in old if (one["case"], one["network"]) not in new] + list(records)
    write_csv(kept, RESULTS, 4)
    write_tables(kept, RESULTS.with_suffix(".md"))


def repaired(
    case: str, network: str, model: nn.Module, goal: Any, constraints: Any, **options: Any
) -> tuple[Repair, Record]:
    """The default call, and what came of it."""
    started = time.process_time()
    repair = solve_repair(model, goal, constraints, settings=Settings(seed=0, **options))
    report, found = repair.report, repair.report.proof_verdict
    gaps = [re.findall(r"[\d.]+(?=%)|inf", entry.step) for entry in report.rounds if "gap" in entry.step]
    if any("then the last one" in entry.step for entry in report.rounds):
        gaps = []  # the bounds are of the last layer's change
    return repair, {
        "case": case,
        "network": network,
        "version": VERSION,
        "verdict": str(report.verdict),
        "proof": "none" if found is None else str(found.status),
        "cpu_s": time.process_time() - started,
        "boxes": 0 if found is None else found.leaves,
        "splits_of_the_check": 0 if found is None else found.splits,
        "check_s": 0.0 if found is None else found.seconds,
        "share_proved": 0.0 if found is None else found.share,
        "gap_percent": float(gaps[-1][0]) if gaps else float("nan"),
        "gap_at_no_margin_percent": float(gaps[-1][1]) if gaps else float("nan"),
    }


def acas(number: str, networks: Sequence[str], seconds: float = 300.0) -> None:
    """A property of ACAS Xu: the lowest score wins; scores are kept on the whole input space, normalized."""
    low = torch.tensor([-0.328422877, -0.5, -0.5, -0.5, -0.5])
    high = torch.tensor([0.679857769, 0.5, 0.5, 0.5, 0.5])
    for network in networks or [f"{i}_{j}" for i in range(1, 6) for j in range(1, 10)]:
        model = load_onnx(DATA / "acasxu" / f"acasxu_{network}.onnx")
        goal = Region.from_vnnlib(DATA / "acasxu" / f"prop_{number}.vnnlib")
        draw = torch.Generator().manual_seed(5)
        x = (low + (high - low) * torch.rand(KEPT + FRESH, 5, generator=draw)).reshape(-1, 1, 1, 5)
        options = {"time_limit": seconds}
        repair, record = repaired(f"acas {number}", network, model, goal, [KeepLowest(x[:KEPT])], **options)
        before, after = outputs(model, x[KEPT:]), outputs(repair.model, x[KEPT:])
        record["violated"] = int(repair.report.verification.measures[0].details["regions with a counterexample"][0])
        record["changed_percent"] = 100 * float((before.argmin(1) != after.argmin(1)).double().mean())
        record["rms_per_std"] = float((after - before).square().mean().sqrt() / before.std(0).mean())
        print(record, flush=True)
        add([record])


def attack(number: str, networks: Sequence[str], seconds: float = 300.0) -> None:
    """Points of the regions that break a property after the repair: a million at random, and steps from the nearest."""
    low = torch.tensor([-0.328422877, -0.5, -0.5, -0.5, -0.5])
    high = torch.tensor([0.679857769, 0.5, 0.5, 0.5, 0.5])
    for network in networks:
        model = load_onnx(DATA / "acasxu" / f"acasxu_{network}.onnx")
        goal = Region.from_vnnlib(DATA / "acasxu" / f"prop_{number}.vnnlib")
        x = low + (high - low) * torch.rand(KEPT + FRESH, 5, generator=torch.Generator().manual_seed(5))
        keep = KeepLowest(x[:KEPT].reshape(-1, 1, 1, 5))
        repair = solve_repair(model, goal, [keep], settings=Settings(seed=0, time_limit=seconds))
        found = [attacked(region, repair.model) for region in goal]
        print(network, repair.report.verdict, f"{sum(n for n, _ in found):,} points, {sum(b for _, b in found)} broken")


def attacked(region: Region, model: nn.Module) -> tuple[int, int]:
    """Points of a box that were tried, and those that break it, in single precision."""
    draw, group = torch.Generator().manual_seed(77), torch.as_tensor(region.group)

    def value(points: Tensor) -> Tensor:
        rows = model(points.reshape(-1, 1, 1, points.shape[1])).double() @ region.matrix.T - region.offset
        return torch.stack([rows[:, group == one].amax(1) for one in group.unique()], 1).amin(1)

    low, high = region.lower.flatten().float(), region.upper.flatten().float()
    count, broken, nearest = 0, 0, []
    for _ in range(10):
        points = (low + (high - low) * torch.rand(100_000, len(low), generator=draw)).clamp(low, high)
        with torch.no_grad():
            found = value(points)
        count, broken = count + len(points), broken + int((found < 0).sum())
        nearest.append(points[found.argsort()[:400]])
    points = torch.cat(nearest)
    for step in range(60):
        points = points.clone().requires_grad_()
        found = value(points)
        slope = torch.autograd.grad(found.sum(), points)[0]
        count, broken = count + len(points), broken + int((found < 0).sum())
        points = (points.detach() - 0.95**step * (high - low) / 40 * slope.sign()).clamp(low, high)
    return count, broken


def outputs(model: nn.Module, x: Tensor) -> Tensor:
    """Outputs, in float64."""
    with torch.no_grad():
        return model(x).double()


def hcas_network() -> tuple[nn.Module, Tensor]:
    """The network pra1_tau05, and the counterexamples of REASSURE ``(N, 3)``, in raw units."""
    points = np.load(DATA / "hcas_pra1_tau05_points.npz")
    state = read_nnet(DATA / "hcas_pra1_tau05.nnet")
    model = mlp(state.sizes)
    layers = [(name.partition("."), value) for name, value in state.state().items()]
    model.load_state_dict({f"{int(at) - 1}.{part}": value for (at, _, part), value in layers if at != "0"})
    return model, torch.as_tensor(points["counterexamples"]).double()


def hcas(seconds: float = 60.0) -> None:
    """Ten boxes of half a raw unit around the counterexamples of REASSURE, where class 4 must win."""
    model, raw = hcas_network()
    options = {"lower": -torch.inf, "upper": torch.inf}
    goal = [Region.label(x, 0.5, 4, 5, name=f"counterexample {i}", **options) for i, x in enumerate(raw[:10])]
    repair, record = repaired("hcas", "pra1_tau05", model, goal, [], time_limit=seconds)
    draw = torch.Generator().manual_seed(1)
    x = (raw.amin(0) + (raw.amax(0) - raw.amin(0)) * torch.rand(FRESH, 3, generator=draw)).float()
    before, after = outputs(model, x), outputs(repair.model, x)
    record["changed_percent"] = 100 * float((before.argmax(1) != after.argmax(1)).double().mean())
    record["rms_per_std"] = float((after - before).square().mean().sqrt() / before.std(0).mean())
    print(record, flush=True)
    add([record])


def controller(seed: int = 0, seconds: float = 300.0) -> None:
    """A network of 4-64-64-2 that learned a clipped linear law, and must stay within its range."""
    torch.manual_seed(seed)
    model = mlp([4, 64, 64, 2])
    law = torch.tensor([[1.0, 1.7, 0.3, -0.2], [-0.4, 0.2, 1.2, 1.5]])
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(1500):
        x = 2 * torch.rand(256, 4) - 1
        loss = (model(x) - (-(x @ law.T)).clamp(-1, 1)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    matrix = torch.tensor([[-1.0, 0], [1, 0], [0, -1], [0, 1]])
    goal = Region([-1.0] * 4, [1.0] * 4, matrix, [-1.0] * 4, name="commands within 1")
    x = 2 * torch.rand(KEPT + FRESH, 4) - 1
    goal = UnprovedRegions(goal, keep=x[:KEPT])
    repair, record = repaired("controller", f"4-64-64-2, seed {seed}", model, goal, [], time_limit=seconds)
    target = (-(x[KEPT:] @ law.T)).clamp(-1, 1).double()
    before, after = outputs(model, x[KEPT:]), outputs(repair.model, x[KEPT:])
    record["mse_before"] = float((before - target).square().mean())
    record["mse_after"] = float((after - target).square().mean())
    print(record, flush=True)
    add([record])


def mnist(count: int, radius: float, seconds: float = 300.0) -> None:
    """Balls around the first wrong test images of the 3x100 network; every second image is kept, the others judge."""
    found = np.load(DATA / "mnist_t10k.npz")
    x = torch.as_tensor(found["images"].reshape(len(found["images"]), -1) / 255.0).float()
    y = torch.as_tensor(found["labels"].astype(np.int64))
    model = mlp([784, 100, 100, 10])
    state = load_weights(DATA / "mnist_relu_3_100.safetensors")
    layers = [(name.split(".")[1:], value) for name, value in state.items()]
    model.load_state_dict({f"{2 * int(at)}.{part}": value for (at, part), value in layers})
    wrong = torch.nonzero(outputs(model, x).argmax(1) != y)[:count, 0]
    goal = [Region.label(x[i], radius, int(y[i]), 10, name=f"image {int(i)}") for i in wrong]
    keep, held_out = torch.arange(len(x)) % 2 == 0, torch.arange(len(x)) % 2 == 1
    keep[wrong], held_out[wrong] = False, False
    goal = UnprovedRegions(goal, keep=x[keep])
    repair, record = repaired(f"mnist {radius:g}", f"3x100, {count} balls", model, goal, [], time_limit=seconds)
    before, after = (outputs(one, x[held_out]).argmax(1) == y[held_out] for one in (model, repair.model))
    details = repair.report.verification.measures[0].details
    record |= {"regions_proved": details["proved regions"][1], "accuracy_before": float(before.double().mean())}
    record["accuracy_after"] = float(after.double().mean())
    print(record, flush=True)
    add([record])


def main() -> None:
    """Run the case that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=["acas", "attack", "mnist", "hcas", "controller", "tables"], help="what to run")
    parser.add_argument("numbers", nargs="*", help="property and networks; balls and radius; seeds of controllers")
    options = parser.parse_args()
    least = {"acas": 1, "attack": 2, "mnist": 2}.get(options.case, 0)
    if len(options.numbers) < least:
        parser.error(f"{options.case} needs {least} or more of: {parser.format_usage().strip()}")
    if options.case == "acas":
        acas(options.numbers[0], options.numbers[1:])
    elif options.case == "attack":
        attack(options.numbers[0], options.numbers[1:])
    elif options.case == "mnist":
        mnist(int(options.numbers[0]), float(options.numbers[1]))
    elif options.case == "controller":
        for seed in options.numbers or [0]:
            controller(int(seed))
    else:
        {"hcas": hcas, "tables": lambda: add([])}[options.case]()


if __name__ == "__main__":
    main()
