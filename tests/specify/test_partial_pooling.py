"""The size of a gap by partial pooling: nearer to the truth than the measured one where some groups are small."""

import numpy as np
import pytest
import torch

from repairopt.specify import pooled_gap


def errors_of(counts, true, draws=150):
    """Errors of the pooled and of the measured largest difference, for rates that lie ``true`` apart."""
    random, counts = np.random.default_rng(0), np.array(counts)
    pooled, measured = [], []
    for _ in range(draws):
        place = random.random(len(counts))
        place = (place - place.min()) / np.ptp(place)
        rates = random.binomial(counts, 0.15 + true * (place - 0.5)) / counts
        pooled.append(pooled_gap(torch.tensor(rates)[None], torch.tensor(counts)[None], "max") - true)
        measured.append(np.ptp(rates) - true)
    return np.array(pooled), np.array(measured)


@pytest.mark.parametrize("counts", [[700, 1550, 150, 200], [300, 600, 60, 80], [90] * 6], ids=str)
def test_pooled_sizes_are_nearer_to_the_truth(counts):
    for true in (0.0, 0.05):
        pooled, measured = errors_of(counts, true)
        assert np.sqrt((pooled**2).mean()) < 0.8 * np.sqrt((measured**2).mean())
        assert abs(pooled.mean()) < 0.8 * abs(measured.mean())


def test_large_groups_keep_their_rates():
    rates, counts = torch.tensor([[0.1, 0.2, 0.4]]), torch.tensor([[10**7] * 3])
    assert pooled_gap(rates, counts, "max") == pytest.approx(0.3, abs=1e-3)
    assert pooled_gap(rates, counts, "mean") == pytest.approx(0.2, abs=1e-3)
    both = pooled_gap(torch.cat([rates, rates / 2]), torch.cat([counts, counts]), "max")
    assert both == pytest.approx(0.3, abs=1e-3), "the largest within any label"
    assert pooled_gap(torch.zeros(1, 3), counts, "max") == pytest.approx(0.0, abs=1e-3), "nobody is favored"


def test_draws_are_always_the_same():
    rates, counts = torch.tensor([[0.1, 0.2, 0.4]]), torch.tensor([[40, 50, 60]])
    assert pooled_gap(rates, counts, "max") == pooled_gap(rates, counts, "max")
