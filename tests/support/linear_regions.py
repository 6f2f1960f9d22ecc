"""Exact enumeration of the linear regions of small ReLU networks with two inputs, in rational arithmetic."""

from fractions import Fraction
from itertools import pairwise
from operator import mul

import numpy as np


def clip(polygon, normal, offset):
    """The part of a convex polygon where ``normal . x + offset >= 0``, in rational arithmetic."""
    values = [normal[0] * x + normal[1] * y + offset for x, y in polygon]
    found = []
    corners = [*zip(polygon, values, strict=True)]
    for (p, a), (q, b) in pairwise([*corners, corners[0]]):
        if a >= 0:
            found.append(p)
        if (a > 0 > b) or (a < 0 < b):
            t = a / (a - b)
            found.append((p[0] + t * (q[0] - p[0]), p[1] + t * (q[1] - p[1])))
    return found


def area(polygon):
    return abs(sum(p[0] * q[1] - q[0] * p[1] for p, q in pairwise([*polygon, polygon[0]])))


def linear_regions(weights, polygon):
    """``(polygon, matrix, offset)`` of the outputs on each linear region of a ReLU network with 2 inputs."""
    waiting = [(polygon, [[Fraction(1), Fraction(0)], [Fraction(0), Fraction(1)]], [Fraction(0)] * 2, 0, None)]
    while waiting:
        part, matrix, offset, depth, todo = waiting.pop()
        if len(part) < 3 or area(part) == 0:
            continue
        weight, bias = weights[depth]
        if todo is None:
            rows = [[sum(map(mul, row, column)) for column in zip(*matrix, strict=True)] for row in weight]
            shift = [sum(map(mul, row, offset)) + b for row, b in zip(weight, bias, strict=True)]
            if depth == len(weights) - 1:
                yield part, rows, shift
                continue
            waiting.append((part, rows, shift, depth, 0))
        elif todo == len(bias):
            waiting.append((part, matrix, offset, depth + 1, None))
        else:
            normal, value = matrix[todo], offset[todo]
            off_matrix, off_offset = [*matrix], [*offset]
            off_matrix[todo], off_offset[todo] = [Fraction(0)] * 2, Fraction(0)
            waiting.append((clip(part, normal, value), matrix, offset, depth, todo + 1))
            waiting.append((clip(part, [-normal[0], -normal[1]], -value), off_matrix, off_offset, depth, todo + 1))


def box(lower, upper):
    """The corners of a box, in order."""
    (a, b), (c, d) = lower, upper
    return [(a, b), (c, b), (c, d), (a, d)]


def is_violated_exactly(weights, rows, polygon):
    """Whether some point of a convex polygon, given by its corners in order, makes all rows of a group at most 0."""
    exact = [
        ([[Fraction(float(w)) for w in row] for row in weight], [Fraction(float(b)) for b in bias])
        for weight, bias in weights
    ]
    corners = [(Fraction(float(x)), Fraction(float(y))) for x, y in polygon]
    for part, matrix, offset in linear_regions(exact, corners):
        for group in set(rows.group):
            left = part
            for row in np.flatnonzero(rows.group == group):
                parts = [Fraction(float(v)) for v in rows.matrix[row]]
                normal = [-sum(p * m[i] for p, m in zip(parts, matrix, strict=True)) for i in range(2)]
                shift = Fraction(float(rows.offset[row])) - sum(p * o for p, o in zip(parts, offset, strict=True))
                left = clip(left, normal, shift) if left else left
            if left:
                return True
    return False
