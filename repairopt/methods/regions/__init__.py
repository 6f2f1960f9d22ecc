"""Repair of input regions with proof: the last layer by convex programs, all layers by gradients of bounds."""
