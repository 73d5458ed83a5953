"""Proxies: measured on a network and recomputed here, stored beside a table, and refused where they do not belong."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from amed_env import Precision, make_task
from amed_env.errors import InputError, TableError, UnknownNameError
from amed_env.evaluation.sensitivities import measure_sensitivity
from amed_env.evaluation.stored_proxies import MEASURES, StoredProxies
from amed_env.evaluation.table import TableEvaluator, shipped_table
from amed_env.tasks.proxies import PROXIES, Proxy, get_proxies, proxy_table

PRECISIONS = (Precision(2, 2), Precision(4, 4), Precision(8, 8))


@pytest.fixture(scope="module")
def task():
    return make_task("digits-cnn", threads=1, bits=(2, 4, 8))


@pytest.mark.parametrize("measure", MEASURES)
def test_sensitivities_fall_with_the_width_and_are_kept(task, measure, monkeypatch):
    table = task.evaluator.sensitivity(measure, PRECISIONS)
    assert table.shape == (len(task.workload), 3) and (table >= 0).all()
    assert table[:, 0].sum() > table[:, 1].sum() > table[:, 2].sum() > 0
    monkeypatch.setattr("amed_env.evaluation.estimates.measure_sensitivity", None)
    assert np.array_equal(task.evaluator.sensitivity(measure, PRECISIONS), table)


class WithUnusedHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head, self.unused = nn.Conv2d(1, 4, 3), nn.Linear(4, 3), nn.Linear(4, 2)

    def forward(self, x):
        y = torch.relu(self.body(x)).mean((2, 3))
        self.unused(y)
        return self.head(y)


@pytest.mark.parametrize("measure", MEASURES)
def test_labels_of_calibration_do_not_matter_and_what_is_unused_is_no_layer(measure, tmp_path, monkeypatch):
    monkeypatch.setenv("AMED_CACHE_DIR", str(tmp_path))
    torch.manual_seed(0)
    network, images, labels = WithUnusedHead().eval(), torch.rand(90, 1, 8, 8), torch.arange(30) % 3
    parts = {"search": (images[30:60], labels), "test": (images[60:], labels), "recipe": "nearest", "threads": 1}
    found = []
    for calibration in (images[:30], (images[:30], labels), (images[:30], 2 - labels)):
        evaluator = make_task(network=network, calibration=calibration, **parts).evaluator
        found.append(measure_sensitivity(evaluator.network, evaluator.samples("calibration"), PRECISIONS, measure, 10))
    assert np.array_equal(found[0], found[1]) and np.array_equal(found[0], found[2])
    assert evaluator.workload.layer_names == ("body", "head") and found[0].all()
    assert evaluator.kept_float == ("unused (Linear): it does not run on the example input",)


def test_squared_error_is_the_noise_to_signal_ratio_of_weights_and_inputs(task):
    evaluator = task.evaluator
    weights_only = evaluator.sensitivity("squared-error", (Precision(2, 32), Precision(32, 32)))
    for row, layer in enumerate(evaluator.network.layers.values()):
        exact, rounded = layer.layer.weight.detach().double(), layer.prepared[2].weight.double()
        ratio = float(((rounded - exact) ** 2).sum() / (exact**2).sum())
        assert weights_only[row, 0] == pytest.approx(ratio, rel=1e-6)
    assert (weights_only[:, 1] == 0).all()


def test_pairs_are_what_two_layers_do_beyond_each_alone(task):
    evaluator = task.evaluator
    pairs = evaluator.pair_divergences(PRECISIONS, 1)
    inputs = evaluator.samples("calibration").inputs[:256]
    names = task.workload.layer_names
    eight = task.workload.uniform(8)

    def log_probabilities(allocation):
        evaluator.network.select(allocation)
        with torch.no_grad():
            scores = torch.cat([evaluator.network(part) for part in inputs.split(125)])
        return scores.double().log_softmax(dim=1)

    reference = log_probabilities(eight)

    def divergence(changes):
        other = log_probabilities(eight.replace(changes))
        return float((reference.exp() * (reference - other)).sum(dim=1).mean())

    two = Precision(2, 2)
    expected = divergence({names[1]: two, names[2]: two}) - divergence({names[1]: two}) - divergence({names[2]: two})
    assert pairs[1, 0, 2, 0] == pytest.approx(expected, abs=1e-6) and abs(expected) > 1e-4
    assert np.array_equal(pairs, pairs.transpose(2, 3, 0, 1))
    assert not pairs[0, :, 2].any() and not pairs[1, :, 1].any()


@pytest.mark.parametrize("name", ["digits-cnn", "kws-dscnn"])
def test_shipped_tables_have_proxies_for_every_width_and_reach(name):
    evaluator = shipped_table(name)
    few = evaluator.table.precisions[:2]
    for measure in MEASURES:
        assert evaluator.sensitivity(measure, few).shape == (len(evaluator.workload), 2)
    far, near = (evaluator.pair_divergences(few, reach) for reach in (len(evaluator.workload), 1))
    assert np.array_equal(far[0, :, 1], near[0, :, 1]) and far[0, :, 2].any() and not near[0, :, 2].any()


def test_stored_proxies_round_trip_and_are_refused_where_they_do_not_belong(tmp_path):
    evaluator = shipped_table("digits-cnn")
    proxies, path = evaluator.proxies, tmp_path / "x.proxies.npz"
    proxies.save(path)
    again = StoredProxies.load(path, evaluator.table)
    assert np.array_equal(again.pairs, proxies.pairs) and again.fingerprint == proxies.fingerprint
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(TableError, match="damaged"):
        StoredProxies.load(path, evaluator.table)
    with pytest.raises(TableError, match="another table"):
        TableEvaluator(evaluator.table, replace(proxies, fingerprint="other"))
    with pytest.raises(TableError, match="'pairs'"):
        TableEvaluator(evaluator.table, replace(proxies, pairs=proxies.pairs[:1]))
    with pytest.raises(InputError, match="proxy 'kl'"):
        TableEvaluator(evaluator.table).sensitivity("fisher", evaluator.table.precisions)


def test_proxies_by_name():
    assert set(PROXIES.names()) == {"kl", *MEASURES}
    assert [proxy.name for proxy in get_proxies("kl, fisher")] == ["kl", "fisher"]
    assert [proxy.name for proxy in get_proxies("taylor,hessian-trace,mse")] == ["fisher", "hessian", "squared-error"]
    with pytest.raises(UnknownNameError, match="hessian"):
        get_proxies("hesian")
    task = make_task("tabular/digits-cnn")
    with pytest.raises(InputError, match="shape"):
        proxy_table(task, Proxy("short", "", lambda _: np.zeros((1, 1))))
    with pytest.raises(InputError, match="NaN"):
        proxy_table(task, Proxy("nan", "", lambda task: np.full_like(task.predicted_loss, np.nan)))
