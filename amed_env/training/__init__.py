"""Quantization-aware training: step sizes and weights that are learned for an allocation, or while it walks.

Data flows one way: this room uses quantization, evaluation, datasets and agents; nothing there knows of it.
"""
