"""What the commands do: check, solve, apply, revert and verify a spec, and the folder that a run leaves."""
