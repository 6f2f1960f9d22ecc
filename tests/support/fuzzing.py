"""How long fuzzers run: in CI as they stand, by night ``REPAIROPT_FUZZ`` times as long."""

from __future__ import annotations

import os


def rounds(usual: int) -> int:
    """Rounds of a fuzzer: the usual number times the environment variable ``REPAIROPT_FUZZ``, 1 by default."""
    return round(usual * float(os.environ.get("REPAIROPT_FUZZ", "1")))
