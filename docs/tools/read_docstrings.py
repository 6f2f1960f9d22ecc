"""An extension of Griffe: what the docstrings write, in the Markdown that the API reference is made of.

Roles such as ``:func:`repairopt.solve_repair``` become links where the name has a page, ``Example:`` becomes a section.
"""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

ROLE = re.compile(r":(?:func|class|meth|mod|attr|data):`~?([\w.]+)`")
EXAMPLE = re.compile(r"^Example:$", flags=re.MULTILINE)


class ReadDocstrings(Extension):
    """Rewrites each docstring before it is parsed."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Called for each module, class, function and attribute."""
        if obj.docstring is not None:
            text = ROLE.sub(r'<autoref identifier="\1" optional><code>\1</code></autoref>', obj.docstring.value)
            obj.docstring.value = EXAMPLE.sub("Examples:", text)
