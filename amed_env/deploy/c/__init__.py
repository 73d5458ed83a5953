"""C99 without dependencies: weights packed at their widths, a planned arena, the evaluator's arithmetic."""
