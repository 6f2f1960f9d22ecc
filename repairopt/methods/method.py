"""What a method is."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from .outcome import Outcome
from .task import Task


@runtime_checkable
class Method(Protocol):
    """How a repair proceeds."""

    def run(self, task: Task) -> Outcome:
        """Propose a weight change. Every point worth keeping must pass ``task.judge``."""
        ...
