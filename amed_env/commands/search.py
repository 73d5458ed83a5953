"""`amed search`: from a task to a run folder with its best allocation."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from amed_env.commands.export import ExportFormat, export_result
from amed_env.commands.interrupts import Interrupts
from amed_env.commands.options import (
    DEVICE,
    OUTPUT,
    PREPARE_SECONDS,
    PROBLEM,
    DeviceOption,
    JsonOption,
    MetricOption,
    NetworkOption,
    OptionalTaskArgument,
    PinOption,
    PrepareTimeOption,
    RecipeOption,
    ScoreOption,
    ThreadsOption,
    cli_option,
)
from amed_env.commands.output import Output, keeping_on_disk_errors
from amed_env.commands.parsing import (
    check_complete,
    check_task_or_network,
    default_threads,
    load_task,
    parse_bits,
    parse_options,
)
from amed_env.commands.search_result import show_result
from amed_env.errors import AgentError, AmedError, BackendError, InputError
from amed_env.problem.objective import check_reported, parse_budgets
from amed_env.problem.pins import pins_text
from amed_env.tasks.make import DEFAULT_DEVICE

if TYPE_CHECKING:
    from collections.abc import Callable

    from amed_env.agents import Agent, SearchResult, SearchSession
    from amed_env.agents.result import FirstAnswer
    from amed_env.commands.run_folder import RunFolder
    from amed_env.evaluation.store import TrialStore
    from amed_env.quantization.recipe import Recipe
    from amed_env.tasks.task import Task

POLICY_AGENT, AGENT_WITHOUT_BUDGET = "policy", "maskable-ppo"
"""What is searched with by default: a policy is asked for a budget."""
SEARCH = "Search"


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """What `amed search` is asked for; lists and limits are given as on the command line."""

    task: OptionalTaskArgument = None
    network: NetworkOption = None
    budget: Annotated[
        list[str],
        cli_option(
            PROBLEM,
            "Limit on latency, energy, memory (of weights), bops, or any other metric of the device by its name: a "
            "factor of uniform 8 bit (latency=0.6) or with a unit (memory=96KiB). May be repeated.",
            "--budget",
            "-b",
            metavar="NAME=VALUE",
        ),
    ] = field(default_factory=list)
    bits: Annotated[
        str | None,
        cli_option(
            PROBLEM,
            "Widths to choose from, as far as the device runs them; by default 2,3,4,8, a table's own, or what a "
            "device wants of weights and activations.",
            "--bits",
            metavar="LIST",
        ),
    ] = None
    separate: Annotated[
        bool, cli_option(PROBLEM, "Choose the widths of weights and activations apart.", "--separate")
    ] = False
    activation_bits: Annotated[
        int | None,
        cli_option(
            PROBLEM, "One width for all activations; only weights are searched.", "--activation-bits", metavar="N"
        ),
    ] = None
    pin: PinOption = field(default_factory=list)
    recipe: RecipeOption = None
    prepare_time: PrepareTimeOption = PREPARE_SECONDS
    score: ScoreOption = None
    metric: MetricOption = field(default_factory=list)
    search_samples: Annotated[
        int | None,
        cli_option(
            PROBLEM,
            "Search samples that score allocations; fewer are quicker, and the finalists are scored on all. All that "
            "there are by default, of your own at most 5,000.",
            "--search-samples",
            min=1,
            metavar="N",
        ),
    ] = None
    device: DeviceOption = DEFAULT_DEVICE
    device_timeout: Annotated[
        float | None,
        cli_option(DEVICE, "Time that one call of the device may take.", "--device-timeout", metavar="SECONDS"),
    ] = None
    device_retries: Annotated[
        int | None, cli_option(DEVICE, "Further tries of a call that failed.", "--device-retries", min=0, metavar="N")
    ] = None
    agent: Annotated[
        str | None,
        cli_option(
            SEARCH,
            "A name from [b]amed agents[/b], package.module:Class, or a recipe (agents/dqn.yaml); "
            f"by default {POLICY_AGENT} (an answer at once, then search), or {AGENT_WITHOUT_BUDGET} without a budget.",
            "--agent",
            "-a",
            metavar="NAME|MODULE:CLASS",
        ),
    ] = None
    option: Annotated[
        list[str], cli_option(SEARCH, "An option of the agent. May be repeated.", "--option", metavar="KEY=VALUE")
    ] = field(default_factory=list)
    policy: Annotated[
        Path | None,
        cli_option(
            SEARCH,
            "Ask a saved goal-conditioned policy; the same as --agent policy with it.",
            "--policy",
            metavar="DIR",
        ),
    ] = None
    evaluations: Annotated[
        int, cli_option(SEARCH, "Different allocations to evaluate.", "--evaluations", "-n", min=1, metavar="N")
    ] = 300
    seed: Annotated[int, cli_option(SEARCH, "Random seed.", "--seed", "-s", min=0, max=2**32 - 1, metavar="S")] = 0
    finalists: Annotated[
        int,
        cli_option(
            SEARCH,
            "The best so many are scored once more, on all samples but the test split, before one is chosen.",
            "--finalists",
            min=1,
            metavar="K",
        ),
    ] = 8
    tune_steps: Annotated[
        int,
        cli_option(
            SEARCH,
            "Train each of them for so many steps on the training samples before one is chosen.",
            "--tune-steps",
            min=0,
            metavar="N",
        ),
    ] = 0
    max_faults: Annotated[
        int, cli_option(SEARCH, "Failures in a row after which the search stops.", "--max-faults", min=1, metavar="N")
    ] = 20
    out: Annotated[Path, cli_option(OUTPUT, "Folder for everything that is found.", "--out", "-o", metavar="DIR")]
    resume: Annotated[bool, cli_option(OUTPUT, "Continue the search in --out.", "--resume")] = False
    export: Annotated[
        ExportFormat | None,
        cli_option(OUTPUT, "Write the answer as [b]amed export[/b] does, to export/ in --out.", "--export"),
    ] = None
    as_json: JsonOption = False
    threads: ThreadsOption = None


def search(options: SearchOptions) -> int:
    """Search the allocation of the best score within the budgets, and write it with its comparison and pictures.

    Ctrl-C ends a search with what was found; --resume continues it, whatever stopped it.

    It ends with 1 if nothing within the budgets was found, or if too much failed in a row.

    [b]Examples:[/b]

    amed search digits-cnn --budget latency=0.5 --out runs/digits

    amed search cifar10-resnet20 --device eyeriss-ws --agent greedy --budget energy=0.6 -n 100 --out runs/resnet

    amed search --network my_package.nets:make --device my_device.yaml --option warm_start_steps=2000 --out runs/own
    """
    with Output(options.as_json) as output:
        with output.status("starting"):
            from amed_env.agents import make_agent
            from amed_env.agents.finalists import check_finalists
            from amed_env.commands.progress import prepare
            from amed_env.commands.run_folder import RunFolder
            from amed_env.commands.search_settings import search_settings
            from amed_env.hardware import isolated, load_device
            from amed_env.hardware.costs import COMMON_METRICS, RAM, backend_capabilities

        # What is quick to check comes first, so that a typing error does not wait for a network to be loaded.
        agent_name, agent_options = _chosen_agent(options), _agent_options(options)
        bits = None if options.bits is None else parse_bits(options.bits)
        budgets = parse_budgets(options.budget)
        check_task_or_network(options.task, options.network)
        backend = isolated(load_device(options.device), options.device_timeout, options.device_retries)
        for budget in budgets:
            check_reported(budget, (*backend_capabilities(backend).metrics, *COMMON_METRICS, RAM))
        if options.task is not None:
            check_complete(options.task)
        agent = make_agent(agent_name, **agent_options)
        if not budgets:
            output.warn(
                "no --budget is given: the search optimises quality without any limit; give one, for example "
                "--budget latency=0.6."
            )
        with (
            keeping_on_disk_errors(f"Finished trials are kept in {options.out}"),
            RunFolder(options.out, resume=options.resume) as folder,
        ):
            backend.keep_answers(folder.open_known_store())
            with output.status(f"preparing {options.task or options.network}") as say:
                threads = options.threads or default_threads()
                recipe, prepare_time = _recipe(options, folder)
                task = load_task(
                    options.task,
                    options.network,
                    device=backend,
                    bits=bits,
                    separate=options.separate,
                    activation_bits=options.activation_bits,
                    budget=options.budget,
                    pin=options.pin,
                    threads=threads,
                    recipe=recipe,
                    score=options.score,
                    metrics=options.metric or None,
                    search_samples=options.search_samples,
                )
                check_finalists(task, options.finalists, options.tune_steps)
                if options.export is not None:
                    task.evaluator.network_evaluator()  # tables have nothing to export, and say so
                first = _first_answers(output, options, folder, task, say)
                try:
                    prepare(task, output, say, prepare_time)
                except KeyboardInterrupt:
                    output.note("interrupted while the network was prepared; continue with --resume.")
                    raise
            for kept in task.evaluator.kept_float:
                output.note(f"kept in float: {kept}")
            for remark in (*task.evaluator.score_remarks(), *task.evaluator.float_remarks()):
                output.note(remark)
            if (task.choosable.sum(axis=1) == 1).all():
                output.warn(
                    f"{backend.name} leaves every layer a single precision, so there is one allocation and nothing to "
                    "search; `amed devices show` lists what it can run, --bits and --separate what is left of it."
                )
            if task.pins:
                output.note(f"pinned: {pins_text(task.pins)}")
            settings = {
                **search_settings(options, task, backend),
                "agent": agent_name,
                "agent_options": agent_options,
                # The content and not the path alone: a search whose recipe was changed meanwhile is another one.
                **({} if agent.recipe is None else {"agent_recipe": agent.recipe}),
            }
            store = folder.start(settings, sys.argv, {"threads": threads}, agent.libraries)
            backend.keep_answers(store)
            return _run(output, options, folder, store, task, agent, first)


def _recipe(options: SearchOptions, folder: RunFolder) -> tuple[str | Recipe | None, float | None]:
    """The recipe, and the time for its learning; a search that goes on keeps the steps that there was time for."""
    from amed_env.evaluation.preparation import brief_recipe
    from amed_env.quantization.recipe import Recipe, make_recipe

    known = folder.known_settings().get("recipe")
    if known is not None:
        asked, kept = make_recipe(options.recipe), Recipe(**known)
        # Earlier versions changed nothing but the steps and the samples of each.
        before = asked.with_changes(steps=kept.steps, batch_size=kept.batch_size)
        if kept in (before, brief_recipe(asked, kept.steps, kept.activations)):
            return kept, None
    return options.recipe, options.prepare_time


def _first_answers(
    output: Output, options: SearchOptions, folder: RunFolder, task: Task, say: Callable[[str], None]
) -> list[FirstAnswer]:
    """Answer before anything is learned or evaluated, and write that, but for a search that has gone further."""
    from amed_env.agents.first_answers import first_answers

    if task.evaluator.prepares_at_once:
        task.evaluator.prepare()
    say(f"first answer for {task.network}")
    answers = []
    try:
        for answer in first_answers(task, options.max_faults):
            answers.append(answer)
            if folder.known_settings():
                continue
            path = folder.write_allocation(answer.allocation, task.network)
            used = [answer.costs[metric] / limit for metric, limit in task.limits.items()]
            within = f", {max(used):.0%} of the budget" if used else ""
            if not options.as_json:
                output.note(f"first answer from {answer.stage}, after {answer.seconds:.1f} s{within}: {path}")
    except AmedError as error:  # the search itself says more about it, or does without
        output.note(f"no first answer: {error}")
    return answers


def _chosen_agent(options: SearchOptions) -> str:
    """The agent of `--agent` and `--policy`; without either the shipped policy, where there is a budget to ask for.

    Raises:
        InputError: If both are given and do not go together.
    """
    if options.policy is not None and options.agent not in (None, POLICY_AGENT):
        raise InputError(
            f"--policy {options.policy} goes with --agent {POLICY_AGENT}, but --agent {options.agent} is given."
        )
    if options.agent is not None:
        return options.agent
    return POLICY_AGENT if options.policy is not None or options.budget else AGENT_WITHOUT_BUDGET


def _agent_options(options: SearchOptions) -> dict[str, Any]:
    """What `--option` and `--policy` give to the agent.

    Raises:
        AgentError: If one is malformed, or given twice.
    """
    given = parse_options(options.option)
    if options.policy is not None:
        if "policy" in given:
            raise AgentError("the policy is given by --policy and by --option; give it once.")
        given["policy"] = str(options.policy)
    return given


def _run(
    output: Output,
    options: SearchOptions,
    folder: RunFolder,
    store: TrialStore,
    task: Task,
    agent: Agent,
    first: list[FirstAnswer],
) -> int:
    with Interrupts() as interrupts:
        result = _explore(output, options, folder, store, task, agent, interrupts)
        result.first_answers = first
        # Calls for the first answers, before the search itself, count as well.
        result.device_faults, result.device_retries = task.device_faults.count, task.device_faults.retried
        if not result.trials and result.faults:
            raise AmedError(f"all {len(result.faults)} evaluations failed; the first one: {result.faults[0]}.")
        with interrupts.held():
            written = folder.write_result(result)
            if result.interrupted:
                output.note("interrupted; press Ctrl-C again to do without the comparison on the test split.")
                _pictures(output, folder, result)
        if not result.interrupted:  # --resume gets there, and tuning may take long
            _choose(output, options, result)
        _compare(output, result)
        with interrupts.held():
            with output.status("drawing"):
                written = [*folder.write_result(result), *_pictures(output, folder, result)]
            show_result(output, result, written)
        if options.export is not None and result.best is not None and not result.interrupted:
            export_result(output, result, options.export, options.out / "export")
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
    options: SearchOptions,
    folder: RunFolder,
    store: TrialStore,
    task: Task,
    agent: Agent,
    interrupts: Interrupts,
) -> SearchResult:
    from amed_env.commands.progress import SearchProgress

    with SearchProgress(output.stderr, output.live, options.evaluations) as progress:
        written = None

        def on_change(session: SearchSession) -> None:
            nonlocal written
            best = session.best()
            if best is not None and best is not written:  # whatever ends the search, the best so far is there
                folder.write_allocation(best.allocation, task.network)
                written = best
            progress.update(session)
            interrupts.check()

        def on_sensitivities(done: int, total: int) -> None:
            progress.say(f"measuring sensitivities, {100 * done // total} %")
            interrupts.check()

        task.evaluator.on_sensitivities = on_sensitivities
        try:
            return agent.search(
                task,
                options.evaluations,
                options.seed,
                store=store,
                folder=folder.path,
                on_change=on_change,
                max_faults=options.max_faults,
            )
        finally:
            task.evaluator.on_sensitivities = None


def _choose(output: Output, options: SearchOptions, result: SearchResult) -> None:
    """Choose among the finalists; where that fails, the best of the search stays the answer."""
    from amed_env.agents.finalists import choose_finalist

    try:
        with output.status("scoring the finalists") as say:
            choose_finalist(
                result,
                options.finalists,
                options.tune_steps,
                lambda done, total: say(f"scoring the finalists, {done} of {total}"),
            )
    except KeyboardInterrupt:
        result.interrupted = True
    except AmedError as error:
        output.warn(f"no finalist is chosen, so the best of the search is the answer: {error}")


def _compare(output: Output, result: SearchResult) -> None:
    """Add the baselines and the test split; what cannot be had is left out with a warning."""
    try:
        with output.status("comparing with uniform widths, on the test split"):
            result.add_report()
    except KeyboardInterrupt:
        result.interrupted = True
    except AmedError as error:
        output.warn(f"the comparison is incomplete: {error}")
