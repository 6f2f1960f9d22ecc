"""JSON schemas of spec files and of what the commands print; the table of measures."""

from __future__ import annotations

import json

from pydantic import BaseModel

from repairopt.errors import SpecificationError
from repairopt.language.measures import reference, reference_text
from repairopt.language.statements import did_you_mean

from .results import RESULTS


def schema_text(what: str = "spec") -> str:
    """The JSON schema of spec files, ``"spec"``, or of what a command prints."""
    from repairopt.specfile.models import Spec

    known: dict[str, type[BaseModel]] = {"spec": Spec, **RESULTS}
    if what not in known:
        raise SpecificationError(f"there is no schema of '{what}'; {did_you_mean(what, list(known))}.")
    found = known[what].model_json_schema(mode="validation" if what == "spec" else "serialization")
    return json.dumps({"$schema": "https://json-schema.org/draft/2020-12/schema", **found}, indent=1)


def language_text(markdown: bool = False) -> str:
    """The table of measures."""
    return reference() if markdown else reference_text()
