"""Networks trained once for the tests of methods that train: loans, digits with their history, short texts."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repairopt.compare import loan_decisions

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class Subject:
    """A trained network, rows that it was trained on, three further parts, and its weights after each epoch."""

    model: nn.Module
    training: Pair
    validation: Pair
    repair: Pair
    test: Pair
    history: tuple[dict[str, Tensor], ...]

    def wrong(self, model: nn.Module | None = None, rows: Pair | None = None) -> Tensor:
        x, y = rows or self.repair
        with torch.no_grad():
            return (model or self.model)(x).argmax(1) != y

    def right(self, model: nn.Module, rows: Pair | None = None) -> float:
        return 1 - float(self.wrong(model, rows or self.test).float().mean())


def trained(model: nn.Module, rows: Pair, *, epochs: int, rate: float = 3e-3, batch: int = 32):
    """The weights after each epoch of Adam."""
    made, history = torch.optim.Adam(model.parameters(), lr=rate), []
    for _ in range(epochs):
        for chosen in torch.randperm(len(rows[0])).split(batch):
            made.zero_grad()
            F.cross_entropy(model(rows[0][chosen]), rows[1][chosen]).backward()
            made.step()
        history.append({name: value.clone() for name, value in model.state_dict().items()})
    model.eval()
    return tuple(history)


def divided(x: Tensor, y: Tensor, *sizes: int) -> list[Pair]:
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))
    return [(x[part], y[part]) for part in order[: sum(sizes)].split(list(sizes))]


@cache
def digits(kind: str = "cnn", epochs: int = 6) -> Subject:
    """Scikit-learn's digits, 8 x 8 in [0, 1]: a small convolutional network, or a dense one on flat rows."""
    data = pytest.importorskip("sklearn.datasets").load_digits()
    x, y = torch.tensor(data.images, dtype=torch.float32) / 16, torch.tensor(data.target)
    x = x[:, None] if kind == "cnn" else x.flatten(1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind == "cnn":
            convolutions = [nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3), nn.ReLU()]
            model = nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
        else:
            model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 10))
        parts = divided(x, y, 600, 200, 500, 497)
        history = trained(model, parts[0], epochs=epochs)
    return Subject(model, *parts, history)


@cache
def loans() -> Subject:
    """Decisions that favored the group in column 5."""
    model, x, y = loan_decisions()
    return Subject(model, *divided(x, y, 1500, 500, 1000, 1000), ())


class Reader(nn.Module):
    """Embedding, LSTM, last state, classes."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.lstm, self.out = nn.Embedding(20, 8), nn.LSTM(8, 12, batch_first=True), nn.Linear(12, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(self.lstm(self.embedding(tokens))[0][:, -1])


@cache
def texts() -> Subject:
    """Eight words of a vocabulary of 20: whether more of the first five than of the next five occur."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randint(0, 20, (900, 8), generator=draw)
    y = ((x < 5).sum(1) > ((x >= 5) & (x < 10)).sum(1)).long()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Reader()
        parts = divided(x, y, 400, 100, 200, 200)
        history = trained(model, parts[0], epochs=8, rate=1e-2)
    return Subject(model, *parts, history)
