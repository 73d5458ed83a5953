"""Preparing a network for narrow widths once, and keeping it: what does not depend on the allocation.

A prepared network is a safetensors file with integers, scales and biases of every (layer, width). It is named by a
fingerprint of all that it depends on: network, calibration samples, recipe. Files of the package's own tasks come with
the package; others are made and kept in the user's cache. Learning that was interrupted goes on where it was.
"""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Iterable, Mapping
from contextlib import suppress
from importlib.resources import as_file, files
from pathlib import Path
from time import monotonic, perf_counter
from typing import Any

import torch

from amed_env._version import __version__
from amed_env.errors import AmedError
from amed_env.evaluation.prepared_file import FORMAT, digest_of, file_content, prepared_tensors, read_prepared
from amed_env.evaluation.quality import Progress
from amed_env.problem.allocation import FLOAT_BITS, Precision
from amed_env.quantization.bias_correction import correctable, corrected
from amed_env.quantization.layers import PreparedWidth
from amed_env.quantization.layerwise import MOMENT_SAMPLES, input_moments, solved_widths
from amed_env.quantization.learned_rounding import RoundingLearner
from amed_env.quantization.network import QuantizedNetwork
from amed_env.quantization.recipe import LEARNED_WIDTHS, Activations, Recipe
from amed_env.support.cache import cache_dir
from amed_env.support.files import write_atomically
from amed_env.support.threads import torch_threads

logger = logging.getLogger(__name__)

# What a killed process loses at the most.
CHECKPOINT_SECONDS = 20.0
SMALL_STEP_MACS = 5e8
"""A step of less work than this is fastest on one thread; with more of them it was up to 14 times slower."""
BRIEF_STEPS = (2_000, 1_500, 1_000, 700, 500, 300, 200, 150, 100, 70, 50, 30)
"""Steps of learning that must end within a time. A few fixed numbers, so that two machines of about the same speed, or
one at two times, learn the same."""
BRIEF_BATCH = 32
"""Samples of a step of these: in the same time twice as many steps, which are worth more."""
BRIEF_RATE, BRIEF_SCALE_RATE = 1e-2, 1e-2
"""Learning rates of rounding and of scales: the start is near, so choices need less, and scales more in few steps."""
KEPT_SHARE = 0.6
"""A kept preparation of at least this part of the steps that there is time for is taken, and nothing learned anew."""
SAFETY = 0.8
"""Part of the time that steps are planned for: a shared machine is slower at times (1,000 steps that were timed at less
than 120 s took 152), and what is done of too many steps is worth little before the last."""
_TIMED_STEPS = 6  # allocations are drawn anew in each, and take different times
NARROW_WIDTHS = (2, 3, 4, 5, 6, 7, 8)
"""Widths whose biases are corrected; at 16 bits there is nothing to correct."""


def prepare_network(
    network: QuantizedNetwork,
    recipe: Recipe,
    calibration: torch.Tensor,
    fingerprint: str,
    threads: int | None = None,
    progress: Progress | None = None,
    class_axis: int | None = 1,
) -> str:
    """Prepare a calibrated network by a recipe, or take what was prepared before.

    Args:
        network: The network; afterwards it uses what was prepared.
        recipe: The recipe.
        calibration: Float tensor (N, …): the inputs that it was calibrated with.
        fingerprint: Text that changes with network and calibration samples.
        threads: Threads of torch while it learns; None leaves torch's setting.
        progress: Called while it learns.
        class_axis: See `RoundingLearner`.

    Returns:
        A digest (hex) of everything that was prepared.

    Raises:
        NonFiniteError: If learning meets NaN or infinity.
    """
    if recipe.is_instant:
        return hashlib.sha256(recipe.fingerprint().encode()).hexdigest()
    name = preparation_name(recipe, _fingerprint_with(fingerprint, class_axis))
    prepared = _shipped(network, name) or _cached(network, name)
    if prepared is None:
        prepared = _make(network, recipe, calibration, name, threads, progress, class_axis)
        facts = {"recipe": recipe.fingerprint(), "network": network.workload.name}
        made = {"amed_env": __version__, "widths": list(LEARNED_WIDTHS), **facts}
        _write(kept_path(name), file_content(prepared_tensors(prepared), made))
    for (layer, bits), width in prepared.items():
        network.use(layer, bits, width)
    return prepared_digest(prepared)


