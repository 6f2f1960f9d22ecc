"""What the terminal shows while a command runs."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import click

UNITS = 1000  # of a bar
NAMED, TOLD = 26, 46  # characters of the name of a stage, and of what is told of it
TICK = 1.0  # seconds after which the time that has gone is shown anew


class Step(Protocol):
    """Called after each step of a stage: with a word on where it stands, and the share that is surely done."""

    def __call__(self, text: str, share: float = 0.0) -> None:
        """Show both."""


class Bars:
    """A bar for each stage on stderr: with the time left where its steps are known, else with the time that has gone.

    Silent where stderr is no terminal, or ``quiet``.
    """

    def __init__(self, time_limit: float | None = None, quiet: bool = False) -> None:
        self.time_limit, self.hidden = time_limit, quiet or not sys.stderr.isatty()

    @contextmanager
    def stage(self, name: str, steps: int = 0) -> Iterator[Step]:
        """A stage of a run; of more steps than there are, the bar says how long at most."""
        options: Any = {"label": f"{name:{NAMED}}", "file": sys.stderr, "hidden": self.hidden}
        if not steps:
            options |= {"bar_template": "%(label)s"}
        with click.progressbar(length=UNITS, show_eta=bool(steps), **options) as bar:
            shown = _Shown(bar, name, steps, self.time_limit if steps else None)
            ended = threading.Event()
            if not self.hidden:
                threading.Thread(target=shown.tick, args=(ended,), daemon=True).start()
            try:
                yield shown.step
            finally:
                ended.set()
            shown.end()


class _Shown:
    """One bar, which two threads draw: that of the run after each step, and one that shows the time."""

    def __init__(self, bar: Any, name: str, steps: int, limit: float | None) -> None:
        self.bar, self.name, self.steps, self.limit = bar, name, steps, limit
        self.started, self.lock = time.monotonic(), threading.Lock()
        self.made, self.position, self.text = 0, 0, ""
        self.draw(0)

    def step(self, text: str, share: float = 0.0) -> None:
        self.made, self.text = self.made + 1, text
        if self.steps:  # an upper bound, so that a bar that counts them would end too soon, or stand still at its end
            share = max(share, 1.0 - (1.0 - 1.0 / max(self.steps, 1)) ** self.made)
        if self.limit is not None:
            share = max(share, (time.monotonic() - self.started) / self.limit)
        with self.lock:
            self.draw(min(UNITS - 1, int(UNITS * share)))

    def draw(self, position: int) -> None:
        seconds = time.monotonic() - self.started
        told = self.text[:TOLD] if self.steps or seconds < TICK else f"{self.text[: TOLD - 8]} {seconds:.0f} s"
        self.bar.label = f"{self.name:{NAMED}}" + (f"{told.strip():{TOLD}}" if told.strip() else "")
        self.bar.update(max(0, position - self.position))
        self.position = max(position, self.position)

    def tick(self, ended: threading.Event) -> None:
        while not ended.wait(TICK):
            with self.lock:
                if not ended.is_set() and not self.steps:
                    self.draw(0)
                    self.bar.render_progress()

    def end(self) -> None:
        with self.lock:
            self.draw(UNITS)
