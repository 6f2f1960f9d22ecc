"""Letters of methods: adjusted means, one error variance for all, missing cells, and how many letters are needed."""

import itertools
from string import ascii_lowercase

import numpy as np
import pytest

from repairopt.compare import Cell, CellOutcome, Comparison, letter_groups
from repairopt.compare.blocks import adjust_means
from repairopt.errors import SpecificationError

CELLS = [(subject, k) for subject in "uvwxyz" for k in range(3)]


def _study(count=24, *, missing=0.3, seed=0, effect=0.02):
    """Methods with known effects on subjects of unequal difficulty and noise; cells missing at random."""
    draw = np.random.default_rng(seed)
    level = {s: draw.normal() for s in "uvwxyz"}
    noise = {s: draw.uniform(0.02, 0.4) for s in "uvwxyz"}
    return {
        f"m{k}": {
            (s, r): level[s] + effect * k + noise[s] * draw.normal() for s, r in CELLS if draw.uniform() > missing
        }
        for k in range(count)
    }


def test_without_missing_cells_adjusted_means_are_means_and_two_methods_get_the_paired_test():
    from scipy import stats

    values = {name: own for name, own in _study(2, missing=0.0).items()}
    found = adjust_means(values)
    for name, own in values.items():
        assert found.means[name] == pytest.approx(np.mean(list(own.values())))
    paired = stats.ttest_rel(list(values["m0"].values()), list(values["m1"].values())).pvalue
    assert found.p_value("m0", "m1") == pytest.approx(paired)
    assert found.freedom == len(CELLS) - 1


def test_a_method_that_lacks_the_hard_networks_does_not_gain_by_that():
    hard = {cell: 0.1 if cell[0] in "uvw" else 0.9 for cell in CELLS}
    draw = np.random.default_rng(0)
    noise = {cell: 0.001 * draw.normal(size=3) for cell in CELLS}
    other = {cell: v + noise[cell][0] for cell, v in hard.items()}
    better = {cell: v + 0.05 + noise[cell][1] for cell, v in hard.items()}
    easy = {cell: v + noise[cell][2] for cell, v in hard.items() if cell[0] in "xyz"}
    values = {"other": other, "better": better, "easy": easy}
    assert np.mean(list(easy.values())) > np.mean(list(better.values()))
    means = adjust_means(values).means
    assert means["easy"] == pytest.approx(0.5, abs=1e-3)
    assert means["better"] == pytest.approx(0.55, abs=1e-3)
    assert letter_groups(values, better=1, test="blocked") == {"better": "a", "other": "b", "easy": "b"}


def test_few_letters_say_what_differs():
    """With every third cell missing; letters of the model are in a row, and no letter can be left out."""
    values = _study()
    paired, blocked = (letter_groups(values, better=1, test=test) for test in ("paired", "blocked"))
    assert all(own in ascii_lowercase for own in blocked.values())
    assert not all(own in ascii_lowercase for own in paired.values())
    found, names = adjust_means(values), list(blocked)
    assert [found.means[name] for name in names] == sorted(found.means.values(), reverse=True)
    from scipy import stats

    pairs = list(itertools.combinations(names, 2))
    q = stats.false_discovery_control([found.p_value(a, b) for a, b in pairs])
    for (a, b), one in zip(pairs, q, strict=True):
        assert bool(set(blocked[a]) & set(blocked[b])) is bool(one >= 0.05)
    for shown in (blocked, paired):  # each letter joins two that no other letter joins
        used = sorted(set("".join(shown.values())))
        assert len(used) <= 10
        for letter in used:
            joined = [set(shown[a]) & set(shown[b]) for a, b in pairs]
            assert not all(own - {letter} for own in joined if letter in own)
    assert "a" in blocked["m23"]
    assert "a" not in blocked["m0"]


def test_where_nothing_differs_letters_seldom_say_so():
    wrong = 0
    for seed in range(40):
        found = letter_groups(_study(8, seed=seed, effect=0.0), better=1, test="blocked")
        wrong += any(letters != "a" for letters in found.values())
    assert wrong <= 6  # of 40, 2 are expected at 5 %; unequal noise of the subjects costs some


def test_what_is_not_determined_is_not_told_apart():
    """Two pairs of methods on networks that no other pair shares; one run each; equal differences."""
    first, second = ({(s, k): v + 0.1 * k for k in range(3)} for s, v in (("x", 0.1), ("y", 0.9)))
    values = {"a": first, "b": dict(first), "c": second, "d": {cell: v - 0.2 for cell, v in second.items()}}
    assert letter_groups(values, better=1, test="blocked") == {"c": "a", "a": "ab", "b": "ab", "d": "b"}
    single = {"a": {("x", 0): 0.1}, "b": {("x", 0): 0.9}, "none": {}}
    assert letter_groups(single, better=1, test="blocked") == {"b": "a", "a": "a"}
    assert letter_groups({}, better=1, test="blocked") == {}
    with pytest.raises(SpecificationError, match="choose paired or blocked"):
        letter_groups(single, better=1, test="tukey")


def test_a_comparison_shows_differences_and_geometric_means():
    def cell(method, subject, success, seconds):
        metrics = {"attack_success": success, "attack_success_before": 0.002, "cpu_seconds": seconds}
        return Cell(method, subject, 0, CellOutcome.MEASURED, metrics=metrics)

    found = Comparison(
        (cell("m", "x", 0.05, 1.0), cell("m", "y", 0.03, 100.0), cell("n", "x", 0.002, 2.0), cell("n", "y", 0.0, 200.0))
    )
    assert found.means("attack_success") == pytest.approx({"m": 0.038, "n": -0.001})
    assert found.means("cpu_seconds") == pytest.approx({"m": 10.0, "n": 20.0})
    assert found.values("attack_success", relative=True)["m"]["x", 0] == pytest.approx(24.0)
    assert found.letters("cpu_seconds") == {"m": "a", "n": "b"}  # the ratio is 2 on both
    told = found.to_dict()
    assert told["letters"]["cpu_seconds"]["n"] == "b"
    assert told["paired_letters"].keys() == told["means"].keys() == told["letters"].keys()
    assert "+0.0380" in found.to_html()
