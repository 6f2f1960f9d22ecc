"""Intervals: equal to scipy's and to published ones, and as sure as they say, by simulation."""

import numpy as np
import pytest
from scipy.stats import binomtest, norm

from repairopt.specify import Interval, normal_quantile, rate_interval
from repairopt.specify.intervals import bootstrap_rates, gap_interval, matched_interval


@pytest.mark.parametrize("share", [0.025, 0.5, 0.95, 0.999])
def test_normal_quantile_is_that_of_scipy(share):
    assert normal_quantile(share) == pytest.approx(norm.ppf(share), abs=1e-12)


@pytest.mark.parametrize(("hits", "count"), [(0, 1), (1, 1), (0, 30), (30, 30), (3, 47), (500, 1000), (1, 20_000)])
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.998])
def test_rates_have_the_exact_interval_of_scipy(hits, count, confidence):
    found = rate_interval(hits, count, confidence)
    known = binomtest(hits, count).proportion_ci(confidence, method="exact")
    assert (found.low, found.high) == pytest.approx((known.low, known.high), abs=1e-10)
    assert (found.value, found.count, found.confidence) == (hits / count, count, confidence)


def test_the_error_of_a_large_sample_is_the_standard_error():
    found = rate_interval(3000, 10_000, 0.9)
    assert found.error == pytest.approx(np.sqrt(0.3 * 0.7 / 10_000), rel=0.02)


@pytest.mark.parametrize(
    ("first", "second", "low", "high"),
    [  # Newcombe 1998, table II, method 10; ends below 0 become 0 because a gap has no sign
        ((56, 70), (48, 80), 0.0524, 0.3339),
        ((9, 10), (3, 10), 0.1705, 0.8090),
        ((6, 7), (2, 7), 0.0582, 0.8062),
        ((5, 56), (0, 29), 0.0, 0.1926),
        ((0, 10), (0, 10), 0.0, 0.2775),
        ((10, 10), (0, 10), 0.6075, 1.0),
    ],
)
@pytest.mark.parametrize("turned", [False, True])
def test_gaps_of_two_groups_have_newcombes_published_intervals(first, second, low, high, turned):
    pair = [second, first] if turned else [first, second]
    hits, counts = np.array(pair, dtype=float).T
    found = gap_interval(hits, counts, 0.95, combine="mean")
    assert (found.low, found.high) == pytest.approx((low, high), abs=5e-4)
    assert found.value == pytest.approx(abs(first[0] / first[1] - second[0] / second[1]))
    assert found.count == min(first[1], second[1])


def test_a_gap_within_labels_compares_no_groups_of_other_labels():
    hits, counts, labels = np.array([10.0, 12.0, 90.0, 80.0]), np.full(4, 100.0), np.array([0.0, 0.0, 1.0, 1.0])
    within = gap_interval(hits, counts, 0.9, combine="max", labels=labels)
    second = gap_interval(hits[2:], counts[2:], 0.9, combine="max")
    assert within.value == pytest.approx(0.1)
    assert within.high >= second.high
    assert gap_interval(hits, counts, 0.9, combine="max").value == pytest.approx(0.8)


def coverage(draw, truth: float, runs: int = 400) -> tuple[float, float]:
    """Shares of intervals from drawn samples that hold the truth, and whose upper end is not below it."""
    random = np.random.default_rng(7)
    found: list[Interval] = [draw(random) for _ in range(runs)]
    both = np.mean([one.low - 1e-12 <= truth <= one.high + 1e-12 for one in found])
    return float(both), float(np.mean([truth <= one.high + 1e-12 for one in found]))


@pytest.mark.parametrize("rates", [(0.3, 0.3, 0.3, 0.3), (0.5, 0.4, 0.45, 0.42), (0.9, 0.6, 0.88, 0.85), (0.02, 0.05)])
def test_the_largest_gap_of_groups_is_covered(rates):
    counts = np.linspace(80, 200, len(rates)).astype(int)

    def draw(random):
        return gap_interval(random.binomial(counts, rates).astype(float), counts.astype(float), 0.9, combine="max")

    both, upper = coverage(draw, max(rates) - min(rates))
    assert both >= 0.87, "two standard errors of the simulation below 0.9"
    assert upper >= 0.93


@pytest.mark.parametrize("chances", [(0.04, 0.01), (0.002, 0.002), (0.1, 0.2), (0.3, 0.0)])
def test_matched_differences_are_covered(chances):
    def draw(random):
        worse, better, _ = random.multinomial(150, [*chances, 1 - sum(chances)])
        return matched_interval(int(worse), int(better), 150, 0.9)

    both, upper = coverage(draw, chances[0] - chances[1], 2000)
    assert both >= 0.88
    assert upper >= 0.93


def test_a_matched_interval_is_walds_with_half_a_sample_in_each_cell():
    found = matched_interval(12, 30, 400, 0.95)
    worse, better, n = 12.5, 30.5, 402.0
    middle = (worse - better) / n
    error = np.sqrt(((worse + better) - (worse - better) ** 2 / n) / n**2)
    assert (found.low, found.high) == pytest.approx((middle - 1.959964 * error, middle + 1.959964 * error), abs=1e-7)
    assert found.value == pytest.approx(-18 / 400)
    nothing = matched_interval(0, 0, 50, 0.95)
    assert nothing.low < 0.0 < nothing.high, "no change among 50 does not mean none ever"


def test_the_bootstrap_of_a_mean_gap_covers_a_gap_that_is_there():
    rates, counts = np.array([0.6, 0.4, 0.25]), np.array([150.0, 120.0, 200.0])
    truth = np.mean([0.2, 0.35, 0.15])

    def draw(random):
        return gap_interval(random.binomial(counts.astype(int), rates).astype(float), counts, 0.9, combine="mean")

    both, upper = coverage(draw, truth, 200)
    assert both >= 0.85
    assert upper >= 0.9


def test_the_bootstrap_draws_labels_of_a_group_together_and_repeats_itself():
    hits = np.array([[30.0, 50.0, 20.0], [10.0, 60.0, 30.0]])

    def total(drawn):
        assert np.allclose(drawn.sum(axis=2), 1.0), "each row gets one label"
        return drawn[:, 0, 0] - drawn[:, 1, 0]

    found = bootstrap_rates(hits, np.array([100.0, 100.0]), 0.95, total)
    assert found == bootstrap_rates(hits, np.array([100.0, 100.0]), 0.95, total)
    error = np.sqrt(0.3 * 0.7 / 100 + 0.1 * 0.9 / 100)
    assert (found.low, found.high) == pytest.approx((0.2 - 1.96 * error, 0.2 + 1.96 * error), abs=0.015)
    assert found.error == pytest.approx(error, rel=0.1)
