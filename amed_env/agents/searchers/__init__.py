"""Agents without reinforcement learning: baselines, exact solvers of a proxy, local search, evolution, TPE."""
