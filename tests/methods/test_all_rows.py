"""Steps of training that take all rows at once: their loss is that of both sides, one after the other."""

import torch
from torch.nn import functional as F

from repairopt.methods.training.all_rows import AllRows

SMOOTHING, KEEP = 0.1, 3.0


def test_the_loss_and_its_gradient_are_those_of_both_sides():
    draw = torch.Generator().manual_seed(0)
    sizes = (4, 7, 5)  # one set that fails, two to keep
    sets = [(torch.randn(n, 3, generator=draw), torch.randint(0, 3, (n,), generator=draw)) for n in sizes]
    rows = AllRows.of([(x,) for x, _ in sets], sets[:1], sets[1:], KEEP)
    outputs = rows.read[0].clone().requires_grad_()  # a network that gives what it reads
    at_once = -(torch.log_softmax(outputs, 1) * rows.wanted(outputs, SMOOTHING)).sum()
    failing = F.cross_entropy(outputs[:4], sets[0][1], label_smoothing=SMOOTHING)
    kept = F.cross_entropy(outputs[4:], torch.cat([sets[1][1], sets[2][1]]), label_smoothing=SMOOTHING)
    torch.testing.assert_close(at_once, failing + KEEP * kept)
    slopes = [torch.autograd.grad(loss, outputs)[0] for loss in (at_once, failing + KEEP * kept)]
    torch.testing.assert_close(*slopes)
    assert rows.wrong(outputs) == int((outputs[:4].argmax(1) != sets[0][1]).sum())
