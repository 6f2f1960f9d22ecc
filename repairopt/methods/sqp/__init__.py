"""Sequential quadratic programming with typed bounds: limits, objectives, steps, the filter, the sequence."""
