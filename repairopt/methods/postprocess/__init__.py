"""Repairs behind the network: offsets and thresholds by group."""
