"""Pictures of a repair: what they show, as plain arrays, and the figures."""