def recipe_within(
    network: QuantizedNetwork,
    recipe: Recipe,
    calibration: torch.Tensor,
    fingerprint: str,
    seconds: float,
    threads: int | None = None,
    class_axis: int | None = 1,
    precisions: Iterable[Precision] | None = None,
) -> Recipe:
    """The recipe with as many steps of learning as there is time for, or that of a preparation that is kept.

    Args:
        network: The network, calibrated.
        recipe: The recipe.
        calibration: See `prepare_network`, as for the others.
        fingerprint: See there.
        seconds: Time for learning.
        threads: See there.
        class_axis: See there.
        precisions: What a search chooses from; nothing is learned for others. None is all.
    """
    if not recipe.learns:
        return recipe
    activations = _activations_of(precisions)
    shorter = [steps for steps in BRIEF_STEPS if steps < recipe.steps]
    brief = [brief_recipe(recipe, n, activations) for n in shorter]
    names = [preparation_name(made, _fingerprint_with(fingerprint, class_axis)) for made in (recipe, *brief)]
    begun = [made for made, name in zip((recipe, *brief), names, strict=True) if _is_begun(name)]
    if recipe in begun or not brief:
        return recipe
    with torch_threads(_threads_of(network, recipe, threads)):
        some = calibration[: 2 * BRIEF_BATCH]
        started = perf_counter()
        input_moments(network, some)
        solving = (perf_counter() - started) * min(MOMENT_SAMPLES, len(calibration)) / len(some)
        learner = RoundingLearner(network, brief[-1].with_changes(start="nearest"), some, class_axis=class_axis)
        a_step, a_sample = learner.seconds_of_a_step(_TIMED_STEPS), learner.seconds_of_a_sample()

    def seconds_of(made: Recipe) -> float:
        drawn = made.steps * made.batch_size
        learning = drawn / brief[-1].batch_size * a_step + min(drawn, len(calibration)) * a_sample
        return learning + (solving if made.start == "solved" else 0.0)

    wanted = next((made for made in (recipe, *brief) if seconds_of(made) <= SAFETY * seconds), brief[-1])
    return next((made for made in begun if made.steps >= KEPT_SHARE * wanted.steps), wanted)


def _activations_of(precisions: Iterable[Precision] | None) -> Activations:
    pairs = None if precisions is None else set(precisions)
    if pairs is None or not pairs:
        return "any"
    if all(precision.activation_bits == FLOAT_BITS for precision in pairs):
        return "float"
    return "tied" if all(weight == activation for weight, activation in pairs) else "any"


def brief_recipe(recipe: Recipe, steps: int, activations: Activations) -> Recipe:
    """A recipe of so few steps that another start and other rates are worth more, and only what will be asked for."""
    changes: dict[str, Any] = (
        {"learning_rate": BRIEF_RATE, "scale_rate": BRIEF_SCALE_RATE} if recipe.learn_scales else {}
    )
    batch_size = min(recipe.batch_size, BRIEF_BATCH)
    return recipe.with_changes(steps=steps, batch_size=batch_size, start="solved", activations=activations, **changes)


def is_prepared(recipe: Recipe, fingerprint: str, class_axis: int | None = 1) -> bool:
    """Whether `prepare_network` has nothing to learn: the recipe does not, or a preparation is shipped or kept."""
    return not recipe.learns or _is_kept(preparation_name(recipe, _fingerprint_with(fingerprint, class_axis)))


def _is_kept(name: str) -> bool:
    shipped = files("amed_env.networks") / "prepared" / f"{name}.safetensors"
    return shipped.is_file() or kept_path(name).exists()


def _is_begun(name: str) -> bool:
    """Whether a preparation is there, or was interrupted."""
    return _is_kept(name) or _checkpoint_path(name).exists()


def _fingerprint_with(fingerprint: str, class_axis: int | None) -> str:
    # Nothing is added for classes on axis 1, so that what earlier versions prepared is found.
    return fingerprint if class_axis == 1 else f"{fingerprint} classes on {class_axis}"


