"""The exceptions of repairopt, and the boundary at its public functions: only these leave, torch is in its usual state.

Every message has three parts: which object, in the user's words; what was expected and what came; what to do.
Outcomes of a repair (target missed, constraints in conflict, time limit) are values, not exceptions: see
:class:`repairopt.Verdict` and :class:`repairopt.Status`.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import sys
import threading
import traceback
import types
import typing
import unicodedata
import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

BIDI = "\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
Function = TypeVar("Function", bound=Callable[..., Any])


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


class ProofError(RepairError, ValueError):
    """A proof of a region cannot be read or checked: damaged, of other weights, or its boxes do not tile the region."""


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
        position: Position of the character that the message points at, from 0.
        reason: What is wrong with it and what is allowed.
    """

    def __init__(self, text: str, position: int, reason: str) -> None:
        self.text, self.position, self.reason = text, position, reason
        super().__init__(f"{reason}\n    {text}\n    {' ' * position}^")


class SpecFileError(SpecificationError):
    """A spec file, or a file that it names, cannot be used. The message names the file and, where known, the line."""


class ResultError(RepairError, ValueError):
    """The folder of a run cannot be read or written to, or what is in it does not fit together."""


class ForeignError(RepairError):
    """An exception of torch, of another library or of the user's code that no check foresaw, chained to it.

    It is also an instance of that exception's class where that can be, so that code that waits for it still gets it.
    """

    def __init__(self, message: str) -> None:
        Exception.__init__(self, message)

    def __str__(self) -> str:
        return str(self.args[0])


def public(function: Function) -> Function:
    """Make a function, or the making of a class, a public entry, which only a :class:`RepairError` leaves.

    It runs with torch in its usual state: whatever surrounds the call (``no_grad``, ``inference_mode``, autocast, a
    default dtype or device) is put aside, so that results are those without, and put back. Warnings that a filter
    raises pass.
    """
    if isinstance(function, type):
        function.__init__ = public(function.__init__)  # type: ignore[misc]
        return function

    @functools.wraps(function)
    def entered(*args: Any, **kwargs: Any) -> Any:
        try:
            with usual_state():
                return function(*args, **kwargs)
        except (RepairError, Warning):
            raise
        except Exception as error:
            wrong = _wrong_argument(function, args, kwargs)
            raise as_foreign(_name_of(function), error, wrong) from error

    return entered  # type: ignore[return-value]


def _name_of(function: Callable[..., Any]) -> str:
    """The name that users call it by."""
    return function.__qualname__.removesuffix(".__init__").rpartition("<locals>.")[2]


def _wrong_argument(function: Callable[..., Any], args: Any, kwargs: Any) -> str:
    """Which argument is not of the type that the signature states, in words; empty where all are, or nobody knows."""
    try:
        hints, signature = typing.get_type_hints(function), inspect.signature(function)
        given = signature.bind(*args, **kwargs).arguments
    except (NameError, TypeError):  # a name for type checkers alone; another number of arguments
        return ""
    for name, value in given.items():
        kind = signature.parameters[name].kind
        if name in hints and kind not in (kind.VAR_POSITIONAL, kind.VAR_KEYWORD) and not _is_a(value, hints[name]):
            expected = str(signature.parameters[name].annotation)
            return f"{name}={shown(value)}; expected {expected.replace('os.PathLike[str]', 'os.PathLike')}."
    return ""


