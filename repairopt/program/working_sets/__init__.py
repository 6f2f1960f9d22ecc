"""Programs with too many rows: the few that matter."""
