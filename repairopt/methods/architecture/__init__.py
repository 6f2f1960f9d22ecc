"""Methods that change the architecture of a part of the network."""
