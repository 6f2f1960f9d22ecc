"""Ctrl-C during a long native solve: the best point so far comes back, marked so."""

import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name != "posix", reason="signals are those of POSIX")]

SCRIPT = """
import signal, time
import numpy as np
from repairopt.program.program import Program
from repairopt.program.backends import load_solver
from repairopt.program.solve_program import solve

load_solver({solver!r})  # libraries take their time to load
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts jobs in the background without it
random, n = np.random.default_rng(0), 90
factor = random.normal(size=(n, n))
program = Program(
    gradient=10 * random.normal(size=n),
    hessian=factor @ factor.T if {quadratic} else None,
    matrix=random.normal(size=(150, n)),
    upper=1.0 + random.exponential(size=150),
    delta_lower=np.full(n, -5.0),
    delta_upper=np.full(n, 5.0),
    integer=np.ones(n, dtype=bool),
)
print("go", flush=True)
started = time.perf_counter()
found = solve(program, {solver!r})
print(found.status.name, found.interrupted, len(found.attempts), found.delta is not None, flush=True)
"""


@pytest.mark.parametrize(("solver", "quadratic"), [("highs", False), ("scip", True)])
def test_ctrl_c_returns_the_best_point(solver, quadratic):
    library = {"highs": "highspy", "scip": "pyscipopt"}[solver]
    if find_spec(library) is None:
        pytest.skip(f"{solver}: {library} is not installed")
    code = SCRIPT.format(solver=solver, quadratic=quadratic)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as run:
        try:
            assert run.stdout.readline() == "go\n"
            time.sleep(1)  # well into the native solve
            assert run.poll() is None, "the program was solved before it could be interrupted"
            run.send_signal(signal.SIGINT)
            printed, _ = run.communicate(timeout=60)
        finally:
            run.kill()  # a solve that does not heed the signal must not outlive its test
    status, interrupted, attempts, found = printed.splitlines()[-1].split()
    assert (interrupted, attempts) == ("True", "1")
    assert (status, found) in (("FEASIBLE", "True"), ("NO_POINT", "False"))
