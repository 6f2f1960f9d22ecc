"""Spec files: a YAML file that names model, data, goal and bounds, checked before anything is loaded."""
