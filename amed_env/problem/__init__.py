"""The problem in words of its own: allocations, workloads, budgets, pins. Never imports torch."""
