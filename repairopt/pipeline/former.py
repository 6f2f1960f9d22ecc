"""Keywords of ``solve_repair`` from before there were settings; they work with a warning until the next release."""

from __future__ import annotations

import warnings
from dataclasses import fields, is_dataclass, replace
from typing import Any

from repairopt.errors import SpecificationError
from repairopt.methods import Method, available_methods, find_method
from repairopt.network import Classifier
from repairopt.specify import Specification, as_property

from .settings import Settings

OF_SETTINGS = {
    **{name: name for name in ("time_limit", "memory_limit", "seed", "solver", "isolate", "start", "progress")},
    "checkpoint": "checkpoint",
    "feasibility_tol": "tolerance",
}
OF_METHOD = ("program", "surrogate", "convexify", "trust_radius", "shrink")
FORMER = frozenset({*OF_SETTINGS, *OF_METHOD, "target", "watch", "forward_fn"})


def take_former(
    model: Any, goal: Any, constraints: Any, method: Any, settings: Settings, former: dict[str, Any]
) -> tuple[Any, Any, Any, Any, Settings]:
    """What the former keywords stand for today.

    Args:
        model: As passed to ``solve_repair``.
        goal: As there.
        constraints: As there.
        method: As there.
        settings: As there.
        former: The former keywords.

    Returns:
        Model, goal, constraints, method and settings.

    Raises:
        SpecificationError: A keyword that the chosen method does not use; the message says which methods do.
        TypeError: No such keyword.
    """
    if unknown := sorted(set(former) - FORMER):
        raise TypeError(f"solve_repair() got an unexpected keyword argument '{unknown[0]}'")
    for name in former:
        warnings.warn(f"{name}= is deprecated, and goes with the next release: {_today(name)}.", DeprecationWarning, 4)
    if former.get("forward_fn") is not None:
        model = Classifier(model, former["forward_fn"])
    if former.get("target") is not None:
        goal = as_property(goal, former["target"])
    if former.get("watch"):
        goal, constraints = Specification(goal, constraints, (), former["watch"]), ()
    own = {OF_SETTINGS[name]: value for name, value in former.items() if name in OF_SETTINGS}
    chosen = {name: value for name, value in former.items() if name in OF_METHOD}
    return model, goal, constraints, _with_options(method, chosen), replace(settings, **own)


def without_former(
    model: Any, goal: Any, constraints: Any, method: Any, settings: Settings, options: dict[str, Any]
) -> tuple[Any, Any, Any, Any, Settings, dict[str, Any]]:
    """As :func:`take_former`, for calls that pass further options on: these come last, without the former ones."""
    former = {name: value for name, value in options.items() if name in FORMER}
    rest = {name: value for name, value in options.items() if name not in FORMER}
    if former:
        return *take_former(model, goal, constraints, method, settings, former), rest
    return model, goal, constraints, method, settings, rest


def _today(name: str) -> str:
    if name in OF_SETTINGS:
        return f"pass settings=Settings({OF_SETTINGS[name]}=...)"
    if name in OF_METHOD:
        return f"set it on the method, such as method=OneShot({name}=...)"
    return {
        "target": "set it on the goal, such as CallableProperty(function, target=...)",
        "watch": "pass Specification(goal, constraints, watch=...) as the goal",
        "forward_fn": "pass Classifier(model, forward_fn) as the model",
    }[name]


def _with_options(method: Any, options: dict[str, Any]) -> Method:
    chosen = find_method(method)
    names: set[str] = {one.name for one in fields(chosen)} if is_dataclass(chosen) else set()
    for name in options:
        if name not in names:
            able = [other for other in available_methods() if _has(other, name)]
            raise SpecificationError(
                f"{name}=: method {type(chosen).__name__} does not use it. Methods that do: {', '.join(able)}."
            )
    return replace(chosen, **options) if options else chosen  # type: ignore[type-var]


def _has(method: str, option: str) -> bool:
    made: Any = find_method(method)
    return is_dataclass(made) and option in {one.name for one in fields(made)}
