"""Published methods that repair given points, each with its guarantee: peers of the library's own methods."""
