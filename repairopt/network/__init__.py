"""The network under a weight change: checks, the split before the first changed weight, derivatives."""
