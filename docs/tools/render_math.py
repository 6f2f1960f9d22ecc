"""A hook of mkdocs: formulas become MathML when the site is built, so that it needs no script and no network."""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert

FORMULA = re.compile(r'<(span|div) class="arithmatex">(\\[(\[])(.*?)(\\[)\]])</\1>', flags=re.DOTALL)


def on_page_content(content: str, **_: Any) -> str:
    """Replace each formula that pymdownx.arithmatex has marked."""
    return FORMULA.sub(_render, content)


def _render(match: re.Match[str]) -> str:
    display = "block" if match[1] == "div" else "inline"
    formula = convert(html.unescape(match[3]).strip(), display=display)
    return f'<div class="formula">{formula}</div>' if display == "block" else formula
