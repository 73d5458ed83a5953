"""Pictures of what a search found, without pyplot: nothing global, no display."""

from amed_env.report.allocation_chart import draw_allocation
from amed_env.report.pareto_chart import draw_pareto
from amed_env.report.style import png

__all__ = ["draw_allocation", "draw_pareto", "png"]
