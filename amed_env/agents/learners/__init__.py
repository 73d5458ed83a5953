"""Agents that learn by reinforcement: adapters of Stable-Baselines3, its masks, and a learned model of the reward."""
