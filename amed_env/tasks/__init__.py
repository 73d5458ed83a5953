"""Tasks: networks with data, a device and budgets; their catalogue, and their known optima."""
