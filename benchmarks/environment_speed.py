"""Steps per second of the environments on a tabular task, and what stable-baselines3 itself can do at the most.

    python benchmarks/environment_speed.py                        # one thread, CPU time, the best of several runs

`ceiling` is stable-baselines3's own collecting of rollouts (policy, buffers, update of infos; no learning) on an
environment that does nothing at all but return zeros.
"""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Annotated, Any

import gymnasium as gym
import numpy as np
import torch
import typer
from processor_time import least
from rich.console import Console
from rich.table import Table
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from amed_env import Task, make_task, optimum, pareto_front
from amed_env.agents.learners.vec_env import LayerWiseVecEnv
from amed_env.envs import LAYER_WISE, LayerWiseEnv

SINGLE_STEPS = 2_000
VECTOR_STEPS = 200
console = Console(width=110)


class NoEnvironment(VecEnv):
    """Returns zeros: what is left is the learner's own time."""

    def __init__(self, like: LayerWiseVecEnv) -> None:
        super().__init__(like.num_envs, like.observation_space, like.action_space)
        self._observations = np.zeros((self.num_envs, *self.observation_space.shape), dtype=np.float32)
        self._rewards, self._dones = np.zeros(self.num_envs, dtype=np.float32), np.zeros(self.num_envs, dtype=bool)

    def reset(self) -> Any:
        """Zeros."""
        return self._observations

    def step_async(self, actions: Any) -> None:
        """Nothing."""

    def step_wait(self) -> Any:
        """Zeros."""
        return self._observations, self._rewards, self._dones, [{} for _ in range(self.num_envs)]

    def close(self) -> None:
        """Nothing."""

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """Nothing."""
        return [None] * self.num_envs

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Nothing."""

    def env_method(self, method_name: str, *arguments: Any, indices: Any = None, **keywords: Any) -> list[Any]:
        """Nothing."""
        return [None] * self.num_envs

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        """No."""
        return [False] * self.num_envs


def main(
    task: str = "tabular/digits-cnn",
    device: str = "bitfusion",
    environments: int = 256,
    runs: int = 7,
    out: Annotated[Path | None, typer.Option(help="write the figures as JSON")] = None,
) -> None:
    """Measure the environments."""
    torch.set_num_threads(1)
    problem = make_task(task, device=device)
    found = {
        "single": single(problem, runs),
        "gymnasium_vector": vector(problem, environments, runs),
        "gymnasium_sync": vector(problem, environments, runs, "sync"),
        "sb3_vec_env": sb3(LayerWiseVecEnv(environments, LayerWiseEnv(problem)), environments, runs),
        "sb3_dummy": sb3(DummyVecEnv([lambda: LayerWiseEnv(problem)] * environments), environments, max(1, runs // 3)),
    }
    ours = LayerWiseVecEnv(environments, LayerWiseEnv(problem))
    found["sb3_ppo_rollouts"] = rollouts(ours, runs)
    found["sb3_ppo_rollouts_ceiling"] = rollouts(NoEnvironment(ours), runs)
    table = Table("", "steps/s", title=f"{task}, {environments} environments, one thread, CPU time, best of {runs}")
    for name, value in found.items():
        table.add_row(name, f"{value:,.0f}")
    console.print(table)
    allocations = [
        problem.allocation(row) for row in np.random.default_rng(0).integers(0, 3, (1_000, len(problem.workload)))
    ]
    evaluations = 1_000 / least(lambda: [problem.measure(allocation) for allocation in allocations], runs)
    milliseconds = {
        "optimum_ms": 1e3 * least(lambda: optimum(problem, {"latency": 0.5}), runs),
        "pareto_front_ms": 1e3 * least(lambda: pareto_front(problem), runs),
    }
    console.print(f"task.measure: {evaluations:,.0f} a second;", milliseconds)
    if out is not None:
        figures = {
            "task": task,
            "device": device,
            "environments": environments,
            "steps_per_second": found,
            "evaluations_per_second": evaluations,
            **milliseconds,
            "processor": platform.machine(),
        }
        out.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def single(task: Task, runs: int) -> float:
    """Steps of one environment, resets included."""
    env = LayerWiseEnv(task)
    actions = np.random.default_rng(0).integers(0, len(task.precisions), SINGLE_STEPS).tolist()

    def play() -> None:
        env.reset()
        for action in actions:
            _, _, terminated, _, _ = env.step(action)
            if terminated:
                env.reset()

    return SINGLE_STEPS / least(play, runs)


def vector(task: Task, environments: int, runs: int, mode: str | None = None) -> float:
    """Steps of a Gymnasium vector environment; the steps that only reset count too."""
    env = gym.make_vec(LAYER_WISE, num_envs=environments, vectorization_mode=mode, task=task)
    env.reset(seed=0)
    actions = np.random.default_rng(0).integers(0, len(task.precisions), (VECTOR_STEPS, environments))
    steps = VECTOR_STEPS if mode is None else 2 * (len(task.workload) + 1)
    return steps * environments / least(lambda: [env.step(row) for row in actions[:steps]], runs)


def sb3(env: VecEnv, environments: int, runs: int) -> float:
    """Steps of an environment of stable-baselines3."""
    env.reset()
    steps = VECTOR_STEPS if isinstance(env, LayerWiseVecEnv) else 16
    actions = np.random.default_rng(0).integers(0, env.action_space.n, (steps, environments))
    return steps * environments / least(lambda: [env.step(row) for row in actions], runs)


def rollouts(env: VecEnv, runs: int) -> float:
    """Steps of PPO's collecting of rollouts."""
    model = PPO("MlpPolicy", env, n_steps=64, seed=0, device="cpu")
    _, callback = model._setup_learn(10**9, None)

    def collect() -> None:
        model.collect_rollouts(env, callback, model.rollout_buffer, 64)

    return 64 * env.num_envs / least(collect, runs)


if __name__ == "__main__":
    typer.run(main)
