"""What is said of new data: rows told apart by their contents, overlaps warned of, claims with their confidence."""

import json

import numpy as np
import pytest
import torch
from biased_task import task

from repairopt import SQP, Bound, ErrorRate, MissRate, solve_repair
from repairopt.specify import Folds, overlap, rate_interval, tied_sets
from repairopt.specify.folds import row_hashes
from repairopt.specify.intervals import gap_interval
from repairopt.verify import make_claim


def some_rows(count=2000, width=7):
    return torch.randn(count, width, dtype=torch.float64).float()


# ---------------------------------------------------------------- rows


def test_equal_rows_have_equal_hashes_whatever_their_type_and_place():
    rows = some_rows()
    known = row_hashes(rows)
    assert len(np.unique(known)) == len(rows)
    assert np.array_equal(row_hashes(rows.double()), known)
    assert np.array_equal(row_hashes(rows.flip(0)), known[::-1])
    assert np.array_equal(row_hashes(rows.reshape(-1, 7, 1)), known)
    whole = torch.randint(-9, 9, (300, 4))
    assert np.array_equal(row_hashes(whole), row_hashes(whole.double()))
    zeros = torch.zeros(1, 3)
    assert np.array_equal(row_hashes(-zeros), row_hashes(zeros)), "-0 equals 0"
    assert len(row_hashes(torch.zeros(0, 3))) == 0


def test_a_hash_depends_on_every_number_and_on_their_order():
    row = torch.tensor([[1.0, 2.0, 3.0]])
    others = torch.tensor([[1.0, 2.0, 3.0000002], [3.0, 2.0, 1.0], [2.0, 1.0, 3.0], [-1.0, 2.0, 3.0], [0.0, 0.0, 0.0]])
    assert len({*row_hashes(row).tolist(), *row_hashes(others).tolist()}) == 6


def test_long_rows_are_hashed_in_blocks_to_the_same(monkeypatch):
    rows = some_rows(50)
    known = row_hashes(rows)
    monkeypatch.setattr("repairopt.specify.folds.BLOCK", 21)
    assert np.array_equal(row_hashes(rows), known)


@pytest.mark.parametrize("count", [2, 3, 10])
def test_folds_are_a_division_that_equal_rows_share(count):
    rows, folds = some_rows(), Folds(count, seed=1)
    of = folds.of(rows)
    shares = torch.bincount(of, minlength=count) / len(rows)
    assert torch.allclose(shares, torch.full((count,), 1 / count), atol=0.05)
    assert torch.equal(folds.of(rows.double()[100:300]), of[100:300])
    left_out = torch.stack([~folds.outside(k, rows) for k in range(count)])
    assert torch.equal(left_out.sum(0), torch.ones(len(rows), dtype=torch.int64)), "each row is left out once"
    assert not torch.equal(Folds(count, seed=2).of(rows), of)


def test_folds_notice_rows_that_were_written_over():
    rows, folds = some_rows(200), Folds(2)
    before = folds.of(rows)
    rows += 1.0
    assert torch.equal(folds.of(rows), Folds(2).of(rows.clone()))
    assert not torch.equal(folds.of(rows), before)


def test_overlap_counts_rows_of_the_second_sets():
    rows = some_rows(100)
    new = some_rows(40)
    assert overlap([rows], [new]) == 0
    assert overlap([rows[:50], rows[50:]], [torch.cat([new, rows[45:55].double()]), rows[:1]]) == 11
    assert overlap([rows], [rows.reshape(-1, 1, 7)]) == 0, "rows of another shape are other rows"


# ---------------------------------------------------------------- claims


def wrong(count, misses):
    """``count`` points of which the identity network gets ``misses`` wrong."""
    inputs = torch.eye(2).repeat_interleave(torch.tensor([count - misses, misses]), dim=0)
    return ErrorRate(inputs, torch.zeros(count, dtype=torch.int64), target=0.1)


def claim(count, misses, limit=0.1):
    options = {"confidence": 0.95, "source": "held-out data"}
    return make_claim("error", wrong(count, misses), limit, lambda x: x, **options)


def test_a_claim_is_met_where_the_upper_end_lies_below_the_limit():
    found = claim(1000, 60)
    known = rate_interval(60, 1000, 0.9)
    assert (found.interval.low, found.interval.high) == pytest.approx((known.low, known.high))
    assert found.met
    assert found.rows is None
    assert not found.never
    assert str(found) == (
        f"error: 0.0600 on held-out data ({found.interval.low:.4f} to {found.interval.high:.4f}), limit 0.1000: "
        f"met with 95 % confidence"
    )


def test_a_claim_that_is_not_shown_says_how_many_rows_would_show_it():
    found = claim(100, 6)
    assert not found.met
    assert not found.never
    assert 100 < found.rows < 1000
    assert str(found).endswith(
        f"not shown with 95 % confidence; about {found.rows:.0f} rows of the smallest group would show it"
    )
    enough = 2 * int(found.rows)  # twice, because the interval is not symmetric and the number a rough one
    assert claim(enough, round(0.06 * enough)).met


