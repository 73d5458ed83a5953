"""Result files made by real searches of the real tables: random search, and a climb from the best so far."""

import re

import numpy as np

from amed_env.bench.result_file import Header, Improvement, Run, contents_of, sequence_digest
from amed_env.bench.suites import Cell, cell_task, task_digest
from amed_env.problem.objective import BUDGET_METRICS
from amed_env.tasks.ground_truth import feasible_rows, rows_of

DIGITS = "tabular/digits-cnn"
CELLS = tuple(
    Cell(DIGITS, device, ((budget, limit),))
    for device, budget in (("bit-serial", "latency"), ("mpic", "memory"))
    for limit in (0.3, 0.6)
)


def searched(cell, seed, evaluations, climb=0.0, invert=False):
    """A run: each allocation is a random one, or with probability `climb` a change of one layer of the best so far."""
    task = cell_task(cell)
    table, feasible = task.evaluator.table, feasible_rows(task)
    ((name, _),) = cell.budget
    costs, reference = task.costs[BUDGET_METRICS[name]], task.reference_cost[BUDGET_METRICS[name]]
    rng = np.random.default_rng(seed)
    layers, widths = len(task.workload), len(task.precisions)
    seen, found, best, guide = set(), [], None, None
    proposals = rng.integers(0, widths, (3 * evaluations, layers))
    climbs = rng.random(len(proposals)) < climb
    steps = rows_of(task, np.eye(layers, dtype=np.int64)) - (base := int(rows_of(task, np.zeros(layers))[0]))
    for choices, climbing in zip(proposals, climbs, strict=True):
        if len(seen) == evaluations:
            break
        if climbing and guide is not None:
            layer, width = choices[0] * 31 % layers, choices[1]
            choices = guide[1].copy()
            choices[layer] = width
        row = base + int(choices @ steps)
        if row in seen:
            continue
        seen.add(row)
        correct, loss = int(table.correct["search"][row]), float(table.loss["search"][row])
        if not feasible[row]:
            continue
        seems = (-correct, loss) if invert else (correct, -loss)
        if guide is None or seems > guide[0]:
            guide = seems, choices
        if best is None or (correct, -loss) > best:
            best = correct, -loss
            quality = table.quality(row, "search")
            found.append(
                Improvement(
                    evaluation=len(seen),
                    choices="".join(map(str, choices)),
                    accuracy=100 * quality.accuracy,
                    loss=loss,
                    correct=correct,
                    relative_costs={name: float(costs[np.arange(layers), choices].sum() / reference)},
                )
            )
    return Run(
        task=cell.task,
        device=cell.device,
        budget=dict(cell.budget),
        seed=seed,
        evaluations=len(seen),
        improvements=tuple(found),
        sequence=sequence_digest(map(str, sorted(seen))),
        faults=0,
        seconds=0.5,
    )


def header(agent, cells=CELLS, seeds=3, evaluations=60, **changes):
    values = {
        "suite": "tiny",
        "cells": "held-out",
        "agent": agent,
        "spec": agent,
        "options": {},
        "family": "search",
        "description": f"{agent} search of a test",
        "evaluations": evaluations,
        "seeds": seeds,
        "saw": (),
        "versions": {"amed-env": "0"},
        "tables": {cell.task: task_digest(cell_task(cell)) for cell in cells},
        "machine": "a test",
        "made": "2026-01-01",
    }
    return Header(**{**values, **changes})


def write(folder, agent, cells=CELLS, seeds=3, evaluations=60, *, climb=0.0, invert=False, drop=0, **changes):
    """Write the file of an agent; the last `drop` runs are missing."""
    runs = [searched(cell, seed, evaluations, climb, invert) for cell in cells for seed in range(seeds)]
    path = folder / (re.sub(r"[^\w.-]+", "-", agent) + ".jsonl")
    head = header(agent, cells, seeds, evaluations, **changes)
    path.write_bytes(contents_of(head, runs[: len(runs) - drop]))
    return path
