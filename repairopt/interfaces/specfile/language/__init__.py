"""The language of goals and bounds, one for spec files and Python: ``gap(sex, kind=parity) <= 0.05``."""
