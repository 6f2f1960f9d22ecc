"""Groups: rates, gaps between them, sampled members, metrics by group."""
