"""VNN-LIB files: what they say, against evaluating their text directly; malformed ones are refused with their line."""

import time
from fractions import Fraction
from importlib.util import find_spec

import numpy as np
import pytest

from repairopt.errors import SpecFileError
from repairopt.specify import read_vnnlib

DECLARED = "".join(f"(declare-const X_{i} Real)\n" for i in range(2)) + "".join(
    f"(declare-const Y_{j} Real)\n" for j in range(3)
)
BOX = "".join(f"(assert (<= X_{i} {i}.5))\n(assert (>= X_{i} -0.1))\n" for i in range(2))
ROWS = "(assert (<= Y_0 Y_1))\n"


def read(tmp_path, text):
    path = tmp_path / "property.vnnlib"
    path.write_text(text, encoding="utf-8")
    return read_vnnlib(path)


def holds(case, y):
    rows = case.matrix @ y - case.offset > 0
    return all(rows[case.group == group].any() for group in range(case.group.max() + 1))


def test_negated_conditions_become_groups_and_bounds_are_rounded_outward(tmp_path):
    rows = "(assert (or (and (<= Y_0 Y_1) (<= (+ Y_0 (* 2.0 Y_2)) 0.25)) (>= (- Y_2) 3)))\n"
    (case,) = read(tmp_path, f"; a comment\n{DECLARED}{BOX}{rows}")
    assert case.matrix.tolist() == [[1, -1, 0], [1, 0, 2], [0, 0, 1]]
    assert case.offset.tolist() == [0, 0.25, -3]
    assert case.group.tolist() == [0, 0, 1]
    assert case.upper.tolist() == [0.5, 1.5]
    exact = Fraction(-1, 10)
    assert all(Fraction(low) <= exact < Fraction(np.nextafter(low, 1)) for low in case.lower)


def test_a_property_holds_exactly_where_the_text_is_false(tmp_path):
    text = "(or (and (<= Y_0 Y_1) (>= Y_2 (* Y_0 0.5))) (and (< (- Y_1 Y_2 0.125) 0) (> Y_0 0.25)) (<= 1 Y_2))"
    (case,) = read(tmp_path, f"{DECLARED}{BOX}(assert {text})")
    grid = np.stack(np.meshgrid(*[np.arange(-1.5, 1.51, 0.25)] * 3), -1).reshape(-1, 3)
    for a, b, c in grid:
        violated = (a <= b and c >= 0.5 * a) or (b - c - 0.125 <= 0 and a >= 0.25) or c >= 1
        assert holds(case, np.array([a, b, c])) is not violated


def test_boxes_within_a_disjunction_are_cases_with_the_rows_that_belong_to_them(tmp_path):
    inside = "(assert (or (and (<= X_0 0) (<= Y_0 0)) (and (>= X_0 0.25) (<= Y_1 0)) (and (<= X_0 0) (<= Y_2 0))))"
    left, right = read(tmp_path, DECLARED + BOX + inside)
    assert (left.upper[0], right.lower[0], right.upper[0]) == (0.0, 0.25, 0.5)
    assert (left.matrix.tolist(), left.group.tolist()) == ([[1, 0, 0], [0, 0, 1]], [0, 1])
    assert right.matrix.tolist() == [[0, 1, 0]]


def test_coefficients_that_no_float_holds_are_scaled_to_exact_ones(tmp_path):
    (case,) = read(tmp_path, f"{DECLARED}{BOX}(assert (<= (+ (* 0.1 Y_0) (* -0.3 Y_1)) 0.7))")
    assert (case.matrix.tolist(), case.offset.tolist()) == ([[1, -3, 0]], [7])


def test_an_empty_box_is_left_out_with_a_warning(tmp_path):
    either = "(assert (or (and (<= X_0 -5) (<= Y_0 0)) (and (<= X_0 0.25) (<= Y_0 0))))"
    with pytest.warns(UserWarning, match="1 of 2 input boxes are empty"):
        (case,) = read(tmp_path, DECLARED + BOX + either)
    assert case.upper[0] == 0.25


MANY = "".join(f"(assert (or (<= Y_0 {i}) (<= Y_1 {i})))\n" for i in range(17))


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("(declare-const X_0 Real))", 1, "')' stands outside"),
        (f"{DECLARED}(assert (<= X_0 1)", 6, "is never closed"),
        (f"{DECLARED}X_0 <= 1", 6, "'X_0' stands outside"),
        (f"{DECLARED}(minimize Y_0)", 6, "command 'minimize' is unknown"),
        ("(declare-const X_0 Int)", 1, "expected (declare-const X_0 Real)"),
        ("(declare-const Z_0 Real)", 1, "'Z_0' is no input"),
        ("(declare-const X_0 Real)\n(declare-const X_2 Real)\n(declare-const Y_0 Real)", 2, "'X_1' is not"),
        ("(declare-const X_0 Real)\n(declare-const X_0 Real)", 2, "declared again; it was in line 1"),
        (f"{DECLARED}\n(assert (<= X_7 1))", 7, "'X_7' is neither a declared name nor a number"),
        (f"{DECLARED}{BOX}(assert (<= Y_0 nan))", 10, "'nan' is neither"),
        (f"{DECLARED}{BOX}(assert (<= Y_0 1e999999999))", 10, "is neither"),
        (f"{DECLARED}{BOX}(assert (<= Y_0 1e301))", 10, "larger than 1e+300"),
        (f"{DECLARED}{BOX}(assert\n (<= (* Y_0 Y_1) 0))", 11, "multiplied with each other"),
        (f"{DECLARED}{BOX}(assert (<= (/ Y_0 2) 0))", 10, "'(/ Y_0 2)' is no term"),
        (f"{DECLARED}{BOX}(assert (or (and (<= Y_0 1)\n (<= (+ X_0 Y_0) 0))))", 11, "mixes inputs and outputs"),
        (f"{DECLARED}{BOX}(assert (<= (+ X_0 X_1) 0))", 10, "bounds several inputs"),
        (f"{DECLARED}(assert (<= X_0 1))\n(assert (>= X_0 0))\n{ROWS}", 2, "input 'X_1' has no lower bound"),
        (f"{DECLARED}{BOX}(assert (not (<= Y_0 1)))", 10, "'(not (<= Y_0 1))' is no condition"),
        (f"{DECLARED}{BOX}(assert (<= Y_0 1 2))", 10, "'<=' has 3 arguments"),
        (f"{DECLARED}{BOX}(assert)", 10, "assert has 0 arguments"),
        (f"{DECLARED}{BOX}(assert (and))", 10, "'and' is given"),
        (f"{DECLARED}{BOX}{MANY}", 26, "131,072 disjuncts"),
        (f"{DECLARED}{BOX}", 9, "no condition on the outputs"),
        (f"{DECLARED}{BOX}(assert (<= X_0 -4))\n{ROWS}", 11, "no input satisfies"),
        ("(" * 300, 1, "nested more than"),
        ("; nothing\n", 1, "no expressions"),
    ],
)
def test_what_cannot_be_read_is_refused_with_file_and_line(tmp_path, text, line, reason):
    with pytest.raises(SpecFileError) as caught:
        read(tmp_path, text)
    assert f"property.vnnlib', line {line}: " in str(caught.value)
    assert reason in str(caught.value)


