"""`amed search`: from a task to a run folder with its best allocation."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from amed_env.agents.protocol import Agent
from amed_env.agents.registry import make_agent
from amed_env.agents.result import SearchResult
from amed_env.agents.session import MAX_CONSECUTIVE_FAULTS, SearchSession
from amed_env.commands.interrupts import Interrupts
from amed_env.commands.options import AGENT_WITHOUT_BUDGET, POLICY_AGENT
from amed_env.commands.output import Output, describe_disk_error, is_disk_error
from amed_env.commands.parsing import check_complete, default_threads, load_task, one_of, parse_bits, parse_options
from amed_env.commands.preparing import note_slow_layers, prepare
from amed_env.commands.progress import SearchProgress
from amed_env.commands.run_folder import RunFolder
from amed_env.commands.tables import allocation_table, comparison_table, percent
from amed_env.errors import AmedError, BackendError, DeviceError, InputError
from amed_env.evaluation.post_training import PostTrainingEvaluator
from amed_env.evaluation.store import TrialStore
from amed_env.hardware import HardwareBackend, isolated, load_device
from amed_env.hardware.external.command import CommandBackend
from amed_env.hardware.files.device_files import FILE_SUFFIXES, device_file_digest
from amed_env.hardware.registry import COMMAND_PREFIX
from amed_env.problem.objective import parse_budgets
from amed_env.problem.pins import pins_json, pins_text
from amed_env.tasks.task import Task


@dataclass(frozen=True)
class SearchRequest:
    """The arguments of `amed search`, as they were given."""

    task: str | None
    network: str | None
    device: str
    agent: str
    evaluations: int
    seed: int
    bits: str | None
    separate: bool
    out: Path
    resume: bool
    threads: int | None = None
    recipe: str | None = None
    budgets: list[str] = field(default_factory=list)
    pins: list[str] = field(default_factory=list)
    options: list[str] = field(default_factory=list)
    activation_bits: int | None = None
    device_timeout: float | None = None
    device_retries: int | None = None
    max_faults: int = MAX_CONSECUTIVE_FAULTS


def chosen_agent(agent: str | None, policy: Path | None, budgets: Sequence[str]) -> str:
    """The agent of `--agent` and `--policy`; without either the shipped policy, where there is a budget to ask for.

    Raises:
        InputError: If both are given and do not go together.
    """
    if policy is not None and agent not in (None, POLICY_AGENT):
        raise InputError(f"--policy {policy} goes with --agent {POLICY_AGENT}, but --agent {agent} is given.")
    if agent is not None:
        return agent
    return POLICY_AGENT if policy is not None or budgets else AGENT_WITHOUT_BUDGET


def search(output: Output, request: SearchRequest) -> int:
    """Run a search and write its folder.

    Returns:
        The exit code: 0; 1 if nothing feasible was found or too many faults stopped the search; or 128 + the signal
        that ended it.
    """
    # What is quick to check comes first, so that a typing error does not wait for a network to be loaded.
    bits, options = None if request.bits is None else parse_bits(request.bits), parse_options(request.options)
    budgets = parse_budgets(request.budgets)
    one_of(request.task, request.network)
    backend = isolated(load_device(request.device), request.device_timeout, request.device_retries)
    if request.task is not None:
        check_complete(request.task)
    agent = make_agent(request.agent, **options)
    if not budgets:
        output.warn(
            "no --budget is given: the search maximises accuracy without any limit; give one, for example "
            "--budget latency=0.6."
        )
    try:
        with RunFolder(request.out, resume=request.resume) as folder:
            backend.keep_answers(folder.open_known_store())
            with output.status(f"preparing {request.task or request.network}") as say:
                threads = request.threads or default_threads()
                task = load_task(
                    request.task,
                    request.network,
                    device=backend,
                    bits=bits,
                    separate=request.separate,
                    activation_bits=request.activation_bits,
                    budget=request.budgets,
                    pin=request.pins,
                    threads=threads,
                    recipe=request.recipe,
                )
                prepare(task, say)
            for kept in task.evaluator.kept_float:
                output.note(f"kept in float: {kept}")
            note_slow_layers(output, task)
            if task.pins:
                output.note(f"pinned: {pins_text(task.pins)}")
            settings = _settings(request, task, options, backend, agent)
            store = folder.start(settings, sys.argv, {"threads": threads})
            backend.keep_answers(store)
            return _run(output, request, folder, store, task, agent)
    except OSError as error:
        if not is_disk_error(error):
            raise
        raise AmedError(
            f"{describe_disk_error(error)}. Finished trials are kept in {request.out}; continue with --resume."
        ) from error


def _run(output: Output, request: SearchRequest, folder: RunFolder, store: TrialStore, task: Task, agent: Agent) -> int:
    with Interrupts() as interrupts:
        result = _explore(output, request, folder, store, task, agent, interrupts)
        if not result.trials and result.faults:
            raise AmedError(f"all {len(result.faults)} evaluations failed; the first one: {result.faults[0]}.")
        with interrupts.held():
            written = folder.write_result(result)
            if result.interrupted:
                output.note("interrupted; press Ctrl-C again to do without the comparison on the test split.")
                _pictures(output, folder, result)
        _compare(output, result)
        with interrupts.held():
            with output.status("drawing"):
                written = [*folder.write_result(result), *_pictures(output, folder, result)]
            _show(output, result, written)
    if interrupts.exit_code is not None:
        output.note(f"interrupted after {result.evaluations} evaluations; continue with --resume.")
        return interrupts.exit_code
    return 0 if result.best is not None and not result.gave_up else 1


def _pictures(output: Output, folder: RunFolder, result: SearchResult) -> list[Path]:
    """Draw; a device that fails now costs the pictures and nothing else."""
    try:
        return folder.write_pictures(result)
    except BackendError as error:
        output.warn(f"the pictures are not drawn: {error}")
        return []


def _explore(
    output: Output,
    request: SearchRequest,
    folder: RunFolder,
    store: TrialStore,
    task: Task,
    agent: Agent,
    interrupts: Interrupts,
) -> SearchResult:
    evaluator = task.evaluator
    with SearchProgress(output.stderr, output.live, request.evaluations) as progress:

        def on_change(session: SearchSession) -> None:
            progress.update(session)
            interrupts.check()

        def on_sensitivities(done: int, total: int) -> None:
            progress.say(f"measuring sensitivities, {100 * done // total} %")
            interrupts.check()

        if isinstance(evaluator, PostTrainingEvaluator):
            evaluator.on_sensitivities = on_sensitivities
        try:
            return agent.search(
                task,
                request.evaluations,
                request.seed,
                store=store,
                folder=folder.path,
                on_change=on_change,
                max_faults=request.max_faults,
            )
        finally:
            if isinstance(evaluator, PostTrainingEvaluator):
                evaluator.on_sensitivities = None


def _compare(output: Output, result: SearchResult) -> None:
    """Add the baselines and the test split; what cannot be had is left out with a warning."""
    try:
        with output.status("comparing with uniform widths, on the test split"):
            result.add_report()
    except KeyboardInterrupt:
        result.interrupted = True
    except AmedError as error:
        output.warn(f"the comparison is incomplete: {error}")


def _show(output: Output, result: SearchResult, written: list[Path]) -> None:
    try:
        table = allocation_table(result)
        if table is not None:
            output.show(table)
    except BackendError as error:
        output.warn(f"the allocation is in allocation.json; its costs by layer are missing: {error}")
    output.show(comparison_table(result), _verdict(result), *(f"wrote {path}" for path in written))
    if result.best is None:
        output.warn(
            f"none of {result.evaluations} evaluated allocations is within the budget; try another agent, or more "
            "evaluations."
        )
    if result.faults:
        output.warn(f"{len(result.faults)} evaluations failed; result.json lists them. The first: {result.faults[0]}")
    summary = result.task.device_faults.summary()
    if summary:
        output.warn(summary)
    if result.gave_up:
        output.warn("too much failed in a row, so the search stopped; everything found is kept, --resume continues it.")
    output.document({**result.to_json(), "files": [str(path) for path in written]})


def _verdict(result: SearchResult) -> str:
    """One line: what was found, against the best uniform width within the budget."""
    spent = f"{result.evaluations} evaluations in {result.seconds:.1f} s"
    if result.best is None:
        return f"Nothing within the budget was found ({spent})."
    text = f"{result.agent}: {percent(result.best.quality.accuracy)} on the search split"
    uniform = result.best_uniform()
    if uniform is not None:
        accuracy = result.baselines[uniform].quality.accuracy
        text += f", best uniform width within the budget ({uniform.removeprefix('uniform-')} bit): {percent(accuracy)}"
    elif result.baselines:
        text += ", no uniform width is within the budget"
    return f"{text} ({spent})."


def _settings(
    request: SearchRequest, task: Task, options: dict[str, Any], backend: HardwareBackend, agent: Agent
) -> dict[str, Any]:
    """What determines the search, resolved; see `RunFolder.start`."""
    recipe = getattr(task.evaluator, "recipe", None)
    return {
        "network": request.network or request.task,
        "device": _device_settings(request.device, backend),
        "bits": list(task.free_bits),
        # Left out without pins, so that searches of earlier versions can be resumed.
        **({"pins": pins_json(task.pins)} if task.pins else {}),
        "separate": task.separate,
        **({} if task.activation_bits is None else {"activation_bits": task.activation_bits}),
        "budgets": {b.name: {"value": b.value, "relative": b.relative} for b in task.budgets},
        "agent": request.agent,
        "agent_options": options,
        # The content and not the path alone: a search whose recipe was changed meanwhile is another one.
        **({} if agent.recipe is None else {"agent_recipe": agent.recipe}),
        "evaluations": request.evaluations,
        "seed": request.seed,
        "recipe": None if recipe is None else asdict(recipe),
        "fingerprint": task.evaluator.fingerprint,
    }


def _device_settings(spec: str, backend: HardwareBackend) -> dict[str, Any]:
    """What the costs depend on: the name, what was given, the content of files, and a program's fingerprint."""
    settings: dict[str, Any] = {"name": backend.name}
    if isinstance(backend, CommandBackend):
        settings["fingerprint"] = backend.fingerprint
    if not spec.lower().endswith(FILE_SUFFIXES) or spec.startswith(COMMAND_PREFIX):
        return {**settings, "given": spec}
    path = Path(spec)
    settings["sha256"] = device_file_digest(path)
    if path.suffix.lower() == ".npy":
        return {**settings, "given": spec}
    try:
        return {**settings, "content": path.read_text(encoding="utf-8")}
    except (OSError, UnicodeDecodeError) as error:
        raise DeviceError(f"cannot read the device file {spec}: {error}.") from error
