"""Goal-conditioned policies: one network that answers any budget, any device, and any number of layers and widths."""
