"""AMED's walk before a fine-tuning: the allocation is searched while the network is trained."""

from __future__ import annotations

from amed_env.agents import Agent, SearchSession
from amed_env.agents.finalists import choose_finalist
from amed_env.commands.interrupts import Interrupts
from amed_env.commands.output import Output
from amed_env.commands.progress import SearchProgress
from amed_env.errors import InputError
from amed_env.problem.allocation import BitAllocation
from amed_env.tasks.task import Task
from amed_env.training.in_training import InTrainingEvaluator


def walk(
    output: Output, task: Task, agent: Agent, epochs: int, seed: int, interrupts: Interrupts
) -> tuple[BitAllocation, dict[str, int]]:
    """Search while the network is trained, and choose among the best allocations by the weights of its end.

    Args:
        output: Where progress is shown.
        task: A task whose evaluator trains.
        agent: `amed`, with its options.
        epochs: How long it walks.
        seed: Of its moves.
        interrupts: Ends the walk in good order.

    Returns:
        The allocation, and what a result says of the walk.

    Raises:
        InputError: If an evaluation takes more steps than there are, or nothing within the budgets was found.
        KeyboardInterrupt: If a signal ended it; the checkpoint is written.
    """
    evaluator = task.evaluator
    assert isinstance(evaluator, InTrainingEvaluator)
    evaluator.held = interrupts.held
    steps = epochs * evaluator.trainer.steps_per_epoch
    evaluations = steps // evaluator.options.steps
    if not evaluations:
        raise InputError(
            f"a walk of {steps} steps has no evaluation of {evaluator.options.steps}; give more --walk-epochs or fewer "
            "steps with --walk-every."
        )
    with SearchProgress(output.stderr, output.live, evaluations) as progress:

        def on_change(session: SearchSession) -> None:
            progress.update(session)
            interrupts.check()

        try:
            result = agent.search(task, evaluations, seed, on_change=on_change)
        finally:
            with interrupts.held():
                evaluator.save()
    if result.interrupted:
        raise KeyboardInterrupt
    with output.status("scoring the finalists of the walk"):
        chosen = choose_finalist(result)
    if chosen is None:
        faults = f"; the first of {len(result.faults)} faults: {result.faults[0]}" if result.faults else ""
        raise InputError(f"the walk found nothing within {' and '.join(map(str, task.budgets))}{faults}.")
    output.note(f"the walk is over after {result.evaluations} evaluations; {chosen.sentence()}")
    return chosen.chosen.trial.allocation, {"evaluations": result.evaluations, "every": evaluator.options.steps}
