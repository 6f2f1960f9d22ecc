"""Robustness: zonotopes through the network, certified radii, the search for counterexamples."""
