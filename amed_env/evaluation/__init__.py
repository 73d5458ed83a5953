"""Quality of allocations: measured, looked up, kept and predicted."""
