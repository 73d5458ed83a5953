"""Metrics of labelled samples: how they are named, and those that come with the package."""
