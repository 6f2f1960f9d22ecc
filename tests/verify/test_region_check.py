"""Proofs of regions on torch networks: copies in NumPy, files, runs of the deployed network."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from repairopt.errors import ProofError, UnsupportedError
from repairopt.patches import fingerprint
from repairopt.program import OutputRows, ProofStatus, RegionProof
from repairopt.program.certificates.running_bounds import RunningBounds
from repairopt.verify import check_deployed, execution_of, layered_copy, load_proof, save_proof

chain = nn.Sequential


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.inner = nn.Conv2d(4, 4, 3, padding=1, groups=2, bias=False)
        self.head = nn.Linear(16, 3)
        self.register_buffer("mean", torch.tensor([0.1, -0.2]).reshape(2, 1, 1))

    def forward(self, x):
        x = torch.relu(self.norm(self.conv((x - self.mean) / 0.5)))
        x = nn.functional.relu(x - 0.5 * self.inner(x) + 1)
        return self.head(nn.functional.avg_pool2d(x, 2, 1, padding=0).view(x.size(0), -1)) * 2 - 0.25


class Smooth(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(9, 9), nn.Linear(9, 2)

    def forward(self, x):
        x = nn.functional.silu(self.first(x)) + nn.functional.softplus(x) - nn.functional.elu(x).tanh()
        return self.second(torch.sigmoid(x))


class End(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(6, 2)

    def forward(self, x):
        return self.head(x.flatten(1))


class Pooled(nn.Module):
    def forward(self, x):
        return nn.functional.max_pool2d(x, (1, 2), stride=2, ceil_mode=True)


def residual():
    network = Residual()
    network.norm.running_mean.uniform_(-1, 1)
    network.norm.running_var.uniform_(0.5, 2)
    return network.eval()


NETWORKS = {
    "dense": (lambda: chain(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)), (3,)),
    "residual convolutions": (residual, (2, 6, 6)),
    "leaks and clips": (
        lambda: chain(nn.Flatten(), nn.Linear(4, 9), nn.LeakyReLU(0.2), nn.Linear(9, 9), nn.ReLU6(), nn.Linear(9, 2)),
        (2, 2),
    ),
    "one convolution over time": (
        lambda: chain(nn.Conv1d(2, 3, 2), nn.BatchNorm1d(3), nn.ReLU(), nn.AvgPool1d(2), nn.Flatten(), nn.Linear(6, 2)),
        (2, 5),
    ),
    "smooth functions": (
        lambda: chain(nn.Linear(3, 9), nn.Tanh(), nn.Linear(9, 9), nn.GELU(), nn.Linear(9, 9), nn.Sigmoid(), Smooth()),
        (3,),
    ),
    "max pooling": (
        lambda: chain(nn.Conv2d(1, 3, 3), nn.MaxPool2d(2), nn.Flatten(2), nn.MaxPool1d(2), End()),
        (1, 6, 6),
    ),
    "max pooling with padding": (
        lambda: chain(nn.Conv2d(1, 2, 2), nn.MaxPool2d(3, 2, 1), Pooled(), nn.Flatten(), nn.Linear(8, 2)),
        (1, 6, 6),
    ),
    "a matrix for each of several vectors": (
        lambda: chain(nn.Linear(3, 4), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2), nn.Hardtanh(-0.5, 2.0)),
        (2, 3),
    ),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", NETWORKS)
def test_bounds_of_the_copy_hold_for_runs_of_the_network(name, dtype):
    make, shape = NETWORKS[name]
    network = make().eval().to(dtype)
    copy = layered_copy(network, shape)
    assert copy.fingerprint == fingerprint(network).total
    assert execution_of(network) == str(dtype).removeprefix("torch.")
    count = int(np.prod(shape))
    for width in (0.0, 0.3):
        lower = torch.randn(4, *shape, dtype=dtype)
        upper = lower + width
        sides = (side.double().flatten(1).numpy() for side in (lower, upper))
        rows = np.zeros((4, 2, copy.outputs))
        rows[:, :, :2] = [[1.0, 0], [-1, 0.5]]
        least = RunningBounds(copy, *sides, execution_of(network)).below(rows, np.zeros((4, 2)))[0]
        points = lower + width * torch.rand(200, 4, *shape, dtype=dtype)
        points = points.clamp(lower, upper)
        with torch.no_grad():
            outputs = network(points.flatten(0, 1)).double().numpy().reshape(200, 4, copy.outputs)
        values = np.einsum("brk,nbk->nbr", rows, outputs)
        assert (values >= least).all()
        if not width:
            assert np.abs(values - least).max() < (1e-3 if dtype is torch.float32 else 1e-8)
    assert count == copy.inputs


@pytest.mark.parametrize(
    ("network", "shape", "reason"),
    [
        (chain(nn.Linear(3, 2), nn.Softsign()), (3,), "Softsign"),
        (chain(nn.Linear(3, 2), nn.GELU("tanh")), (3,), "GELU"),
        (chain(nn.Linear(3, 2), nn.Softmax(1)), (3,), "Softmax"),
        (nn.Linear(3, 2).to(torch.bfloat16), (3,), "bfloat16"),
        (nn.Linear(3, 2), (4,), "cannot be traced on inputs of shape"),
        (nn.Conv2d(1, 1, 3), (1, 5, 5), r"expected outputs \(N, k\)"),
    ],
)
def test_what_is_not_covered_is_named(network, shape, reason):
    with pytest.raises(UnsupportedError, match=reason):
        layered_copy(network, shape)


def test_a_layer_whose_output_hides_in_a_tuple_is_refused():
    class Split(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(2, 2)

        def forward(self, x):
            return self.head(torch.chunk(x, 2, 1)[0])

    with pytest.raises(UnsupportedError, match="chunk"):
        layered_copy(Split(), (4,))


def trained(seed=0):
    torch.manual_seed(seed)
    network = chain(nn.Flatten(), nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 3))
    with torch.no_grad():
        network[3].bias += torch.tensor([3.0, 0, 0])
    return network


def proof_of(network, rows=((1.0, -1, 0), (1, 0, -1)), offset=(0.0, 0.0)):
    groups = OutputRows(rows, offset, np.arange(len(rows)))
    sides = [[-1.0] * 4, [0.5] * 4], [[0.0] * 4, [1.0] * 4]
    return RegionProof.of_boxes(*sides, [groups, groups], fingerprint=fingerprint(network).total, shape=(2, 2))


def test_a_proof_is_a_file_that_tells_when_it_was_changed(tmp_path):
    network = trained()
    proof = proof_of(network)
    assert check_deployed(network, proof, samples=1000).status is ProofStatus.PROVED
    path = tmp_path / "proof.safetensors"
    content = save_proof(proof, path)
    again = load_proof(path, expected_hash=content)
    assert check_deployed(network, again, samples=1000).status is ProofStatus.PROVED
    assert (again.shape, again.execution, len(again.rows)) == ((2, 2), "float32", 2)
    with pytest.raises(ProofError, match="SHA-256"):
        check_deployed(trained(seed=1), again)
    with pytest.raises(ProofError, match="float64"):
        check_deployed(network, replace(again, execution="float64"))
    with pytest.raises(ProofError, match="another hash"):
        load_proof(path, expected_hash="0" * 64)
    whole = bytearray(path.read_bytes())
    for place in (len(whole) - 5, len(whole) // 2, 30):
        changed = bytearray(whole)
        changed[place] ^= 1
        path.write_bytes(bytes(changed))
        with pytest.raises(ProofError, match=r"proof\.safetensors"):
            load_proof(path)


def test_a_violation_is_a_point_on_which_the_deployed_network_itself_fails():
    network = trained()
    with torch.no_grad():
        low = network(torch.rand(1000, 2, 2) / 2 + 0.5)
    gap = float((low[:, 0] - low[:, 1]).min())
    verdict = check_deployed(network, proof_of(network, offset=(gap + 1e-3, -9)), samples=1000)
    assert verdict.status is ProofStatus.REFUTED
    again = network(torch.tensor(verdict.point, dtype=torch.float32).reshape(1, 2, 2))[0].detach().numpy()
    assert np.allclose(again, verdict.outputs, rtol=1e-6)
    assert verdict.outputs[0] - verdict.outputs[1] <= gap + 1e-3
    assert verdict.share == 0
