"""Published repairs of real networks, as programs; shared by tests and benchmarks. Needs ``provable/`` of the data.

* Watermarks (Goldberger et al., LPAR 2020): change the last layer so little that a set of images changes its class.
* Fog (Sotoudeh and Thakur, PLDI 2021; Tao et al., PLDI 2023): 100 foggy digits must become right, clean ones stay so.
* Misclassified digits (Fu and Li, ICLR 2022): 100 wrong answers must become right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from row_kinds import FeatureRows
from torch import Tensor, nn

from repairopt import FixLabels, KeepLabels, Location, Program
from repairopt.localize import apply
from repairopt.network import Engine
from repairopt.program import LowRankHessian, solve_working_set
from repairopt.program.working_sets.working_set import WorkingSetSolution
from repairopt.specify import anchor
from repairopt.surrogate import Linearization, LinearizedRows, linearize

BOX = 3.0  # largest change of any weight, as published
FIXED, TUNED = 100, 1100  # images below the first are repaired, those below the second are for choosing settings


def network(folder: Path, name: str) -> nn.Sequential:
    """A fully connected ReLU network, float32, in evaluation mode."""
    from safetensors.torch import load_file

    tensors = load_file(folder / "provable" / f"{name}.safetensors")
    count = 1 + max(int(key.split(".")[1]) for key in tensors)
    layers: list[nn.Module] = []
    for i in range(count):
        weight, bias = tensors[f"layers.{i}.weight"], tensors.get(f"layers.{i}.bias")
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
        layer.load_state_dict({"weight": weight} if bias is None else {"weight": weight, "bias": bias})
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1]).eval()


@cache
def digits(folder: Path) -> tuple[Tensor, Tensor, Tensor]:
    """10,000 test images ``(10000, 784)`` in [0, 1], the same in fog, and their labels."""
    found = []
    for name in ("mnist_t10k", "mnist_fog_synthetic"):
        with np.load(folder / "provable" / f"{name}.npz") as bundle:
            found.append(torch.tensor(bundle["images"].reshape(-1, 784) / 255.0).float())
    with np.load(folder / "provable" / "mnist_t10k.npz") as bundle:
        return found[0], found[1], torch.tensor(bundle["labels"].astype(np.int64))


# -------------------------------------------------------------------- watermarks


@dataclass(frozen=True, eq=False)
class Watermarks:
    """The watermarked network of Adi et al. and the published least changes.

    Attributes:
        features: Inputs of the last layer at the 100 watermarks, ``(100, 150)``.
        weight: The last layer, ``(10, 150)``; it has no bias.
        sets: For each size ``k`` the sets of watermarks, ``(count, k)``.
        optima: For each size the published least largest change of a weight, ``(count,)``.
    """

    features: np.ndarray
    weight: np.ndarray
    sets: dict[int, np.ndarray]
    optima: dict[int, np.ndarray]

    @classmethod
    def load(cls, folder: Path) -> Watermarks:
        """All sizes that were published."""
        with np.load(folder / "provable" / "mdnn_watermark.npz") as bundle:
            features = bundle["last_layer_input"].astype(np.float64)
            optima = {int(key.split("_")[-1]): bundle[key] for key in bundle.files if key.startswith("linf_opt_")}
            given = {k: bundle[f"sets_{k}"].astype(np.int64) for k in optima if f"sets_{k}" in bundle.files}
        sets = {1: np.arange(100)[:, None], 100: np.arange(100)[None]} | given
        weight = network(folder, "mdnn_watermark_150")[-1].weight.detach().numpy().astype(np.float64)
        return cls(features, weight, sets, optima)

    def outputs(self, samples: np.ndarray, delta: np.ndarray | None = None) -> np.ndarray:
        """Outputs ``(k, 10)`` at some images, after a change of the weights that their rows speak of."""
        weight = self.weight.copy()
        if delta is not None:
            weight.reshape(-1)[self.rows(samples)[2]] += delta
        return self.features[samples] @ weight.T

    def rows(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """``A``, ``b``, columns: at each image the second largest output must reach the largest, ``A delta >= b``.

        Only weights with an entry in some row, of which ``columns`` gives the places; the others stay as they are.
        """
        outputs = self.outputs(samples)
        first, second = np.argsort(-outputs, axis=1, kind="stable")[:, :2].T
        lead = np.take_along_axis(outputs, np.stack([first, second], axis=1), axis=1) @ [1.0, -1.0]
        oracle = FeatureRows(self.features[samples], np.stack([second, first], axis=1), lead, outputs=10)
        matrix, lower, _ = oracle.rows(np.arange(len(samples)))
        columns = np.flatnonzero(np.abs(matrix).max(axis=0) > 0)
        return matrix[:, columns], lower, columns

    def program(self, samples: np.ndarray) -> Program:
        """As published: minimize ``t`` over ``(delta, t)`` with ``|delta_j| <= t``, sparse."""
        from scipy import sparse

        matrix, lower, _ = self.rows(samples)
        m, n = matrix.shape
        unit, one = sparse.identity(n, format="csr"), sparse.csr_matrix(np.ones((n, 1)))
        blocks = [[sparse.csr_matrix(matrix), None], [unit, -one], [unit, one]]
        return Program(
            gradient=np.append(np.zeros(n), 1.0),
            matrix=sparse.bmat(blocks, format="csr"),
            lower=np.concatenate([lower, np.full(n, -np.inf), np.zeros(n)]),
            upper=np.concatenate([np.full(m, np.inf), np.zeros(n), np.full(n, np.inf)]),
        )

    def reciprocal(self, samples: np.ndarray) -> Program:
        """The same in ``u = delta / t`` and ``s = 1 / t``: maximize ``s`` with ``A u >= s b`` and ``|u_j| <= 1``.

        As many rows as images, dense, within the size limit of unlicensed Gurobi. The optimum is ``-1 / objective``.
        """
        matrix, lower, _ = self.rows(samples)
        m, n = matrix.shape
        return Program(
            gradient=np.append(np.zeros(n), -1.0),
            matrix=np.hstack([matrix, -lower[:, None]]),
            lower=np.zeros(m),
            upper=np.full(m, np.inf),
            delta_lower=np.append(np.full(n, -1.0), 0.0),
            delta_upper=np.append(np.ones(n), np.inf),
        )


# -------------------------------------------------------------------- points


@dataclass(frozen=True, eq=False)
class PointRepair:
    """Points that must become right, points that must stay right, and data that only the figures see.

    Attributes:
        model: The published network.
        fix: Inputs and labels to repair.
        keep: Clean inputs and labels; those that are right must stay right.
        tuning: Clean and shifted inputs and their labels, for choosing settings.
        clean: Held-out clean inputs and labels, for the drawdown.
        shifted: Held-out inputs like those of ``fix``, and labels; empty where there are none.
        fix_margin: Lead that rows ask for at points to repair, in logits.
        keep_margin: The same at points to keep, never more than a point had.
    """

    model: nn.Sequential
    fix: tuple[Tensor, Tensor]
    keep: tuple[Tensor, Tensor]
    tuning: tuple[Tensor, Tensor, Tensor]
    clean: tuple[Tensor, Tensor]
    shifted: tuple[Tensor, Tensor]
    fix_margin: float = 0.05
    keep_margin: float = 1e-3

    @classmethod
    def fog(cls, folder: Path, name: str, keep: int = 2000, **margins: float) -> PointRepair:
        """Foggy images 0 to 99; settings are chosen on images 100 to 1099, figures come from the others.

        Generalization is published on all foggy images from 1100 on; the clean images to keep are drawn among these.
        """
        clean, foggy, labels = digits(folder)
        order = TUNED + np.random.default_rng(0).permutation(len(labels) - TUNED)
        kept, rest, tuning = order[:keep], order[keep:], slice(FIXED, TUNED)
        return cls(
            model=network(folder, name),
            fix=(foggy[:FIXED], labels[:FIXED]),
            keep=(clean[kept], labels[kept]),
            tuning=(clean[tuning], foggy[tuning], labels[tuning]),
            clean=(clean[rest], labels[rest]),
            shifted=(foggy[TUNED:], labels[TUNED:]),
            **margins,
        )

    @classmethod
    def misclassified(cls, folder: Path, keep: int = 4000, **margins: float) -> PointRepair:
        """The first 100 of the published wrong answers of a 784-256-256-10 network; nothing that they stand for."""
        clean, _, labels = digits(folder)
        with np.load(folder / "provable" / "reassure_mnist_buggy_idx.npz") as bundle:
            wrong = bundle["buggy_index"][:FIXED].astype(np.int64)
        order = np.random.default_rng(0).permutation(np.setdiff1d(np.arange(len(labels)), wrong))
        tuned, kept, rest = order[:1000], order[1000 : 1000 + keep], order[1000 + keep :]
        return cls(
            model=network(folder, "reassure_mnist_256x2"),
            fix=(clean[wrong], labels[wrong]),
            keep=(clean[kept], labels[kept]),
            tuning=(clean[tuned], clean[:0], labels[tuned]),
            clean=(clean[rest], labels[rest]),
            shifted=(clean[:0], labels[:0]),
            **margins,
        )

    def engine(self, layer: int = -1) -> Engine:
        """The network with all weights and biases of one of its layers."""
        name = [name for name, _ in self.model.named_children()][layer]
        sizes = {key: len(value.flatten()) for key, value in self.model.named_parameters()}
        return Engine(self.model, {key: torch.arange(sizes[key]) for key in (f"{name}.weight", f"{name}.bias")})

    def constraints(self, engine: Engine) -> list[FixLabels | KeepLabels]:
        """All points to repair, hard, and those to keep that the network gets right."""
        keep = KeepLabels(*self.keep, margin=self.keep_margin)
        return [FixLabels(*self.fix, margin=self.fix_margin, weight=None), anchor(keep, engine.predict())]

    def last_layer(self) -> tuple[Program, Linearization]:
        """Least squared change of the last layer: objective and box, and all rows, which are exact."""
        engine = self.engine()
        return least_change(np.zeros(engine.n)), linearize(engine, self.constraints(engine))

    def repaired(self, engine: Engine, delta: np.ndarray) -> nn.Module:
        """A changed copy of the network."""
        return apply(self.model, Location(engine.indices), delta)[0]

    def measured(self, model: nn.Module) -> dict[str, float]:
        """Efficacy, drawdown and generalization, in percent and points; on tuning data too."""
        clean, shifted, labels = self.tuning
        loss = {"drawdown": self.clean, "tuning drawdown": (clean, labels)}
        gain = {"generalization": self.shifted, "tuning generalization": (shifted, labels[: len(shifted)])}
        found = {"efficacy": accuracy(model, *self.fix)}
        found |= {name: accuracy(self.model, *data) - accuracy(model, *data) for name, data in loss.items()}
        return found | {name: accuracy(model, *data) - accuracy(self.model, *data) for name, data in gain.items()}


def accuracy(model: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    """Percent right; NaN for no inputs."""
    with torch.no_grad():
        return 100 * float((model(inputs).argmax(1) == labels).double().mean())


def least_change(delta: np.ndarray) -> Program:
    """From a change ``delta``: the least squared step, with ``|delta + step| <= BOX``."""
    hessian = LowRankHessian(np.ones(len(delta)), np.zeros((len(delta), 0)))
    sides = {"delta_lower": -BOX - delta, "delta_upper": BOX - delta}
    return Program(gradient=np.zeros(len(delta)), hessian=hessian, **sides)


def repair_last_layer(task: PointRepair, solver: str | None = None) -> tuple[nn.Module, WorkingSetSolution]:
    """One program, rows by a working set."""
    head, linearization = task.last_layer()
    found = solve_working_set(head, LinearizedRows(linearization), solver=solver, batch=100)
    if found.delta is None:
        raise ValueError(f"{found.status}: {found.message}")
    return task.repaired(linearization.engine, found.delta), found


def first_step(task: PointRepair, layer: int, share: float) -> tuple[Program, LinearizedRows]:
    """The program of the first step of :func:`repair_layer`."""
    engine = task.engine(layer)
    here = linearize(engine, task.constraints(engine))
    return least_change(np.zeros(engine.n)), LinearizedRows(_aimed(here, share))


def repair_layer(task: PointRepair, layer: int, shares: Sequence[float]) -> tuple[nn.Module, int]:
    """Weights of a hidden layer, by a sequence of least steps, each with rows linearized anew on the true network.

    A step asks for a share of what each margin still lacks: the rows of a hidden layer hold only nearby. The walk ends
    when every point to repair leads by a tenth of ``fix_margin`` and no kept point is wrong, or with the shares.

    Returns:
        The changed copy, and how many steps it took.
    """
    engine = task.engine(layer)
    constraints, delta = task.constraints(engine), np.zeros(engine.n)
    required = linearize(engine, constraints).required
    for taken, share in enumerate(shares):
        here = linearize(engine, constraints, delta, required=required)
        fixed, kept = here.margins
        if fixed.min() > 0.1 * task.fix_margin and kept.min() > 0:
            return task.repaired(engine, delta), taken
        rows = LinearizedRows(_aimed(here, share))
        found = solve_working_set(least_change(delta), rows, solver="woodbury", batch=100, feasibility_tol=1e-2)
        if found.delta is None:
            raise ValueError(f"step {taken + 1}: {found.status}: {found.message}")
        delta = delta + found.delta
    return task.repaired(engine, delta), len(shares)


def _aimed(here: Linearization, share: float) -> Linearization:
    """Rows that ask for a share of what each margin lacks."""
    pairs = zip(here.required, here.margins, strict=True)
    return replace(here, required=tuple(want - (1 - share) * np.maximum(0.0, want - margin) for want, margin in pairs))
