"""AMED-Env: automatic mixed-precision quantization for edge devices as a Gymnasium environment.

`import amed_env` registers the environments with Gymnasium; torch is imported only when something needs it.
"""

from typing import TYPE_CHECKING

from amed_env import envs as envs  # registers the environments
from amed_env._version import __version__
from amed_env.errors import AmedError
from amed_env.problem.allocation import BitAllocation, Precision
from amed_env.problem.workload import Layer, Workload
from amed_env.support.lazy import lazy_names

if TYPE_CHECKING:
    from amed_env.agents import Agent, SearchResult, SearchSession, make_agent, register_agent
    from amed_env.agents.finalists import choose_finalist
    from amed_env.deploy.export import Export, ExportOptions, export
    from amed_env.evaluation.metrics.registry import register_metric
    from amed_env.evaluation.quality import Quality
    from amed_env.evaluation.store import Trial, TrialStore
    from amed_env.hardware import HardwareBackend, check_hardware, load_device, register_hardware
    from amed_env.problem.score import Score
    from amed_env.tasks.ground_truth import optimum, pareto_front, regret
    from amed_env.tasks.make import make_task
    from amed_env.tasks.task import Task
    from amed_env.tracing.trace import trace
    from amed_env.training.in_training import InTraining
    from amed_env.training.settings import TrainingSettings

_LAZY = {
    **dict.fromkeys(("Agent", "SearchResult", "SearchSession", "make_agent", "register_agent"), "amed_env.agents"),
    "Quality": "amed_env.evaluation.quality",
    "Score": "amed_env.problem.score",
    "register_metric": "amed_env.evaluation.metrics.registry",
    **dict.fromkeys(("Trial", "TrialStore"), "amed_env.evaluation.store"),
    **dict.fromkeys(("optimum", "pareto_front", "regret"), "amed_env.tasks.ground_truth"),
    **dict.fromkeys(("HardwareBackend", "check_hardware", "load_device", "register_hardware"), "amed_env.hardware"),
    "Task": "amed_env.tasks.task",
    "make_task": "amed_env.tasks.make",
    "trace": "amed_env.tracing.trace",
    "InTraining": "amed_env.training.in_training",
    "TrainingSettings": "amed_env.training.settings",
    "choose_finalist": "amed_env.agents.finalists",
    **dict.fromkeys(("Export", "ExportOptions", "export"), "amed_env.deploy.export"),
}

__all__ = [
    "Agent",
    "AmedError",
    "BitAllocation",
    "Export",
    "ExportOptions",
    "HardwareBackend",
    "InTraining",
    "Layer",
    "Precision",
    "Quality",
    "Score",
    "SearchResult",
    "SearchSession",
    "Task",
    "TrainingSettings",
    "Trial",
    "TrialStore",
    "Workload",
    "__version__",
    "check_hardware",
    "choose_finalist",
    "export",
    "load_device",
    "make_agent",
    "make_task",
    "optimum",
    "pareto_front",
    "register_agent",
    "register_hardware",
    "register_metric",
    "regret",
    "trace",
]

__getattr__ = lazy_names(__name__, _LAZY)