def _is_a(value: Any, hint: Any) -> bool:
    """Whether a value is of the type of a hint, of its items one level deep; True where that cannot be told."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_is_a(value, one) for one in inner)
    if hint is None:
        return value is None
    kind = origin or hint
    if kind is float:
        kind = int | float
    try:
        found = isinstance(value, kind)
    except TypeError:  # Any, type variables, protocols
        return True
    if found and kind in (list, tuple, Sequence) and inner:
        return not isinstance(value, str) and all(_is_a(item, inner[0]) for item in value)
    return found


def shown(value: Any) -> str:
    """A value in a message: itself where it is short, else its type."""
    try:
        text = repr(value)
    except Exception:
        text = ""
    if isinstance(value, str) and len(value) > 60:
        return repr(f"{value[:50]} ...")
    kind = type(value)
    return text if 0 < len(text) <= 60 and "\n" not in text and " at 0x" not in text else f"a {kind.__name__}"


def path_of(value: Any, what: str, *, written: bool = False) -> Path:
    """A path that a user gave; ``~`` stands for the home folder.

    Args:
        value: A text or an ``os.PathLike``.
        what: Whose path it is, for the message.
        written: Whether something is written there; names with blanks around them are slips, mostly.

    Raises:
        SpecificationError: It is no path, is empty, or no file can have it.
    """
    if not isinstance(value, str | os.PathLike) or not isinstance(text := os.fspath(value), str):
        raise SpecificationError(f"{what}: path={shown(value)}; expected a text or a pathlib.Path.")
    if not text.strip():
        raise SpecificationError(f"{what}: path={text!r}; expected the name of a file or folder, got none.")
    path = Path(text)
    if path.parts[:1] == ("~",):
        path = path.expanduser()
    odd = [part for part in path.parts if part != part.strip() or any(unicodedata.category(c) == "Cc" for c in part)]
    if written and odd:
        raise SpecificationError(
            f"{what}: path={text!r} has a name with blanks around it or control characters; expected one without."
        )
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        pass
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise SpecificationError(f"{what}: path={shown(text)} cannot be the name of a file ({why}).") from error
    return path


def as_foreign(entry: str, error: Exception, wrong: str = "") -> RepairError:
    """An exception as one of the library, which says where it arose, and which argument is ``wrong``."""
    frames = traceback.extract_tb(error.__traceback__)
    own, library = Path(__file__).parent, "site-packages"
    theirs = [f for f in frames[1:] if own not in Path(f.filename).parents and library not in f.filename]
    theirs = [f for f in theirs if f.filename != "<string>" and not f.filename.endswith(".pyx")]  # of dataclasses, C
    where = (theirs or frames)[-1]
    kind, place = type(error), f"{where.filename}, line {where.lineno}, in {where.name}"
    text = str(error).strip() or "no message"
    called = isinstance(error, TypeError) and "argument" in text
    text = f"{entry}: {kind.__name__}: {text} ({place}). " + (
        "A call has arguments that the called function does not know, or lacks some; help() of it lists them."
        if called
        else "It came out of code that was passed in; the chained traceback says where."
        if theirs
        else "No check of the inputs foresaw it; simplify model and data, and report it with the chained traceback."
    )
    if wrong:
        text = f"{entry}: {wrong}"
    base = SpecificationError if wrong else ForeignError
    with contextlib.suppress(TypeError):  # a class that needs other arguments, or cannot be combined
        return type(kind.__name__, (base, kind), {"__module__": __name__})(text)
    return base(text)


def forgiven(
    name: str, function: Callable[..., Any], *, again: bool = False, tell: Callable[[str], None] | None = None
) -> Callable[..., None]:
    """A user's function that is told of progress, whose exceptions end nothing; Ctrl-C in it passes.

    Args:
        name: What it is called, for the warning.
        function: The function.
        again: Whether it is called again after it failed.
        tell: Called with the same words as the warning, once.

    Returns:
        A function with the same arguments.
    """
    failed: list[str] = []

    def call(*values: Any, **named: Any) -> None:
        if failed and not again:
            return
        try:
            function(*values, **named)
        except Exception as error:
            if not failed:
                ends = "it is called again all the same" if again else "it is not called again"
                failed.append(f"{name} failed ({type(error).__name__}: {error}); {ends}.")
                if tell is not None:
                    tell(failed[0])
                warnings.warn(failed[0], RuntimeWarning, stacklevel=2)

    return call


def visible(text: str) -> str:
    """The text with control and direction characters written out: names in data may not steer the terminal."""
    hidden = {c for c in set(text) - {"\n", "\t"} if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") or c in BIDI}
    return text.translate({ord(c): f"\\u{ord(c):04x}" for c in hidden})


class _DefaultDtype:
    """The default dtype of torch, float32 while any thread is inside; it belongs to the whole process."""

    def __init__(self) -> None:
        self._lock, self._inside = threading.Lock(), 0
        self._before: Any = None

    @contextlib.contextmanager
    def float32(self) -> Iterator[None]:
        import torch

        with self._lock:
            if not self._inside:
                self._before = torch.get_default_dtype()
                torch.set_default_dtype(torch.float32)
            self._inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if not self._inside:
                    torch.set_default_dtype(self._before)


_DEFAULT_DTYPE = _DefaultDtype()
_FORKED: list[bool] = []  # holds an entry in a forked process, where the threads of torch do not exist
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: _FORKED.append(True))


@contextlib.contextmanager
def usual_state() -> Iterator[None]:
    """Torch as it is at the start of a process: gradients on, no inference mode, no autocast, float32, on the CPU."""
    if "torch" not in sys.modules:  # nothing can have changed its state
        yield
        return
    import torch

    if _FORKED and torch.get_num_threads() > 1:
        torch.set_num_threads(1)  # it would wait for them without end
    with contextlib.ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        stack.enter_context(_DEFAULT_DTYPE.float32())
        yield
