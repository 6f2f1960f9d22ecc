"""What nobody means as an argument, and what people pass all the same: for tests that only errors in words leave."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from torch import nn

ODD = [
    10**400,
    "a",
    "",
    "\0",
    None,
    True,
    float("nan"),
    float("inf"),
    -1,
    -0.5,
    2.5,
    0,
    [],
    {},
    (1, 2),
    object(),
    1 + 2j,
    b"x",
    np.array(["a", "b"]),
    np.empty((0, 3)),
    np.array(None),
    np.datetime64("2020-01-01"),
    torch.zeros(0, 3),
    torch.full((3, 3), float("nan")),
    pd.NA,
    pd.Series([1, 2]),
    nn.Linear(3, 2),
    {"a": 1},
    lambda *values, **named: None,
    range(5),
    [None],
    [[1], [1, 2]],
    int,
]
"""Values of every kind that argument checks forget."""

ODD_PATHS = [None, 3, True, b"x", ["a"], {}, "", "  ", "\0", "a" * 300, "lines\nof\x1b[31mtext", "run ", object(), int]
"""What is no path, or no path that anyone means to write to."""