def test_a_value_above_the_limit_is_shown_by_no_number_of_rows():
    found = claim(100, 15)
    assert not found.met
    assert found.rows == float("inf")
    assert str(found).endswith("limit 0.1000: not met")


def test_too_few_rows_never_show_a_limit():
    found = claim(20, 0)
    assert found.interval.value == 0
    assert found.never
    assert found.rows > 20
    assert "too few rows to show it even were it 0" in str(found)
    assert not claim(60, 4).never, "60 rows without a mistake would show it"
    assert claim(60, 0).met


@pytest.mark.parametrize(("hits", "limit"), [((100, 102), 0.03), ((100, 110), 0.05), ((2, 0), 0.012)])
def test_more_rows_are_asked_for_than_there_are(hits, limit):
    """Also where the lower end of a gap is cut off at 0, so that half the width says too little."""

    class Gap:
        def interval(self, predict, confidence):
            return gap_interval(np.array(hits, dtype=float), np.full(2, 400.0), confidence, combine="max")

    found = make_claim("gap", Gap(), limit, None, confidence=0.95, source="held-out data")
    assert not found.met
    assert found.rows > 400


def test_properties_without_an_interval_are_claimed_nothing_of():
    assert make_claim("any", object(), 0.1, None, confidence=0.95, source="held-out data") is None


# ---------------------------------------------------------------- in the report


@pytest.fixture(scope="module")
def repaired():
    toy = task()
    miss = Bound(MissRate(toy.inputs, toy.labels, label=1), slack=0.05, name="recall of class 1")
    inputs, labels = toy.held_out
    held_out = (torch.cat([inputs, toy.inputs[:25]]), torch.cat([labels, toy.labels[:25]]))
    gap = toy.gap(target=0.1)
    return solve_repair(
        toy.model, gap, [toy.keep(), miss], held_out=held_out, weights="last", method=SQP(confidence=0.9)
    )


def test_rows_that_are_held_out_and_repaired_on_are_counted_in_a_note(repaired):
    notes = [note for note in repaired.report.notes if "held-out rows equal a row of the repair data" in note]
    assert len(notes) == 1
    assert notes[0].startswith("25 of 425 held-out rows")
    assert notes[0] in " ".join(str(repaired.report).split())


def test_given_points_that_are_held_out_too_are_counted(repaired):
    toy = task()
    inputs, labels = toy.held_out
    held_out = (torch.cat([inputs, toy.inputs[:7]]), torch.cat([labels, toy.labels[:7]]))
    goal = ErrorRate(toy.inputs[:12], toy.labels[:12])
    found = solve_repair(toy.model, goal, held_out=held_out, weights="last", method=SQP(confidence=None))
    assert any(note.startswith("7 of 407 held-out rows equal") for note in found.report.notes)


def test_no_overlap_no_note():
    toy = task()
    found = solve_repair(
        toy.model, toy.gap(), [toy.keep()], held_out=toy.held_out, weights="last", method=SQP(confidence=None)
    )
    assert not any("held-out rows equal" in note for note in found.report.notes)


def test_claims_come_from_cross_validation_and_from_held_out_data(repaired):
    sources = {(found.name, found.source) for found in repaired.report.claims}
    assert sources == {
        (name, source)
        for name in ("group gap", "recall of class 1")
        for source in ("cross-validation", "held-out data")
    }
    assert {found.confidence for found in repaired.report.claims} == {0.9}
    new = {found.name: found for found in repaired.report.claims if found.source == "held-out data"}
    gap = repaired.report.measure("group gap", held_out=True)
    assert new["group gap"].interval.value == pytest.approx(gap.after, abs=1e-6)
    assert new["group gap"].limit == 0.1


def test_claims_are_in_the_json_of_the_report(repaired):
    found = json.loads(json.dumps(repaired.report.to_dict(), allow_nan=False))["claims"]
    assert len(found) == 4
    for plain, one in zip(found, repaired.report.claims, strict=True):
        assert plain["name"] == one.name
        assert plain["met"] == one.met
        assert plain["text"] == str(one)
        assert plain["interval"]["high"] == one.interval.high
        assert plain["rows"] == one.rows or (plain["rows"] is None and one.rows == float("inf"))
    assert all(str(one) in " ".join(str(repaired.report).split()) for one in repaired.report.claims)


@pytest.mark.parametrize("count", [2, 4])
def test_versions_of_the_same_samples_are_left_out_together(count):
    clean, turned, other = some_rows(300), some_rows(300), some_rows(200)
    labels, others = torch.randint(0, 3, (300,)), torch.randint(0, 3, (200,))
    tied = tied_sets([(clean, labels), (other, others), (turned, labels.clone()), (other, torch.zeros(200).long())])
    assert [[x.data_ptr() for x in group] for group in tied] == [[clean.data_ptr(), turned.data_ptr()]]
    folds, plain = Folds(count, 3, tied), Folds(count, 3)
    assert torch.equal(folds.of(turned.clone()), folds.of(clean))
    assert torch.equal(folds.of(turned[40:90]), folds.of(clean)[40:90])
    assert torch.equal(folds.of(clean), plain.of(clean))
    assert torch.equal(folds.of(other), plain.of(other))
    assert not torch.equal(plain.of(turned), plain.of(clean))
