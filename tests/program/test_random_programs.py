"""Random programs against their known answers and against a second solver.

The environment variable ``REPAIROPT_FUZZ`` multiplies the number of programs; CONTRIBUTING.md names the nightly one.
"""

import collections

import pytest
from fuzzing import rounds
from random_programs import random_program, wrong

from repairopt.program import Status, available_solvers, load_solver, solve

pytestmark = pytest.mark.slow

PARTS, COUNT, EACH = 4, rounds(300), rounds(70)
SECOND = {"LP": "scipy", "QP": "clarabel", "MILP": "scipy", "MIQP": "gurobi"}


@pytest.mark.parametrize("part", range(PARTS))
def test_the_default_answers_are_right(part):
    faults, ends = [], collections.Counter()
    for seed in range(part * COUNT, (part + 1) * COUNT):
        known = random_program(seed)
        answer = solve(known.program)
        fault, same = wrong(known, answer), answer.status is known.status
        ends["right" if same and not fault else "open"] += 1
        second = SECOND[known.program.kind]
        if second in available_solvers() and seed % 4 == 0:
            other = solve(known.program, second)
            decided = {answer.status, other.status} <= {Status.OPTIMAL, Status.INFEASIBLE, Status.UNBOUNDED}
            if decided and answer.status is not other.status:
                fault = fault or f"{answer.status} where '{second}' says {other.status}"
        if fault:
            faults.append(f"random_program({seed}): {fault} ({known.name}, {known.program.kind}, '{answer.solver}')")
    assert not faults
    assert ends["open"] <= 0.002 * COUNT, "hardly any question is left open"


@pytest.mark.parametrize("name", [name for name in available_solvers() if name not in ("woodbury", "proxqp")])
def test_no_back_end_answers_wrong(name):
    kinds = load_solver(name).kinds
    faults = []
    for seed in range(10**6, 10**6 + EACH):
        known = random_program(seed)
        if known.program.kind in kinds:
            fault = wrong(known, solve(known.program, name))
            faults += [f"random_program({seed}): {fault} ({known.name}, {known.program.kind})"] if fault else []
    assert not faults
