"""How a network runs on a device: operations in order, and the results that they keep in memory."""
