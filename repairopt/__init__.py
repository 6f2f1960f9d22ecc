"""repairopt repairs trained neural networks by mathematical programming.

State what must become true (a goal with a target) and what must stay true (constraints); :func:`solve_repair` finds a
small weight change, applies it to a copy of the model, and verifies the true network, on repair data and held-out data.

The names of the package, in ``__init__.pyi``, are imported when they are first used, so that the command line answers
before torch is loaded, and ``repairopt verify`` runs without the code that solves.
"""

import lazy_loader

from .interfaces import former_names

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

former_names.install()