def _threads_of(network: QuantizedNetwork, recipe: Recipe, threads: int | None) -> int | None:
    return 1 if network.workload.macs * recipe.batch_size < SMALL_STEP_MACS else threads


def _make(
    network: QuantizedNetwork,
    recipe: Recipe,
    calibration: torch.Tensor,
    name: str,
    threads: int | None,
    progress: Progress | None,
    class_axis: int | None,
) -> dict[tuple[str, int], PreparedWidth]:
    prepared: dict[tuple[str, int], PreparedWidth] = {}
    with torch_threads(_threads_of(network, recipe, threads)):
        if recipe.learns:
            learner = RoundingLearner(network, recipe, calibration, class_axis=class_axis)
            prepared = _learn(learner, name, progress)
        elif recipe.start == "solved":
            prepared = solved_widths(network, calibration)
        if recipe.bias_correction:
            for name, layer in correctable(network).items():
                for bits in NARROW_WIDTHS:
                    layer.prepare(bits)
                    prepared.setdefault((name, bits), layer.prepared[bits])
            prepared = corrected(network, prepared, calibration)
    return prepared


def _learn(learner: RoundingLearner, name: str, progress: Progress | None) -> dict[tuple[str, int], PreparedWidth]:
    network, recipe = learner.network, learner.recipe
    checkpoint = _Checkpoint(_checkpoint_path(name))
    checkpoint.restore(learner)
    if learner.step == 0:
        logger.info("learning the rounding of %s: %d steps", network.workload.name, recipe.steps)

    def on_step(done: int, total: int) -> None:
        checkpoint.save_now_and_then(learner)
        if progress is not None:
            progress(done, total)

    learner.run(on_step)
    checkpoint.remove()
    return {
        (layer, bits): width for layer in network.workload.layer_names for bits, width in learner.results(layer).items()
    }


class _Checkpoint:
    """The state of a learner on disk."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._last = monotonic()

    def restore(self, learner: RoundingLearner) -> None:
        if not self._path.exists():
            return
        try:
            learner.restore(torch.load(self._path, weights_only=True))
            logger.info("learning goes on at step %d", learner.step)
        except Exception as error:  # a damaged file makes torch raise errors of many types
            logger.warning("cannot use %s (%s); learning begins anew", self._path, error)

    def save_now_and_then(self, learner: RoundingLearner) -> None:
        if monotonic() - self._last < CHECKPOINT_SECONDS:
            return
        buffer = io.BytesIO()
        torch.save(learner.state(), buffer)
        _write(self._path, buffer.getvalue())
        self._last = monotonic()

    def remove(self) -> None:
        with suppress(OSError):  # what could not be written need not be removed
            self._path.unlink()


def preparation_name(recipe: Recipe, fingerprint: str) -> str:
    """Name of what a recipe makes of a network and calibration samples with this fingerprint."""
    return hashlib.sha256(f"{FORMAT} {fingerprint} {recipe.fingerprint()}".encode()).hexdigest()[:32]


def kept_path(name: str) -> Path:
    """Where a preparation is kept in the user's cache."""
    return cache_dir() / "prepared" / f"{name}.safetensors"


def _checkpoint_path(name: str) -> Path:
    return cache_dir() / "prepared" / f"{name}.checkpoint"


def _shipped(network: QuantizedNetwork, name: str) -> dict[tuple[str, int], PreparedWidth] | None:
    resource = files("amed_env.networks") / "prepared" / f"{name}.safetensors"
    if not resource.is_file():
        return None
    with as_file(resource) as path:
        return read_prepared(network, path).widths


def _cached(network: QuantizedNetwork, name: str) -> dict[tuple[str, int], PreparedWidth] | None:
    path = kept_path(name)
    if not path.exists():
        return None
    try:
        return read_prepared(network, path).widths
    except AmedError as error:
        logger.warning("%s; it is made anew", error)
        return None


def prepared_digest(prepared: Mapping[tuple[str, int], PreparedWidth]) -> str:
    """A digest (hex) of everything that was prepared."""
    return digest_of(prepared_tensors(prepared))


def _write(path: Path, content: bytes) -> None:
    """Write a file at once; a cache that cannot be written is only logged."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
    except OSError as error:
        logger.warning("cannot keep %s (%s)", path, error)
