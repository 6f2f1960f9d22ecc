# %% [markdown]
# # Ship a repair as a patch, and take it back
#
# A network in production decides on loans, and its history was biased. A repair closes the gap between two groups.
# What goes into production is not a new model but a patch: a file of some kilobytes that says which model it is for and
# what was claimed and checked, and that can be taken back to the last bit. A second repair, for applicants that were
# decided wrong, goes on top.
#
# No data and no network access needed; some seconds on one processor core.

# %%
from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is loaded; a network this small gains nothing from more

import torch
from torch import Tensor, nn

from repairopt import ErrorRate, FixLabels, GroupGap, KeepLabels, Repair, solve_repair
from repairopt.errors import MissingExtraError, WrongBaseError
from repairopt.patches import AuditLog, Patch, export_onnx, fingerprint, verify_log
from repairopt.patches.lora_export import export_lora
from repairopt.patches.stack import apply_all, find_conflicts, revert_all
from repairopt.report.as_patch import record_repair

# %% [markdown]
# ## The model in production
#
# Six features, the last of them the group. The labels of the past favor group 1, and the network learns that.


# %%
def applicants(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Features ``(count, 6)`` and past decisions ``(count,)``."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 6, generator=draw)
    x[:, 5] = (x[:, 5] > 0).float()
    noise = 0.5 * torch.randn(count, generator=draw)
    return x, (x[:, 0] + 0.5 * x[:, 1] + 0.4 * x[:, 5] + noise > 0).long()


def train(x: Tensor, y: Tensor, seed: int) -> nn.Module:
    """200 steps of Adam."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(200):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model.eval()


# %% [markdown]
# ## Two repairs
#
# The first brings the gap to 0.05. The second starts from the result of the first: ten applicants that were decided
# wrong, by a small margin, are decided right.

# %%
SPECIFICATION = "difference of the favorable rates of the groups <= 0.05; at most 5 % of right decisions lost"


def close_gap(model: nn.Module, x: Tensor, y: Tensor) -> Repair:
    """The first repair."""
    half = len(x) // 2
    gap = GroupGap.observed(x[:half], column=5, favorable=1, target=0.05)
    keep = KeepLabels(x[:half], y[:half], tolerance=0.05)
    return solve_repair(model, gap, [keep], held_out=(x[half:], y[half:]), weights="last")


def fix_decisions(model: nn.Module, x: Tensor, y: Tensor) -> Repair:
    """The second repair."""
    with torch.no_grad():
        lead = model(x).gather(1, y[:, None])[:, 0] - model(x).gather(1, 1 - y[:, None])[:, 0]
    wrong = lead.masked_fill(lead >= 0, -torch.inf).topk(10).indices
    goal = ErrorRate(x[wrong], y[wrong], target=0.0, name="reported decisions, error rate")
    keep = KeepLabels(x, y, tolerance=0.02)
    return solve_repair(model, goal, [keep, FixLabels(x[wrong], y[wrong], margin=0.05)], weights="last")


# %% [markdown]
# ## From the repair to production and back
#
# 1. `Patch.from_repair` takes the difference, and claims, solver, seed and versions from the report.
# 2. The reviewer reads the patch and keeps its content hash. Production loads the file by that hash.
# 3. `apply` gives a patched copy. It refuses every other model, and names the tensors that differ.
# 4. Both patches apply in order, and `revert_all` gives the weights from before, to the bit.
# 5. For software that knows nothing of patches there are ONNX files and LoRA adapters, whose outputs agree within
#    rounding.
#
# Each step goes into a log whose lines are chained by hashes.


# %%
def story(folder: Path, seed: int) -> dict[str, Any]:
    """All steps; what came of them."""
    x, y = applicants(4000, seed)
    model, log = train(x[:2000], y[:2000], seed), AuditLog(folder / "audit.jsonl")

    repair = close_gap(model, x, y)
    record_repair(log, repair.report, model=model, inputs={"x": x, "y": y})
    Patch.from_repair(repair, model, spec=SPECIFICATION).save(folder / "gap.safetensors")
    reviewed = Patch.load(folder / "gap.safetensors")
    print(f"--- The patch, {(folder / 'gap.safetensors').stat().st_size:,} bytes\n{reviewed}\n")
    missed = [f"{claim['name']}, {claim['data']}" for claim in reviewed.info.claims if claim["met"] is False]
    log.append("reviewed", patch=reviewed.content_hash, claims_not_met=missed, decision="accepted on trial")

    patch = Patch.load(folder / "gap.safetensors", expected_hash=reviewed.content_hash)
    fixed = patch.apply(model)
    log.append("applied", patch=patch.content_hash, weights=fingerprint(fixed).total)
    try:
        patch.apply(train(x[:2000], y[:2000], seed + 1))
        refused = ""
    except WrongBaseError as error:
        refused = str(error)
    print(f"--- Another model is refused\n{refused}\n")

    second = Patch.from_repair(fix_decisions(fixed, x, y), fixed)
    both = apply_all(model, [patch, second])
    beside = Patch.from_repair(fix_decisions(model, x, y), model)
    conflicts = find_conflicts([patch, beside])
    print(f"--- On top: {len(second.changes)} weights changed. Made beside the first instead, it would be in conflict:")
    print("\n".join(map(str, conflicts)) + "\n")
    back = revert_all(both, [patch, second])
    log.append("reverted", patches=[second.content_hash, patch.content_hash], weights=fingerprint(back).total)
    return {
        "verdict": str(repair.report.verdict),
        "claims_not_met": missed,
        "applied_exactly": fingerprint(fixed) == fingerprint(repair.model),
        "reverted_exactly": fingerprint(back) == fingerprint(model),
        "refused": refused,
        "conflicts": [str(conflict) for conflict in conflicts],
        "lora_ranks": export_lora(second, fixed, folder / "adapter"),
        "onnx_difference": exported(both, x, folder / "model.onnx"),
        "log_lines": verify_log(log.path, expected=log.end.hash).count,
    }


def exported(model: nn.Module, x: Tensor, path: Path) -> float | None:
    """Largest difference between ONNX Runtime and torch; None where the libraries are missing."""
    try:
        return export_onnx(model, x[:500], path).largest_difference
    except MissingExtraError as error:
        print(f"--- {error}\n")
        return None


def main() -> None:
    """Run the story in a folder of its own, or in the one given."""
    parser = argparse.ArgumentParser(description="Ship a repair as a patch, and take it back.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where to leave the files; by default nothing is left")
    parser.add_argument("--json", action="store_true", help="print one JSON object in the last line")
    options = parser.parse_args()
    if options.folder is not None:
        options.folder.mkdir(parents=True, exist_ok=True)
        found = story(options.folder, options.seed)
    else:
        with tempfile.TemporaryDirectory() as folder:
            found = story(Path(folder), options.seed)
    if options.json:
        print(json.dumps(found))
        return
    print("--- What came of it")
    for key, value in found.items():
        print(f"{key.replace('_', ' '):18}{value}")


if __name__ == "__main__":
    main()
