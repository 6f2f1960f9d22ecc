"""Matplotlib, loaded late and without a word on stderr, and the fonts in which names of the user can be written."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from typing import Any

from repairopt.errors import require_extra

FURTHER = (  # fonts with letters that Matplotlib's own lacks, as systems ship them
    "Noto Sans CJK SC",
    "Noto Sans SC",
    "Source Han Sans SC",
    "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei",
    "PingFang SC",
    "Hiragino Sans GB",
    "Hiragino Sans",
    "Microsoft YaHei",
    "Yu Gothic",
    "Malgun Gothic",
    "Noto Sans Devanagari",
    "Nirmala UI",
    "Noto Sans Thai",
    "Arial Unicode MS",
)


def load_matplotlib(task: str = "A picture") -> Any:
    """The library; where it can write nothing at home, it takes a folder of its own without telling so.

    Raises:
        MissingExtraError: It is not installed.
    """
    require_extra("report", task, "matplotlib")
    with _without_a_word():
        found, *_ = (import_module(name) for name in ("matplotlib", "matplotlib.figure", "matplotlib.font_manager"))
    return found


@contextmanager
def styled(settings: dict[str, Any]) -> Iterator[None]:
    """Pictures look alike in it, whatever the user has set, in the fonts of :func:`font_families`."""
    with load_matplotlib().rc_context(settings | {"font.family": font_families()}), _without_a_word():
        yield


@contextmanager
def _without_a_word() -> Iterator[None]:
    """Matplotlib logs to stderr that home cannot be written to, that it looks for fonts, and that one has no weight."""
    logger = logging.getLogger("matplotlib")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@cache
def font_families() -> list[str]:
    """Matplotlib's own font, and of :data:`FURTHER` those that are installed, for letters that it lacks."""
    installed = {font.name for font in load_matplotlib().font_manager.fontManager.ttflist}
    return ["DejaVu Sans", *(name for name in FURTHER if name in installed)]
