"""Data sets with fixed splits, where they lie, and how they are fetched."""

from amed_env.datasets.location import data_dir
from amed_env.datasets.samples import Samples, Splits

__all__ = ["Samples", "Splits", "data_dir"]
