"""pytest plug-in: ``pytest --repairopt-spec spec.yaml`` runs every goal and bound of a spec as a test of its own.

Loaded by each run of pytest where repairopt is installed; imports nothing heavy until a spec is given.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from repairopt.interfaces.commandline.runs.results import CheckResult


class BoundsMissed(Exception):
    """A goal or bound is not met; its text is the table of claims."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options."""
    group = parser.getgroup("repairopt", "bounds of networks")
    group.addoption(
        "--repairopt-spec", action="append", default=[], metavar="FILE", help="test goal and bounds of this spec file"
    )
    group.addoption("--repairopt-patch", metavar="FILE", help="apply this patch to the spec's network first")
    group.addoption("--repairopt-strict", action="store_true", help="goal and bounds must hold on held-out rows too")


def pytest_collection(session: pytest.Session) -> None:
    """A spec that is not there is an error of usage, before anything runs."""
    for name in session.config.getoption("repairopt_spec"):
        if not Path(name).is_file():
            raise pytest.UsageError(f"--repairopt-spec {name}: there is no such file")


def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    """One test for each goal and bound, after those that were collected."""
    for name in config.getoption("repairopt_spec"):
        file = SpecTests.from_parent(session, path=Path(name).resolve())
        items.extend(file.collect())


class SpecTests(pytest.File):
    """The tests of one spec; network and data are loaded when the first one runs."""

    _result: CheckResult | None = None

    def collect(self) -> Iterator[BoundTest]:
        """Goal and bounds, on the rows of the repair, and where ``--repairopt-strict`` is given on held-out ones."""
        from repairopt.errors import RepairError
        from repairopt.interfaces.specfile.reader import read_spec

        try:
            file = read_spec(self.path)
        except RepairError as error:
            raise pytest.UsageError(str(error)) from None
        strict = self.config.getoption("repairopt_strict")
        held_out = "held_out" in file.spec.data or file.spec.split.held_out > 0
        for statement in [*([file.goal] if file.goal else []), *file.bounds]:
            if statement.wish and not statement.bounds:
                continue
            yield BoundTest.from_parent(self, name=statement.text, statement=statement.text, held_out=False)
            if strict and held_out and statement.arguments.get("data") == "repair":
                name = f"{statement.text} [held_out]"
                yield BoundTest.from_parent(self, name=name, statement=statement.text, held_out=True)

    def result(self) -> CheckResult:
        """All claims, measured once."""
        if self._result is None:
            from repairopt.interfaces.commandline.runs.verify_run import check_spec_file

            self._result = check_spec_file(self.path, patch=self.config.getoption("repairopt_patch"))
        return self._result


class BoundTest(pytest.Item):
    """One goal or bound, given by its text, on the rows of the repair or held-out ones."""

    def __init__(self, *, statement: str, held_out: bool, **options: Any) -> None:
        super().__init__(**options)
        self.statement, self.held_out = statement, held_out

    def runtest(self) -> None:
        """Measure, and compare."""
        from repairopt.interfaces.specfile.claim_rows import claim_table

        assert isinstance(self.parent, SpecTests)
        claims = self.parent.result().claims
        own = [c for c in claims if c.text == self.statement and (c.data == "held_out") == self.held_out]
        if not own or any(claim.met is not True for claim in own):
            raise BoundsMissed(f"{self.statement} is not met\n\n{claim_table(claims)}")

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """The table for a missed bound, the message for an error of the library; else pytest's own."""
        from repairopt.errors import RepairError

        if isinstance(excinfo.value, BoundsMissed | RepairError):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, int | None, str]:
        """Where it stands."""
        return self.path, None, f"{self.path.name}: {self.name}"
