"""Which of the three forms a difference takes: the smallest in a file, unless one is asked for."""

from __future__ import annotations

from repairopt.errors import PatchError

from .differences import Dense, Difference, Kind, Sparse
from .low_rank import LowRank, can_be_low_rank
from .tensor_bits import Bits

FORMS: dict[str, type[Sparse] | type[Dense] | type[LowRank]] = {c.form: c for c in (Sparse, LowRank, Dense)}


def make_difference(kind: Kind, before: Bits, after: Bits, form: str = "auto") -> Difference:
    """The difference of two tensors.

    Args:
        kind: Of both.
        before: Bits of the first, ``(numel,)``.
        after: Bits of the second, ``(numel,)``.
        form: ``"sparse"``, ``"low_rank"``, ``"dense"``, or ``"auto"`` for the smallest.

    Returns:
        The difference; moving the one by it gives the other to the bit, in both directions.

    Raises:
        PatchError: Unknown form, or one that the tensor cannot have.
    """
    if form == "auto":
        return _smallest(kind, before, after)
    if form not in FORMS:
        raise PatchError(f"form={form!r}: choose auto, {', '.join(FORMS)}.")
    made = FORMS[form].between(kind, before, after)
    assert made is not None, "without a limit every form exists"
    return made


def _smallest(kind: Kind, before: Bits, after: Bits) -> Difference:
    forms: list[Difference] = [Sparse.between(kind, before, after), Dense.between(kind, before, after)]
    best = min(forms, key=lambda form: form.bytes)
    low = LowRank.between(kind, before, after, most=best.bytes) if can_be_low_rank(kind) else None
    return best if low is None or low.bytes >= best.bytes else low


__all__ = ["FORMS", "Difference", "make_difference"]
