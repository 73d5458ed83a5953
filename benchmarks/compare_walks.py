"""Regret of AMED's walk, of its released behaviour, of `random` and of `greedy` where the optimum is known.

    python benchmarks/compare_walks.py run      # about two minutes of CPU time; continues results/walks.json
    python benchmarks/compare_walks.py table

Regret is in percentage points of accuracy on the search split, of the best feasible allocation so far. Seconds are CPU
time of a whole search of 500 evaluations (or of all feasible allocations, if there are fewer), the least of all seeds.
"""

import argparse
import itertools
import json
import time
from pathlib import Path

import numpy as np

import amed_env
from amed_env import optimum
from amed_env.bench.run_statistics import interquartile_mean
from amed_env.problem.constraints import TOLERANCE
from amed_env.tasks.ground_truth import all_costs

RESULTS = Path(__file__).parent / "results" / "walks.json"
TASK = "tabular/digits-cnn"
AGENTS = ("greedy", "amed", "amed-released", "random")
DEVICES, LATENCIES = ("bitfusion", "eyeriss-ws", "bit-serial"), (0.3, 0.45)
AFTER = (10, 100, 500)
SEEDS = 10


def regrets(result, best, checkpoints):
    """Regret in points after some numbers of evaluations; one that ended early keeps its last."""
    correct = np.array([t.quality.accuracy if result.task.feasible(t.costs) else 0.0 for t in result.trials])
    so_far = np.maximum.accumulate(correct)
    return [round(100 * (best - float(so_far[min(after, len(so_far)) - 1])), 6) for after in checkpoints]


def run(limit, agents):
    """Run agents on every task with every seed; what is in the file of results already is left as it is."""
    checkpoints = [after for after in AFTER if after <= limit]
    rows = json.loads(RESULTS.read_text(encoding="utf-8"))["rows"] if RESULTS.exists() else []
    for agent, device, latency in itertools.product(agents, DEVICES, LATENCIES):
        old = [r for r in rows if (r["agent"], r["device"], r["latency"]) == (agent, device, latency)]
        if old and len(old[0]["regrets"][0]) >= len(checkpoints):
            continue
        task = amed_env.make_task(TASK, device=device, budget={"latency": latency}, score="metric")
        best = optimum(task).quality.accuracy
        feasible = int((all_costs(task, "latency_ms") <= task.limits["latency_ms"] * (1 + TOLERANCE)).sum())
        found, seconds, evaluations = [], [], []
        for seed in range(1 if agent == "greedy" else SEEDS):
            start = time.thread_time()
            result = amed_env.make_agent(agent).search(task, min(limit, feasible), seed)
            seconds.append(time.thread_time() - start)
            found.append(regrets(result, best, checkpoints))
            evaluations.append(result.evaluations)
        rows = [row for row in rows if row not in old]
        rows.append({"device": device, "latency": latency, "agent": agent, "feasible": feasible, "regrets": found})
        rows[-1] |= {"evaluations": evaluations, "seconds": round(min(seconds), 3)}
        RESULTS.write_text(json.dumps({"task": TASK, "after": AFTER, "rows": rows}, indent=1) + "\n", encoding="utf-8")
        print(device, latency, agent, np.mean(found, axis=0), rows[-1]["seconds"], flush=True)


def table():
    """Print mean regrets as a Markdown table, and their interquartile means over all tasks."""
    document = json.loads(RESULTS.read_text(encoding="utf-8"))
    print(
        "| device | latency | agent | "
        + " | ".join(f"after {n}" for n in document["after"])
        + " | evaluations | CPU s |"
    )
    print("|---|---|---|" + "---|" * (len(document["after"]) + 2))
    for row in sorted(document["rows"], key=lambda row: (DEVICES.index(row["device"]), row["latency"])):
        means = [f"{value:.2f}" for value in np.mean(row["regrets"], axis=0)]
        means = " | ".join(means + ["–"] * (len(AFTER) - len(means)))
        used = f"{np.mean(row['evaluations']):.0f}"
        print(f"| `{row['device']}` | {row['latency']} | `{row['agent']}` | {means} | {used} | {row['seconds']:.2f} |")
    for agent in AGENTS:
        found = [np.asarray(row["regrets"]) for row in document["rows"] if row["agent"] == agent]
        shortest = min((rows.shape[1] for rows in found), default=0)
        scores = np.array([rows[:, :shortest] for rows in found])
        if len(scores):
            print(f"all {len(scores)}: {agent}", [round(float(interquartile_mean(column)), 3) for column in scores.T])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "table"))
    parser.add_argument("--evaluations", type=int, default=AFTER[-1])
    parser.add_argument("--agents", default=",".join(AGENTS))
    arguments = parser.parse_args()
    if arguments.what == "run":
        run(arguments.evaluations, arguments.agents.split(","))
    else:
        table()
