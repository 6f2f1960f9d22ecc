"""The six networks of the comparative study: two trained here with their history, four as published."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))

from correctness_data import DEVIATION, Normalize, network  # noqa: E402
from real_networks import load  # noqa: E402

from repairopt.compare import Subject  # noqa: E402

MOST = 6_000  # rows of a table that are used
PIXELS = 0.15 * DEVIATION  # the study's radius on MNIST, 0.15 of normalized inputs, in pixels from 0 to 1


class LastStep(nn.Module):
    """Three LSTMs and a linear layer on the last word; channel 50 says which places hold words."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(50, 10, num_layers=3, batch_first=True)
        self.out = nn.Linear(10, 2)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, words, 51)`` to logits ``(N, 2)``."""
        steps = self.lstm(x[..., :50])[0]
        last = x[..., 50].sum(1).long() - 1
        return self.out(steps[torch.arange(len(x), device=x.device), last])


def trained(model: nn.Module, x: Tensor, y: Tensor, epochs: int, seed: int = 0) -> tuple[dict[str, Tensor], ...]:
    """Train in place by Adam; the state after each epoch but the last."""
    draw, states = torch.Generator().manual_seed(seed), []
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=draw).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
        states.append({name: value.detach().clone() for name, value in model.state_dict().items()})
    model.eval()
    return tuple(states[:-1])


def lenet5() -> Subject:
    """LeNet5, trained here on 8,100 of the 10,000 MNIST test images: the training images are not at hand."""
    torch.manual_seed(0)
    convolutions = [nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)]
    convolutions += [nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)]
    linear = [nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)]
    model = nn.Sequential(Normalize(), *convolutions, nn.Flatten(), *linear)
    bundle = load("mnist_t10k.npz")
    x, y = torch.tensor(bundle["images"])[:, None].float() / 255, torch.tensor(bundle["labels"]).long()
    found = Subject.divide("LeNet5", model, x, y, shares=(0.81, 0.09, 0.05, 0.05), radius=PIXELS)
    return replace(found, history=trained(model, *found.train, epochs=8))


def digits() -> Subject:
    """A small CNN, trained here on the digits of scikit-learn."""
    from sklearn.datasets import load_digits

    torch.manual_seed(0)
    convolutions = [nn.Conv2d(1, 12, 3), nn.ReLU(), nn.Conv2d(12, 12, 3), nn.ReLU()]
    model = nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(192, 32), nn.ReLU(), nn.Linear(32, 10))
    bunch = load_digits()
    x, y = torch.tensor(bunch.images)[:, None].float() / 16, torch.tensor(bunch.target).long()
    found = Subject.divide("digits CNN", model, x, y, shares=(0.35, 0.05, 0.3, 0.3), radius=0.05)
    return replace(found, history=trained(model, *found.train, epochs=14))


def conv4() -> Subject:
    """M4 of the AutoRIC paper; its training images are not at hand, so 4,000 test images stand in for them."""
    bundle = load("mnist_t10k.npz")
    x, y = torch.tensor(bundle["images"])[:, None].float() / 255, torch.tensor(bundle["labels"]).long()
    return Subject.divide("M4", network(), x, y, shares=(0.4, 0.04, 0.28, 0.28), radius=PIXELS)


def census() -> Subject:
    """M1 of the AutoRIC paper, on the test table; groups by sex."""
    bundle = load("census.npz")
    x, y = torch.tensor(bundle["test_x"]).float(), torch.tensor(bundle["test_y"]).long()
    sex = bundle["test_x"][:, 9]
    return Subject.divide("census M1", tables("census_m1.npz"), x, y, groups=sex, favorable=0, protected=(9,))


def bank() -> Subject:
    """M2 of the AutoRIC paper, on a part of the test table; groups are below 60 years and from 60."""
    bundle = load("bank.npz")
    rows = np.random.default_rng(0).permutation(len(bundle["test_x"]))[:MOST]
    x, y = torch.tensor(bundle["test_x"][rows]).float(), torch.tensor(bundle["test_y"][rows]).long()
    old = (bundle["test_x"][rows, 0] >= 6).astype(int)
    return Subject.divide("bank M2", tables("bank_m2.npz"), x, y, groups=old, favorable=0)


def tables(name: str) -> nn.Module:
    """A network of the tables: n-64-32-16-8-4-2."""
    weights = load(name)
    sizes = [weights["fc1.weight"].shape[1], 64, 32, 16, 8, 4, 2]
    layers: list[nn.Module] = []
    for k in range(6):
        layers += [nn.Linear(sizes[k], sizes[k + 1]), nn.ReLU()]
    model = nn.Sequential(*layers[:-1])
    names = [(k, part) for k in range(6) for part in ("weight", "bias")]
    state = {f"{2 * k}.{part}": torch.from_numpy(weights[f"fc{k + 1}.{part}"]) for k, part in names}
    model.load_state_dict(state)
    return model.eval()


def jigsaw() -> Subject:
    """M3 of the AutoRIC paper: three LSTMs on word vectors of 100 comments, all that is published."""
    bundle, weights = load("jigsaw.npz"), load("jigsaw_m3.npz")
    lengths = bundle["lengths"]
    x, at = torch.zeros(len(lengths), int(lengths.max()), 51), 0
    for k, count in enumerate(lengths):
        x[k, :count, :50] = torch.tensor(bundle["embeddings"][at : at + count])
        x[k, :count, 50], at = 1.0, at + count
    model = LastStep()
    order = np.r_[0:10, 20:30, 10:20, 30:40]  # stored gates are i, j, f, o, torch's i, f, g, o
    state = {"out.weight": weights["w4"], "out.bias": weights["b4"]}
    for k in range(3):
        kernel, width = weights[f"w{k + 1}"][order], weights[f"w{k + 1}"].shape[1] - 10
        state |= {f"lstm.weight_ih_l{k}": kernel[:, :width], f"lstm.weight_hh_l{k}": kernel[:, width:]}
        state |= {f"lstm.bias_ih_l{k}": weights[f"b{k + 1}"][order], f"lstm.bias_hh_l{k}": np.zeros(40, np.float32)}
    model.load_state_dict({name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in state.items()})
    y = torch.tensor(bundle["labels"]).long()
    return Subject.divide("M3 LSTM", model.eval(), x, y, shares=(0.3, 0.1, 0.3, 0.3))


SUBJECTS: dict[str, Callable[[], Subject]] = {
    "digits": digits,
    "census": census,
    "bank": bank,
    "M3": jigsaw,
    "LeNet5": lenet5,
    "M4": conv4,
}
