"""The exceptions of repairopt.

Every message has three parts: which object, in the user's words; what was expected and what came; what to do.
Outcomes of a repair (target missed, constraints in conflict, time limit) are values, not exceptions: see
:class:`repairopt.Verdict` and :class:`repairopt.Status`.
"""

from __future__ import annotations

from importlib.util import find_spec
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


class PatchError(RepairError, ValueError):
    """A patch cannot be made, read or applied: foreign or damaged file, weights that it does not fit."""


class WrongBaseError(PatchError):
    """The weights are not those that a patch was made for, or made of. The message names the tensors that differ."""


class PatchConflictError(PatchError):
    """Patches that cannot be stacked.

    Attributes:
        conflicts: What :func:`repairopt.patches.find_conflicts` found.
    """

    def __init__(self, message: str, conflicts: Any = ()) -> None:
        super().__init__(message)
        self.conflicts = tuple(conflicts)


class ExportError(RepairError, RuntimeError):
    """A model or patch cannot be exported, or what was exported computes something else."""


class AuditError(RepairError, ValueError):
    """An audit log is broken: a line was changed, removed, added or put elsewhere. The message names the line."""


class MissingExtraError(RepairError, ImportError):
    """An optional library is not installed. The message names the extra that brings it."""


def require_extra(extra: str, task: str, *modules: str, hint: str = "") -> None:
    """Check that the libraries of an extra are installed, without importing them.

    Args:
        extra: Name of the extra of repairopt.
        task: What needs it, for the message.
        *modules: Names of the libraries.
        hint: What to do without them, for the message.

    Raises:
        MissingExtraError: One is not installed.
    """
    if missing := [name for name in modules if find_spec(name) is None]:
        raise MissingExtraError(
            f"{task} needs {', '.join(missing)}, not installed here. Install with: pip install repairopt[{extra}]{hint}"
        )


class LanguageError(SpecificationError):
    """A goal or bound that is written in the language of spec files cannot be read, or does not fit the data.

    Attributes:
        text: What was written, in one line.
        position: Of the character that the message points at, from 0.
        reason: What is wrong with it and what is allowed.
    """

    def __init__(self, text: str, position: int, reason: str) -> None:
        self.text, self.position, self.reason = text, position, reason
        super().__init__(f"{reason}\n    {text}\n    {' ' * position}^")


class SpecFileError(SpecificationError):
    """A spec file, or a file that it names, cannot be used. The message names the file and, where known, the line."""


class ResultError(RepairError, ValueError):
    """The folder of a run cannot be read or written to, or what is in it does not fit together."""
