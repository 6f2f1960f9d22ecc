"""Back ends, one file each; import them from ``repairopt.solvers``."""
