"""What users set of methods: how far a model is trusted, and checks of numbers: what was expected, what came."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

from repairopt.errors import SpecificationError
from repairopt.specify import Expected as Expected, are_numbers as are_numbers, is_one_of as is_one_of, keep_plain
from repairopt.surrogate import SurrogateSettings, check_way


@dataclass(frozen=True, kw_only=True)
class TrustRegion:
    """How far steps go, and how a goal without derivatives is modelled; fields of every method that solves for steps.

    Attributes:
        trust_radius: Largest change of a weight in one program, in units of ``max(|weight|, rms of its parameter)``.
        surrogate: Model of the property: ``"auto"``, ``"full"``, ``"gradient_hessian"``, ``"hessian"``,
            ``"gauss_newton"``, ``"diagonal_low_rank"``, ``"linear"``, or settings.
    """

    trust_radius: float = 1.0
    surrogate: str | SurrogateSettings = "auto"

    def surrogate_settings(self, seed: int) -> SurrogateSettings:
        """The settings of the surrogate, with a seed where only its kind was given."""
        if isinstance(self.surrogate, SurrogateSettings):
            return self.surrogate
        return SurrogateSettings(kind=self.surrogate, seed=seed)

    def check_model(self) -> None:
        """Refuse settings of the model that are not what they may be.

        Raises:
            SpecificationError: With the method, the setting and its value.
        """
        check_settings(self, {"trust_radius": Expected(above=True)})
        self.surrogate_settings(0)


@dataclass(frozen=True, kw_only=True)
class SurrogateModel(TrustRegion):
    """Fields of the methods that minimize a model of the goal (AutoRIC and its kin).

    Attributes:
        program: ``"qp"`` or ``"lp"``.
        convexify: ``"project"``, ``"shift"``, ``"abs"`` or ``"none"``.
        shrink: Where a method overshoots the target, go back towards the original as far as the target stays met.
    """

    program: str = "qp"
    convexify: str = "project"
    shrink: bool = True

    def check_model(self) -> None:
        """As :meth:`TrustRegion.check_model`."""
        super().check_model()
        check_way(self.convexify)
        if not is_one_of(self.program, ("qp", "lp")):
            raise SpecificationError(f"method {type(self).__name__}: program={self.program!r}; choose qp or lp.")


def check_settings(method: object, expected: dict[str, Expected]) -> None:
    """Refuse settings that are not what they may be.

    Args:
        method: Whose attributes they are.
        expected: By name of the setting.

    Raises:
        SpecificationError: The first that is not; with the method, the setting and its value.
    """
    for name, one in expected.items():
        value = getattr(method, name)
        if not one.fits(value):
            raise SpecificationError(f"method {type(method).__name__}: {name}={value!r}; expected {one}.")
        keep_plain(method, name)


def take_former(method: object, **given: Any) -> None:
    """Keep settings that became constants, and are passed all the same, until the next release.

    Args:
        method: Its class has them as attributes, which are the constants.
        given: What was passed, by name; where it is not the constant, it is an attribute of the method.
    """
    kind = type(method)
    for name, value in given.items():
        if not isinstance(value, int | float) or value != getattr(kind, name):
            text = f"{kind.__name__}({name}=...) is deprecated, and goes with the next release: leave it out; it is "
            warnings.warn(f"{text}{getattr(kind, name)} for all.", DeprecationWarning, 4)
            object.__setattr__(method, name, value)
