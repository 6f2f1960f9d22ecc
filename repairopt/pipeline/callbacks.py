"""What the user's functions are told while a repair runs; where one fails, the repair goes on and says so."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from repairopt.errors import forgiven

from .settings import Settings


class Callbacks:
    """The functions of some settings, whose exceptions end no repair.

    ``progress`` is not called again after it failed; ``checkpoint`` is, for a disk may be free again.

    Attributes:
        settings: The same settings, with functions that raise nothing.
        failures: What failed, in words.
    """

    def __init__(self, settings: Settings) -> None:
        self.failures: list[str] = []
        safe: Any = {
            name: forgiven(f"settings: {name}", one, again=name == "checkpoint", tell=self.failures.append)
            for name in ("progress", "checkpoint")
            if (one := getattr(settings, name)) is not None
        }
        self.settings = replace(settings, **safe)
