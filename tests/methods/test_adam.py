"""The library's Adam is torch's to the last bit, without the compiler that torch loads with its own."""

import subprocess
import sys

import pytest
import torch
from sample_networks import chain

from repairopt.methods.adam import Adam

REPAIR = """
import sys, torch
from repairopt import AttackSuccess, ErrorRate, KeepLabels, solve_repair
model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
x = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
now = model(x).argmax(1)
repair = solve_repair(model, ErrorRate(x[:4], (now[:4] + 1) % 3, target=0.0), [KeepLabels(x[4:], now[4:])])
assert "TrainThenCorrect" in str(repair.report), "else this shows nothing"
AttackSuccess(x, now, radius=0.1).value(repair.model)
sys.exit("torch._dynamo" in sys.modules)  # which takes more than a second
"""


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("options", [{}, {"fused": True}, {"weight_decay": 0.1}])
def test_it_takes_the_steps_of_torch(dtype, options):
    ends = []
    for kind in (torch.optim.Adam, Adam):
        torch.manual_seed(0)
        network = chain().to(dtype)
        x = torch.randn(20, 4, dtype=dtype)
        groups = [{"params": [p], "lr": 0.01 * (k + 1)} for k, p in enumerate(network.parameters())]
        optimizer = kind(groups, **options)
        for step in range(12):
            optimizer.zero_grad()
            (network if step % 3 else network[0])(x).square().sum().backward()  # the last layer now and then rests
            optimizer.step()
            if step == 5:
                optimizer.param_groups[0]["lr"] = 0.3
        ends.append(torch.nn.utils.parameters_to_vector(network.parameters()))
    assert torch.equal(*ends)


def test_a_repair_and_an_attack_load_no_compiler():
    assert subprocess.run([sys.executable, "-c", REPAIR], check=False).returncode == 0