def test_what_is_no_text_or_no_file_is_refused(tmp_path):
    packed = tmp_path / "property.vnnlib.gz"
    packed.write_bytes(b"\x1f\x8b\x08\x00")
    with pytest.raises(SpecFileError, match="is not text"):
        read_vnnlib(packed)
    with pytest.raises(SpecFileError, match="cannot be read"):
        read_vnnlib(tmp_path / "none.vnnlib")


@pytest.mark.parametrize(("inputs", "seconds"), [(784, 1.0), (3072, 5.0)])
def test_many_inputs_are_read_without_a_wait(tmp_path, inputs, seconds):
    """Ten times what it takes on an idle machine: time that grows with the square of the inputs would show."""
    lines = [f"(declare-const X_{i} Real)" for i in range(inputs)] + [f"(declare-const Y_{j} Real)" for j in range(10)]
    lines += [f"(assert (<= X_{i} 0.{i + 1:08d}))\n(assert (>= X_{i} -0.{i:08d}))" for i in range(inputs)]
    lines += ["(assert (or " + " ".join(f"(and (>= Y_{j} Y_9))" for j in range(9)) + "))"]
    took = []
    for _ in range(3):
        start = time.process_time()
        (case,) = read(tmp_path, "\n".join(lines))
        took.append(time.process_time() - start)
    assert case.lower.shape == (inputs,)
    assert case.group.tolist() == list(range(9))
    assert min(took) <= seconds


SECOND = """(vnnlib-version <2.0>)
(declare-network f
 (declare-input X float32 [1,2])
 (declare-output Y float32 [1,3])
)
(assert (and (<= X[0,0] 0.5) (>= X[0,0] -0.1)))
(assert (and (<= X[0,1] 1.5) (>= X[0,1] -0.1)))
(assert (or (and (<= Y[0,0] Y[0,1]) (<= (+ Y[0,0] (* 2.0 Y[0,2])) 0.25)) (>= (- Y[0,2]) 3.0)))
"""
needs_vnnlib = pytest.mark.skipif(find_spec("vnnlib") is None, reason="vnnlib is not installed")


@needs_vnnlib
def test_version_2_says_the_same(tmp_path):
    rows = "(assert (or (and (<= Y_0 Y_1) (<= (+ Y_0 (* 2.0 Y_2)) 0.25)) (>= (- Y_2) 3)))\n"
    (first,), (second,) = read(tmp_path, DECLARED + BOX + rows), read(tmp_path, SECOND)
    for name in ("lower", "upper", "matrix", "offset", "group"):
        assert np.array_equal(getattr(first, name), getattr(second, name))


@needs_vnnlib
@pytest.mark.parametrize(
    ("old", "new", "line", "reason"),
    [
        ("X[0,1] 1.5", "X[0,7] 1.5", 7, "Index out of bounds"),
        ("Y[0,2]))", "Y[0,2])", 8, "syntax error"),
        ("(<= Y[0,0] Y[0,1])", "(<= (+ Y[0,0] X[0,0]) 0.0)", 8, "mixes inputs and outputs"),
    ],
)
def test_version_2_is_refused_with_its_line(tmp_path, old, new, line, reason):
    with pytest.raises(SpecFileError, match=reason) as caught:
        read(tmp_path, SECOND.replace(old, new, 1))
    assert f"line {line}: " in str(caught.value)


@pytest.mark.data
def test_every_property_of_acas_xu_is_read(data_dir):
    files = sorted((data_dir / "provable" / "acasxu").glob("*.vnnlib"))
    assert len(files) == 10
    for file in files:
        cases = read_vnnlib(file)
        assert len(cases) == (2 if file.stem == "prop_6" else 1)
        for case in cases:
            assert case.lower.shape == case.upper.shape == (5,)
            assert (case.lower <= case.upper).all()
    (second,) = read_vnnlib(data_dir / "provable" / "acasxu" / "prop_2.vnnlib")
    assert (second.group.tolist(), second.matrix[0].tolist()) == ([0] * 4, [-1, 1, 0, 0, 0])
    (eighth,) = read_vnnlib(data_dir / "provable" / "acasxu" / "prop_8.vnnlib")
    assert eighth.group.tolist() == [0, 0, 1, 1, 2, 2]
