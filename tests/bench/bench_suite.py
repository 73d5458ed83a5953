"""A suite that is small enough for tests, and results on it."""

from amed_env.bench.contender import Contender
from amed_env.bench.execution import Job, run_all
from amed_env.bench.results_folder import AgentFile, make_header
from amed_env.bench.suites import BudgetedDevice, CellGrid, Cells, Suite
from amed_env.bench.truth import NOTHING, cell_truth
from amed_env.bench.validation import validate

SUITE = Suite(
    "unit",
    "for tests",
    ("tabular/digits-cnn",),
    (
        (
            Cells.HELD_OUT,
            CellGrid((BudgetedDevice("bitfusion", "latency"), BudgetedDevice("mpic", "memory")), (0.35, 0.6)),
        ),
        (Cells.DEVELOPMENT, CellGrid((BudgetedDevice("bops", "latency"),), (0.5,))),
    ),
)
EVALUATIONS = 12
SEEDS = 2


def write(folder, spec, evaluations=EVALUATIONS, seeds=SEEDS, workers=1, cells=None):
    """Results of an agent, as `amed bench` writes them."""
    contender = Contender(spec)
    cells = SUITE.cells() if cells is None else cells
    header = make_header(contender, SUITE, Cells.HELD_OUT, cells, evaluations, seeds)
    with AgentFile(folder, contender.file_stem, header, cells, resume=True) as file:
        for _, run in run_all(
            [Job(contender, cell, seed, evaluations) for cell, seed in file.missing(cells, seeds)], workers
        ):
            file.add(run)
        file.sort()
    return file.path


def regret_of(run, split="search"):
    """Regret of a run at its end, in accuracy points."""
    truth = cell_truth(run.cell)
    row = truth.rows([run.improvements[-1].choices])[0] if run.improvements else NOTHING
    return float(truth.regret(row, split))


def without_time(run):
    """What a replay must give again."""
    return run.model_copy(update={"seconds": 0.0})


def reasons(path, replays=0):
    """Why a file is refused; fails if it is not."""
    verdict = validate(path, replays)
    assert verdict.word == "refused" and not verdict.valid
    return "\n".join(verdict.problems)
