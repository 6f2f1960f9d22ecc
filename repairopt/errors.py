"""The exceptions of repairopt.

Every message has three parts: which object, in the user's words; what was expected and what came; what to do.
Outcomes of a repair (target missed, constraints in conflict, time limit) are values, not exceptions: see
:class:`repairopt.Verdict` and :class:`repairopt.Status`.
"""

from __future__ import annotations

from typing import Any


class RepairError(Exception):
    """Everything that repairopt raises on purpose derives from this class."""


class SpecificationError(RepairError, ValueError):
    """A property or a constraint is malformed: shape, dtype, NaN, empty, out of range."""


class ModelError(RepairError, ValueError):
    """The model cannot be used: unknown parameter, two passes disagree, NaN output, unsupported dtype."""


class ProgramError(RepairError, ValueError):
    """A mathematical program is inconsistent: sizes, lower above upper, non-convex, too large for memory."""


class SolverNotFoundError(RepairError, LookupError):
    """No back end has this name, or its library is not installed."""


class UnsupportedError(RepairError, NotImplementedError):
    """The chosen back end or method cannot take this kind of problem."""


class SolverError(RepairError, RuntimeError):
    """A back end crashed. Always chained to the native exception."""


class RepairFailedError(RepairError, RuntimeError):
    """Raised only by ``Report.raise_if_failed()``.

    Attributes:
        report: The report of the repair that did not succeed.
    """

    def __init__(self, message: str, report: Any = None) -> None:
        super().__init__(message)
        self.report = report
