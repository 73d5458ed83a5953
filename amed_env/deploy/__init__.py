"""Exports: from a network and an allocation to files that run elsewhere, and the proof that they do."""
