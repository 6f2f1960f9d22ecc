# %% [markdown]
# # Bring the gender gap of the census network under a limit
#
# The network M1 of the AutoRIC paper predicts whether a person earns more than 50,000. On the paper's sampled inputs it
# gives the favorable answer to 27 % of the men and 14 % of the women. We ask for a gap of at most 0.07, change the 24
# weights that the paper located (or others), repair on one half of the rows and report on the other.

# %%
from __future__ import annotations

import argparse
import json
from typing import Any

import torch
from real_networks import FeedForward, halves, load

from repairopt import (
    Bisection,
    GroupGap,
    KeepLabels,
    Neurons,
    Repair,
    Sequential,
    Settings,
    Specification,
    solve_repair,
)

SEX, FAVORABLE = 9, 0
PAPER = Neurons(layer="fc3", units=[6, 10, 11])  # the paper's (3,7), (3,11), (3,12): 24 outgoing weights

# %% [markdown]
# A count on a few thousand rows is noisy: the standard error of the gap is about 0.008. Aiming a little below the
# target (`buffer`) makes up for what the repair gains on its own half by chance.

# %%
METHODS = {"auto": Sequential(buffer=0.004), "sequential": Sequential(buffer=0.004), "bisection": Bisection()}


def chosen_weights(name: str) -> Any:
    """The paper's, automatic, or a comma-separated list of layers."""
    return {"paper": PAPER, "auto": "auto"}.get(name) or name.split(",")


def repair(split: int = 0, method: str = "auto", weights: str = "paper", target: float = 0.07, seed: int = 0) -> Repair:
    """Repair on one half, verify on both."""
    data, network = load("census.npz"), FeedForward(load("census_m1.npz"))
    rows, labels = torch.tensor(data["test_x"]).float(), torch.tensor(data["test_y"]).long()
    men, women = torch.tensor(data["sample_male_x"]), torch.tensor(data["sample_female_x"])
    here, there = halves(split, len(rows))
    drawn_here, drawn_there = halves(split, len(men))

    def sampled(part: torch.Tensor) -> GroupGap:
        return GroupGap.given(
            [men[part], women[part]], favorable=FAVORABLE, target=target, score="difference", name="sampled gap"
        )

    def observed(part: torch.Tensor) -> GroupGap:
        return GroupGap.observed(rows[part], SEX, favorable=FAVORABLE, score="difference", name="observed gap")

    def keep(part: torch.Tensor) -> KeepLabels:
        return KeepLabels(rows[part], labels[part], allowed=len(part) // 50)

    return solve_repair(
        network,
        Specification(sampled(drawn_here), [keep(here)], watch=[observed(here)]),
        held_out=[sampled(drawn_there), observed(there), keep(there)],
        weights=chosen_weights(weights),
        method=METHODS.get(method, method),
        settings=Settings(seed=seed),
    )


# %%
def summary(result: Repair) -> dict[str, Any]:
    """What ``--json`` prints."""
    report, out = result.report, {}
    for name, held_out in (("repair", False), ("held_out", True)):
        gap, counts = report.measure(held_out=held_out), report.labels(held_out)
        assert gap is not None
        assert counts is not None
        out[name] = {
            "gap_before": gap.before,
            "gap_after": gap.after,
            "accuracy_before": counts.accuracy[0],
            "accuracy_after": counts.accuracy[1],
            "recall_before": counts.recall[FAVORABLE][0],
            "recall_after": counts.recall[FAVORABLE][1],
        }
    return {
        **out,
        "weights": report.location.size,
        "constraints_used": report.rows_used,
        "seconds": report.seconds,
        "cpu_seconds": report.cpu_seconds,
        "method": report.method,
        "status": str(report.status),
        "verdict": str(report.verdict),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Repair the gender gap of the census network.")
    parser.add_argument("--method", default="auto", help="auto, one_shot, incremental, bisection or sequential")
    parser.add_argument("--weights", default="paper", help="paper, auto, or layers such as fc4,fc5,fc6")
    parser.add_argument("--target", type=float, default=0.07)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--split", type=int, default=0, help="which division into repair and held-out half")
    parser.add_argument("--json", action="store_true", help="print one JSON object in place of the report")
    options = vars(parser.parse_args())
    as_json = options.pop("json")
    result = repair(**options)
    print(json.dumps(summary(result)) if as_json else result.report)


if __name__ == "__main__":
    main()
