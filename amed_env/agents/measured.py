"""What the leaderboard measured of the agents of this package, for listings.

`measured_regret.json` is written by `amed bench leaderboard --figures`; a test compares it with the committed results.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

FILE = "measured_regret.json"


@dataclass(frozen=True)
class MeasuredRegret:
    """Regrets of the leaderboard.

    Attributes:
        conditions: One line: what they were measured on.
        agents: Agent to interquartile mean, and the ends of its 95 % interval, in points of accuracy.
    """

    conditions: str
    agents: dict[str, tuple[float, float, float]]


@cache
def measured_regret() -> MeasuredRegret | None:
    """The regrets that this version ships; None if it ships none."""
    path = files("amed_env.agents") / FILE
    if not path.is_file():
        return None
    document = json.loads(path.read_text(encoding="utf-8"))
    conditions = (
        f"regret: points of accuracy below the exact optimum after {document['evaluations']} evaluations, "
        f"interquartile mean of "
        f"{document['cells']} cells of amed bench {document['suite']} with {document['seeds']} seeds"
    )
    return MeasuredRegret(
        conditions, {name: (value, low, high) for name, (value, low, high) in document["agents"].items()}
    )
