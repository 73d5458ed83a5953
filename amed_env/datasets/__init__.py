"""Data sets with fixed splits, where they lie, and how they are fetched."""

from amed_env.datasets.samples import Samples, Splits
from amed_env.support.location import data_dir

__all__ = ["Samples", "Splits", "data_dir"]
