"""Networks at narrow widths: ranges, rounding, and exact evaluation on integers."""
