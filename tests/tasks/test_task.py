"""Tasks: budgets on devices, own networks, wrong input; and the repair of allocations."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_task import FormulaEvaluator, SharedBuffer, all_choices, formula_task
from torch import nn

import amed_env
from amed_env import Task
from amed_env.envs import LayerWiseEnv
from amed_env.errors import (
    AllocationError,
    BudgetError,
    DataError,
    InputError,
    NetworkError,
    UnknownNameError,
    UnsupportedPrecisionError,
)
from amed_env.hardware import load_device
from amed_env.problem.objective import parse_budgets
from amed_env.tasks.catalogue import TASKS, named_workload
from amed_env.tasks.make import import_task
from amed_env.tasks.parts import import_workload
from amed_env.tasks.repair import repair


def small_network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=4), nn.Flatten(), nn.Linear(64, 3))


def small_data(seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(40, 1, 8, 8, generator=generator), torch.arange(40) % 3


def own_task(**changes):
    arguments = {
        "network": small_network(),
        "calibration": small_data(0)[0],
        "search": small_data(1),
        "test": small_data(2),
        "recipe": "nearest",
        **changes,
    }
    return amed_env.make_task(**arguments)


def test_relative_and_absolute_budgets_mean_the_same():
    eight_bit = formula_task().reference_cost
    relative = formula_task(budget={"latency": 0.5, "memory": 0.6}).limits
    absolute = formula_task(
        budget={"latency": f"{500 * eight_bit['latency_ms']}us", "memory": f"{0.6 * eight_bit['weight_kib'] * 1024}B"}
    ).limits
    assert relative == pytest.approx(absolute)


def test_the_reported_smallest_value_is_reachable_and_nothing_below_is():
    with pytest.raises(BudgetError) as caught:
        amed_env.make_task("digits-cnn", device="systolic-32", budget={"latency": 0.5})
    reported = float(str(caught.value).split("latency=")[-1].split(" ")[0])
    task = amed_env.make_task("digits-cnn", device="systolic-32", budget={"latency": reported})
    assert task.limits["latency_ms"] < task.reference_cost["latency_ms"]
    with pytest.raises(BudgetError):
        task.with_budget({"latency": reported - 0.001})


def test_budgets_that_contradict_each_other_are_refused_with_the_value_that_is_left():
    """A device on which 2 bits are slow and 8 bits are large, so that the two cheapest ways differ."""

    class SlowTwoBits(amed_env.HardwareBackend):
        def layer_cost(self, layer, precision):
            return {"latency_ms": {2: 4.0, 4: 2.0, 8: 1.0}[precision.weight_bits]}

    task = formula_task(2, device=SlowTwoBits())
    assert task.with_budget({"latency": 2.0, "memory": 0.5}).limits
    with pytest.raises(BudgetError, match=r"together with.*smallest reachable"):
        task.with_budget({"latency": 1.2, "memory": 0.4})
    feasible = [
        c
        for c in itertools.product((2, 4, 8), repeat=2)
        if sum({2: 4, 4: 2, 8: 1}[b] for b in c) <= 2.4
        and sum(layer.weight_elements * b for layer, b in zip(task.workload, c, strict=True))
        <= 0.4 * 8 * task.workload.weight_elements
    ]
    assert not feasible


def test_a_device_that_lacks_a_width_or_a_metric_is_refused():
    with pytest.raises(UnsupportedPrecisionError, match=r"'layer0'.*16-bit"):
        formula_task(device="systolic-32", bits=(8, 16))
    with pytest.raises(BudgetError, match="reports no energy_uj"):
        formula_task(budget={"energy": 0.5})

    class FourOnly(amed_env.HardwareBackend):
        bits = (2, 4)

        def layer_cost(self, layer, precision):
            return {"latency_ms": 1.0}

    # Relative budgets are factors of what stands for 8 bit there: of 4 bit.
    with pytest.raises(BudgetError, match=r"latency=1\.0000 of uniform 8 bit, as far as the device"):
        formula_task(device=FourOnly(), bits=(2, 4), budget={"latency": 0.5})
    assert formula_task(device=FourOnly(), bits=(2, 4), budget={"latency": 1.5}).limits == {"latency_ms": 6.0}
    assert formula_task(device=FourOnly(), bits=(2, 4), budget={"latency": "5ms"}).limits == {"latency_ms": 5.0}


def test_widths_to_choose_from_are_checked():
    for bits in [(8,), (4, 4), (0, 8), (2.5, 8), ()]:
        with pytest.raises(AllocationError):
            formula_task(bits=bits)
    assert formula_task(bits=(8, 2, 4)).bits == (2, 4, 8)


def test_choices_and_allocations_are_inverse():
    task = formula_task(3, separate=True)
    for choices in all_choices(task)[::37]:
        assert list(task.choices(task.allocation(choices))) == list(choices)
    with pytest.raises(AllocationError, match="w3a3"):
        task.choices(task.workload.uniform(3))


@pytest.mark.parametrize("activation_bits", [8, 32])
def test_weights_alone_are_chosen_where_activations_have_one_width(activation_bits):
    evaluator, budgets = FormulaEvaluator(5), parse_budgets({"memory": 0.5})
    backend = load_device("memory")
    task = Task("formula", evaluator, backend, (2, 3, 4, 8), activation_bits=activation_bits, budgets=budgets)
    assert [tuple(precision) for precision in task.precisions] == [(b, activation_bits) for b in (2, 3, 4, 8)]
    assert task.choosable.all() and task.uniform(3) == task.workload.uniform(3, activation_bits)
    for agent in ("random", "greedy", "milp", "tpe", "local", "evolution", "annealing", "amed"):
        result = amed_env.make_agent(agent).search(task, 12, 0)
        assert {precision.activation_bits for t in result.trials for precision in t.allocation.values()} == {
            activation_bits
        }
        assert task.feasible(result.best.costs) and result.to_json()["activation_bits"] == activation_bits
    env = LayerWiseEnv(task)
    env.reset(seed=0)
    for _ in range(5):
        *_, info = env.step(int(np.flatnonzero(env.action_masks())[-1]))
    assert info["costs"]["weight_kib"] <= task.limits["weight_kib"] * (1 + 1e-9)


def test_one_width_of_activations_does_not_go_with_separate_widths():
    with pytest.raises(AllocationError, match="leave separate out"):
        Task("formula", FormulaEvaluator(), load_device("memory"), activation_bits=8, separate=True)
    with pytest.raises(InputError, match="one width a layer"):
        amed_env.make_task("tabular/digits-cnn", activation_bits=8)


def test_costs_of_the_table_are_those_of_the_device():
    task = amed_env.make_task("digits-cnn", device="eyeriss-ws")
    rng = np.random.default_rng(0)
    for _ in range(10):
        choices = rng.integers(4, size=8)
        whole = task.cost(task.allocation(choices)).metrics
        for metric, table in task.costs.items():
            assert table[np.arange(8), choices].sum() == pytest.approx(whole[metric])


def test_named_tasks_have_the_published_shapes_without_any_data(monkeypatch, tmp_path):
    monkeypatch.setenv("AMED_DATA_DIR", str(tmp_path))
    workload = named_workload("cifar10-resnet20")
    assert len(workload) == 20 and workload.weight_elements == 268_336 and workload.macs == 40_551_040
    digits = named_workload("digits-cnn")
    assert len(digits) == 8 and {layer.kind for layer in digits} == {"conv", "depthwise", "linear"}
    assert "amed fetch" in TASKS.get("cifar10-resnet20").missing()
    with pytest.raises(amed_env.AmedError, match="amed fetch"):
        amed_env.make_task("cifar10-resnet20")


def test_own_networks_become_tasks():
    task = own_task(budget={"memory": 0.5})
    assert [layer.kind for layer in task.workload] == ["conv", "depthwise", "linear"]
    assert task.network == "Sequential"
    inputs, labels = small_data(1)
    with torch.no_grad():
        correct = int((small_network()(inputs).argmax(1) == labels).sum())
    assert task.float_quality.correct == correct and task.float_quality.samples == 40
    assert amed_env.make_agent("greedy").search(task, 3).best is not None


def test_torch_data_sets_and_labelled_calibration_are_taken_too():
    parts = {
        name: torch.utils.data.TensorDataset(*small_data(seed))
        for seed, name in enumerate(("calibration", "search", "test"))
    }
    assert own_task(**parts).float_quality == own_task().float_quality


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"calibration": None}, DataError, "needs calibration samples"),
        ({"search": (torch.zeros(0, 1, 8, 8), torch.zeros(0, dtype=torch.int64))}, DataError, "no samples"),
        ({"search": small_data(1)[0], "score": "metric"}, DataError, "needs labels, and the search samples have none"),
        ({"search": small_data(2)}, DataError, "also in the"),
        ({"search": (small_data(1)[0], torch.full((40,), 7))}, DataError, "label 7"),
        ({"search": (small_data(1)[0], torch.zeros(40, dtype=torch.int64))}, DataError, "one class"),
        ({"calibration": small_data(0)[0] * float("nan")}, DataError, "NaN"),
        ({"calibration": torch.rand(10, 1, 9, 9)}, DataError, "shape"),
        ({"network": "resnet"}, NetworkError, "torch.nn.Module"),
        ({"network": nn.Flatten()}, NetworkError, "no layer to quantize"),
        ({"network": nn.Sequential(nn.Flatten(), nn.Linear(9, 3))}, NetworkError, "does not run"),
        ({"device": "bitfusoin"}, UnknownNameError, "'bitfusion'"),
    ],
)
def test_wrong_input_is_named(changes, error, message):
    with pytest.raises(error, match=message):
        own_task(**changes)


def test_names_and_networks_are_not_mixed():
    with pytest.raises(InputError, match="neither"):
        amed_env.make_task()
    with pytest.raises(InputError, match="search"):
        amed_env.make_task("digits-cnn", search=small_data(1))
    with pytest.raises(UnknownNameError, match="'digits-cnn'"):
        amed_env.make_task("digits_cnn")


def test_functions_that_return_a_network(tmp_path, monkeypatch):
    (tmp_path / "own_networks.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def good():\n"
        "    parts = {n: (torch.rand(6, 5, generator=torch.Generator().manual_seed(i)), torch.arange(6) % 2)\n"
        "             for i, n in enumerate(('calibration', 'search', 'test'))}\n"
        "    return {'network': nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2)), **parts}\n"
        "def fails():\n    raise RuntimeError('no such file')\n"
        "def wrong():\n    return 3\n",
        encoding="utf-8",
    )
    monkeypatch.chdir(tmp_path)
    task = import_task("own_networks:good", device="bitfusion", budget={"memory": 0.5})
    assert task.network == "own_networks.good" and len(task.workload) == 2
    assert import_workload("own_networks:good") == task.workload
    for path, message in [
        ("own_networks:fails", "no such file"),
        ("own_networks:wrong", "returned int"),
        ("own_networks:godo", "'good'"),
        ("own_networks", "package.module:name"),
    ]:
        with pytest.raises(InputError, match=message):
            import_task(path)


@given(st.integers(0, 2**32 - 1), st.floats(0.25, 0.95))
def test_repair_changes_the_fewest_layers(seed, share):
    task = formula_task(3)
    limits = {"latency_ms": share * task.reference_cost["latency_ms"] + 1e-12}
    choices = np.random.default_rng(seed).integers(3, size=3)
    table, every = task.costs["latency_ms"], all_choices(task)
    within = every[table[np.arange(3), every].sum(axis=1) <= limits["latency_ms"]]
    repaired = repair(task, choices, limits)
    assert table[np.arange(3), repaired].sum() <= limits["latency_ms"] * (1 + 1e-6)
    changes = (within != choices).sum(axis=1)
    assert (repaired != choices).sum() == changes.min()
    loss = task.predicted_loss[np.arange(3), within].sum(axis=1)
    best = loss[changes == changes.min()].min()
    assert task.predicted_loss[np.arange(3), repaired].sum() == pytest.approx(best)


def test_repair_gives_up_where_nothing_fits():
    task = formula_task(3, device=SharedBuffer())
    assert repair(task, np.array([2, 2, 2]), {"latency_ms": 1e-12}) is None
    assert repair(formula_task(3), np.array([2, 2, 2]), {"latency_ms": 1e-12}) is None


def test_what_stays_in_float_is_listed_with_the_reason():
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.PReLU(), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 3)).eval()
    task = own_task(network=network)
    assert task.workload.layer_names == ("0", "4")
    assert [line.partition(":")[0] for line in task.evaluator.kept_float] == ["1 (PReLU)", "2 (BatchNorm2d)"]
    document = amed_env.make_agent("uniform").search(task, 3).to_json()
    assert document["kept_float"] == list(task.evaluator.kept_float)
