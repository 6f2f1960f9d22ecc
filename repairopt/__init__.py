"""Repairs trained neural networks by mathematical programming."""
