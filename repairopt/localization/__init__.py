"""Which weights may change: layers and units, selectors, attribution."""
