"""Choose values of the learners and of AMED's walk, on development cells of the suite `tiny` and on nothing else.

    python benchmarks/tune_agents.py run [--agents dqn,sac] [--seeds 2]     # continues results/tuning.json
    python benchmarks/tune_agents.py table                                  # what was tried, the best one marked

Every candidate of an agent searches the same cells with
the same seeds. Cells are a Latin square for each table: every device once, every budget once. Regret is in accuracy
points on the search split; seconds are CPU time of a search. What counts is the mean regret after 100 and 500
evaluations, of candidates whose search takes at most `MOST_SECONDS`; where none does, the quickest is taken.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch

from amed_env.agents import make_agent
from amed_env.bench.suites import Cells, cell_task, find_suite
from amed_env.bench.truth import cell_truth

RESULTS = Path(__file__).parent / "results" / "tuning.json"
TABLES = ("tabular/kws-dscnn", "tabular/digits-cnn")
AFTER = (1, 10, 100, 500)
MOST_SECONDS = 4.0
WALK_SEEDS_FACTOR = 3
"""Searches of the walk are so cheap that it gets so many times as many seeds."""

PPO = [
    {"learning_rate": 1e-3, "environments": 16},
    {"learning_rate": 3e-3, "environments": 16},
    {"learning_rate": 3e-3, "environments": 32},
]
DQN = [
    {"learning_rate": 5e-4, "gradient_steps": 1},
    {"learning_rate": 2e-3, "gradient_steps": 1},
    {"learning_rate": 2e-3, "gradient_steps": 2},
    {"learning_rate": 2e-3, "gradient_steps": 4},
]
QR_DQN = [
    {**DQN[3], "environments": 16},
    {"learning_rate": 2e-3, "gradient_steps": 3, "batch_size": 128},
]
TD3 = [{"learning_rate": 1e-3, "noise": 0.5, "environments": count} for count in (16, 32)]
CANDIDATES = {
    "maskable-ppo": PPO,
    "dqn": DQN,
    "sac": [
        {"learning_rate": 1e-3, "environments": 16},
        {"learning_rate": 3e-3, "environments": 16},
        {"learning_rate": 3e-3, "environments": 32},
    ],
    "td3": TD3,
    "a2c": [
        {"learning_rate": 2e-3, "ent_coef": 0.005},
        {"learning_rate": 4e-3, "ent_coef": 0.005},
    ],
    "ppo": PPO[1:2],
    "qr-dqn": [*({**DQN[1], "environments": count} for count in (16, 32)), *QR_DQN],
    "ddpg": TD3[1:],
    "amed": [
        {"temperature": 0.05, "learning_rate": 0.3, "latency_weight": 0.1},
        {"temperature": 0.02, "learning_rate": 0.3, "latency_weight": 0.1},
        {"temperature": 0.1, "learning_rate": 0.3, "latency_weight": 0.1},
        {"temperature": 0.05, "learning_rate": 0.6, "latency_weight": 0.1},
        {"temperature": 0.05, "learning_rate": 0.3, "latency_weight": 0.0},
        {"temperature": 0.05, "learning_rate": 0.3, "latency_weight": 0.1, "moves": 4},
        {"temperature": 0.05, "learning_rate": 0.3, "latency_weight": 0.1, "reheating": 1.2},
        {"temperature": 0.1, "learning_rate": 0.3, "latency_weight": 0.1, "reheating": 1.2},
        {"temperature": 0.1, "learning_rate": 0.3, "latency_weight": 0.1, "reheating": 1.5},
        {"temperature": 0.1, "learning_rate": 0.3, "latency_weight": 0.1, "reheating": 1.2, "proposal": "scores"},
        {"temperature": 0.1, "learning_rate": 0.3, "latency_weight": 0.1, "reheating": 1.2, "accuracy_threshold": None},
    ],
}
"""Options that are tried; `ppo`, `qr-dqn` and `ddpg` take what is best for their relatives."""


def cells(table):
    """A development cell for each device, with all budgets among them."""
    number = TABLES.index(table)
    grid = find_suite("tiny").cells(Cells.DEVELOPMENT, [table])
    devices = list(dict.fromkeys(cell.device for cell in grid))
    by_device = [[cell for cell in grid if cell.device == device] for device in devices]
    return [found[(place + number) % len(found)] for place, found in enumerate(by_device)]


def search(agent, options, cell, seed):
    """Regrets after `AFTER` evaluations, CPU seconds, and evaluations made."""
    truth, task = cell_truth(cell), cell_task(cell)
    for shared in (task.costs, task.predicted_loss, task.float_quality):
        del shared  # not part of the search
    start = time.thread_time()
    result = make_agent(agent, **options).search(task, AFTER[-1], seed)
    seconds = time.thread_time() - start
    right = [trial.quality.accuracy if task.feasible(trial.costs) else 0.0 for trial in result.trials]
    so_far = np.maximum.accumulate(right)
    best = float(truth.accuracy(truth.optimum))
    regrets = [round(best - 100 * float(so_far[min(after, len(so_far)) - 1]), 4) for after in AFTER]
    return {"regrets": regrets, "seconds": round(seconds, 2), "evaluations": result.evaluations}


def load():
    """The rows so far."""
    return json.loads(RESULTS.read_text(encoding="utf-8"))["rows"] if RESULTS.exists() else []


def run(agents, seeds):
    """Make every search that is not in the file of results yet."""
    torch.set_num_threads(1)
    rows = load()
    done = {(row["agent"], json.dumps(row["options"]), row["cell"], row["seed"]) for row in rows}
    for seed in range(seeds * WALK_SEEDS_FACTOR):
        for agent in agents:
            if seed >= seeds and agent != "amed":
                continue
            for options in CANDIDATES[agent]:
                for cell in [cell for table in TABLES for cell in cells(table)]:
                    if (agent, json.dumps(options), str(cell), seed) in done:
                        continue
                    found = search(agent, options, cell, seed)
                    rows.append({"agent": agent, "options": options, "cell": str(cell), "seed": seed, **found})
                    write(rows)
                print(agent, options, seed, *summary(rows, agent, options), flush=True)


def write(rows):
    """One row a line, so that differences can be read."""
    lines = ",\n  ".join(json.dumps(row) for row in rows)
    after = json.dumps(AFTER)
    RESULTS.write_text(f'{{"suite": "tiny", "after": {after}, "rows": [\n  {lines}\n]}}\n', encoding="utf-8")


def summary(rows, agent, options):
    """Mean regrets after `AFTER` evaluations, mean CPU seconds, number of searches."""
    chosen = [row for row in rows if row["agent"] == agent and row["options"] == options]
    means = np.mean([row["regrets"] for row in chosen], axis=0).round(3)
    return means.tolist(), round(float(np.mean([row["seconds"] for row in chosen])), 2), len(chosen)


def table():
    """Print all candidates as a Markdown table; the best of each agent is bold."""
    rows = load()
    print("| agent | options | " + " | ".join(f"after {after}" for after in AFTER) + " | CPU s | searches |")
    print("|---|---|" + "---|" * (len(AFTER) + 2))
    for agent in CANDIDATES:
        tried = [
            options
            for options in CANDIDATES[agent]
            if any((r["agent"], r["options"]) == (agent, options) for r in rows)
        ]
        found = [summary(rows, agent, options) for options in tried]
        worth = [(max(seconds, MOST_SECONDS), means[-1] + means[-2]) for means, seconds, _ in found]
        for number, (options, (means, seconds, count)) in enumerate(zip(tried, found, strict=True)):
            text = ", ".join(f"{key}={value}" for key, value in options.items())
            mark = "**" if number == worth.index(min(worth)) else ""
            columns = [f"{mark}{text}{mark}", *(f"{mean:.2f}" for mean in means), f"{seconds:.1f}", str(count)]
            print(f"| `{agent}` | " + " | ".join(columns) + " |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "table"))
    parser.add_argument("--agents", default=",".join(CANDIDATES))
    parser.add_argument("--seeds", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.what == "run":
        run(arguments.agents.split(","), arguments.seeds)
    else:
        table()
