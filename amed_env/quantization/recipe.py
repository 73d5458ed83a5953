"""How a network is prepared for narrow widths: the rungs of the post-training ladder.

`docs/evaluation.md` has what each of them is worth.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

from amed_env.errors import InputError, UnknownNameError

Rounding = Literal["nearest", "layer", "block", "network"]
Start = Literal["nearest", "solved"]
Activations = Literal["any", "tied", "float"]

VERSION = 2
"""Changes whenever the same recipe gives other numbers than before."""
LEARNED_WIDTHS = (2, 3, 4)
"""Widths whose rounding is learned; from 5 bits on the nearest point of the grid is good enough."""

SCALE_RATE = 1e-3
"""Learning rate of a scale, as a part of it, where there are thousands of steps."""


@dataclass(frozen=True)
class Recipe:
    """How weights and activations get their integers and scales.

    Attributes:
        equalize: Scale channels so that weights of neighbouring layers have equal ranges (Nagel et al. 2019).
        bias_correction: Shift biases by the mean error that rounded weights make in each channel (the same).
        rounding: What decides whether a weight is rounded up or down. `nearest`: its own error; `layer`: the error of
            the layer's output (Nagel et al. 2020); `block`: that of the residual block (Li et al. 2021); `network`: the
            divergence of the class probabilities, under random allocations of all layers.
        start: What weights are rounded to without learning, and where learning starts. `nearest`: the nearest point of
            the grid; `solved`: later weights of a row make up for the errors of earlier ones (Frantar et al. 2023).
        learn_scales: Whether scales of weights and activations, and biases, are learned with the rounding.
        activations: How wide activations are while rounding is learned. `tied`: as the weights; `float`: not rounded;
            `any`: now this, now that, or 8 bits.
        steps: Steps of learning.
        batch_size: Samples of a step.
        learning_rate: Of the rounding.
        scale_rate: Learning rate of scales, as a part of each, and of biases.
    """

    equalize: bool = False
    bias_correction: bool = False
    rounding: Rounding = "network"
    start: Start = "nearest"
    learn_scales: bool = True
    activations: Activations = "any"
    steps: int = 3_000
    batch_size: int = 64
    learning_rate: float = 3e-2
    scale_rate: float = SCALE_RATE

    def __post_init__(self) -> None:
        if self.rounding not in get_args(Rounding):
            raise UnknownNameError("rounding", self.rounding, get_args(Rounding))
        if self.start not in get_args(Start):
            raise UnknownNameError("start", self.start, get_args(Start))
        if self.activations not in get_args(Activations):
            raise UnknownNameError("activations", self.activations, get_args(Activations))
        for name in ("steps", "batch_size"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(f"recipe: {name} is {value!r}; give a whole number of at least 1.")
        for name in ("learning_rate", "scale_rate"):
            value = getattr(self, name)
            if not 0 < value < 10:
                raise InputError(f"recipe: {name} is {value!r}; give a number above 0 and below 10.")

    @property
    def learns(self) -> bool:
        """Whether anything is learned."""
        return self.rounding != "nearest"

    @property
    def is_instant(self) -> bool:
        """Whether every width is what its weights alone say: nothing of calibration samples is needed but ranges."""
        return not self.learns and not self.bias_correction and self.start == "nearest"

    def with_changes(self, **changes: Any) -> Recipe:
        """A copy with some attributes changed.

        Raises:
            UnknownNameError: If there is no such attribute.
        """
        for name in changes:
            if name not in asdict(self):
                raise UnknownNameError("recipe option", name, asdict(self))
        return replace(self, **changes)

    def fingerprint(self) -> str:
        """Text that changes with whatever changes a result."""
        parts = asdict(self)
        if not self.learns:
            for name in ("learn_scales", "steps", "batch_size", "learning_rate", "scale_rate", "activations"):
                del parts[name]
        # Earlier versions did not have these: what they prepared is found as long as they say nothing.
        for name, nothing in (("start", "nearest"), ("scale_rate", SCALE_RATE), ("activations", "any")):
            if parts.get(name) == nothing:
                del parts[name]
        widths = LEARNED_WIDTHS if self.learns or self.start == "solved" else ""
        return f"recipe/{VERSION} {sorted(parts.items())} {widths}"


RECIPES: dict[str, Recipe] = {
    "nearest": Recipe(rounding="nearest"),
    "bias-correction": Recipe(rounding="nearest", bias_correction=True),
    "equalization": Recipe(rounding="nearest", bias_correction=True, equalize=True),
    "solved": Recipe(rounding="nearest", start="solved"),
    "layer": Recipe(rounding="layer", learn_scales=False),
    "block": Recipe(rounding="block"),
    "network-rounding": Recipe(rounding="network", learn_scales=False),
    "network": Recipe(rounding="network"),
}
"""Recipes by name, each a rung higher than the one before."""
DEFAULT_RECIPE = "network"


def make_recipe(recipe: str | Recipe | None) -> Recipe:
    """The recipe of a name; None is the default one.

    Raises:
        UnknownNameError: If there is none of that name.
    """
    if isinstance(recipe, Recipe):
        return recipe
    name = DEFAULT_RECIPE if recipe is None else recipe
    if name not in RECIPES:
        raise UnknownNameError("recipe", name, RECIPES)
    return RECIPES[name]
