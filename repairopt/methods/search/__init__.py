"""Methods that search among weights without derivatives."""
