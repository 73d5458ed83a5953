"""Quality tables: the shipped one against the real network, files that are damaged, builds that are interrupted."""

import itertools
import subprocess
import sys
import zipfile
from dataclasses import replace
from importlib.resources import files

import numpy as np
import pytest
import torch

from amed_env import BitAllocation, make_task
from amed_env.errors import AllocationError, InputError, TableError, UnknownNameError, UnsupportedPrecisionError
from amed_env.evaluation import table_building
from amed_env.evaluation.divergences import measure_divergences
from amed_env.evaluation.post_training import PostTrainingEvaluator
from amed_env.evaluation.stored_divergences import StoredDivergences
from amed_env.evaluation.table import TableEvaluator
from amed_env.evaluation.table_building import TableBuilder
from amed_env.evaluation.table_file import QualityTable, check_size
from amed_env.problem.score import DIVERGENCE, LOSS, TOP_1

TIED = [("block1.conv1", "block1.conv2"), ("block2.conv1", "block2.conv2")]


@pytest.fixture(scope="module")
def real():
    return make_task("digits-cnn", threads=1).evaluator


@pytest.fixture(scope="module")
def tabular():
    return make_task("tabular/digits-cnn")


@pytest.fixture(scope="module")
def nearest():
    return make_task("digits-cnn", recipe="nearest", threads=1).evaluator


@pytest.fixture(scope="module")
def built(nearest, tmp_path_factory):
    return TableBuilder(nearest, (8, 2), TIED, tmp_path_factory.mktemp("chunks")).build()


@pytest.fixture(scope="module")
def path(built, tmp_path_factory):
    path = tmp_path_factory.mktemp("table") / "table.npz"
    built.save(path)
    return path


@pytest.mark.parametrize("split", ["search", "test"])
def test_200_rows_of_the_shipped_table_are_what_the_network_gives(real, tabular, split):
    names = real.workload.layer_names
    drawn = np.random.default_rng(2024).choice([2, 3, 4, 8], (200, len(names)))
    allocations = [BitAllocation({n: (int(b), int(b)) for n, b in zip(names, row, strict=True)}) for row in drawn]
    for allocation, quality in zip(allocations, real.evaluate_many(allocations, split), strict=True):
        found = tabular.evaluator.evaluate(allocation, split)
        assert (found.correct, found.samples) == (quality.correct, 500)
        assert found.loss == float(np.float16(quality.loss))
        # Floats of the output layer, whose last bits depend on the processor.
        assert found.score == pytest.approx(quality.score, rel=2e-3, abs=1e-6) and found.scored_by == DIVERGENCE


@pytest.mark.parametrize(
    ("name", "split", "rows", "prefixes", "samples"),
    [
        pytest.param("kws-dscnn", "search", 60, 60, 400, marks=pytest.mark.data("kws-dscnn")),
        pytest.param("kws-dscnn", "test", 60, 60, 400, marks=pytest.mark.data("kws-dscnn")),
        pytest.param("cifar10-resnet8", "search", 30, 3, 2_000, marks=pytest.mark.data("cifar10-resnet8")),
        # Four times as many images: the same code with other samples, so fewer rows of them.
        pytest.param("cifar10-resnet8", "test", 6, 1, 8_000, marks=pytest.mark.data("cifar10-resnet8")),
    ],
)
def test_rows_of_tables_of_real_data_are_what_the_network_gives(name, split, rows, prefixes, samples):
    """Rows are drawn as random completions of random first halves, so that their evaluation can share those.

    Exactly on a processor of the kind that the table was made on. On another one, preparing the network (learned
    rounding, in float32) adds up in another order and ends at slightly other integers.
    """
    table = make_task(f"tabular/{name}").evaluator.table
    evaluator = make_task(name, threads=1).evaluator
    numbers = np.random.default_rng(2024)
    groups, choices = len(table.ties.groups), len(table.precisions)
    halves = numbers.integers(choices, size=(prefixes, groups // 2)).repeat(rows // prefixes, axis=0)
    drawn = np.hstack([halves, numbers.integers(choices, size=(rows, groups - groups // 2))])
    allocations = []
    for row in drawn:
        pairs = zip(table.ties.groups, row, strict=True)
        chosen = {layer: table.precisions[choice] for group, choice in pairs for layer in group}
        allocations.append(BitAllocation({layer: chosen[layer] for layer in evaluator.workload.layer_names}))
    positions = np.ravel_multi_index(tuple(drawn.T), (choices,) * groups)
    assert table.provenance["fingerprint"] == evaluator.fingerprint
    qualities = evaluator.evaluate_many(allocations, split)
    assert {quality.samples for quality in qualities} == {samples}
    correct, losses = [q.correct for q in qualities], [q.loss for q in qualities]
    if table.provenance["machine"]["instructions"] == torch.backends.cpu.get_cpu_capability():
        assert table.correct[split][positions].tolist() == correct
        assert table.loss[split][positions].tolist() == np.float16(losses).tolist()
    else:
        points = 100 * np.abs(table.correct[split][positions].astype(int) - correct) / samples
        assert points.mean() < 0.2 and points.max() < 2.5
        np.testing.assert_allclose(table.loss[split][positions].astype(float), losses, rtol=0.02, atol=0.02)


def test_the_shipped_table_says_how_it_was_made(real, tabular):
    made = tabular.evaluator.table.provenance
    assert made["fingerprint"] == real.fingerprint
    assert made["samples"]["test"] == real.samples("test").fingerprint()
    assert made["versions"]["torch"] and made["machine"]["processor"] and not made["in_float"]
    precisions = tabular.precisions
    assert tabular.evaluator.fingerprint != real.fingerprint  # losses are rounded
    table, network = tabular.float_quality, real.evaluate(real.workload.uniform(32))
    assert (table.correct, table.samples) == (network.correct, network.samples)
    assert table.loss == pytest.approx(network.loss, rel=1e-6)  # sums in float32, whose order depends on the processor
    assert tabular.workload == real.workload
    # On more samples than a search measures them on now.
    divergences = measure_divergences(
        real.network, real.scoring.divergence, real.samples("calibration"), precisions, real.batch_size
    )
    np.testing.assert_allclose(tabular.predicted_loss, divergences, rtol=1e-3, atol=1e-9)
    np.testing.assert_allclose(tabular.evaluator.weight_statistics(), real.weight_statistics(), rtol=1e-6)


def test_a_tabular_task_needs_neither_torch_nor_data(tmp_path):
    code = """
import sys, amed_env
task = amed_env.make_task("tabular/digits-cnn", device="bitfusion", budget={"latency": 0.5})
from amed_env.tasks.ground_truth import optimum
assert task.measure(task.uniform(4)).quality.samples == 500
assert optimum(task).quality.correct > 0
assert "torch" not in sys.modules and "sklearn" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


def test_costs_are_those_of_the_device(tabular):
    rng = np.random.default_rng(1)
    for device in ("bitfusion", "eyeriss-ws", "systolic-32", "mpic", "bops"):
        task = make_task("tabular/digits-cnn", device=device)
        for _ in range(5):
            allocation = task.allocation(rng.integers(0, 4, 8))
            assert task.measure(allocation).costs == dict(task.cost(allocation).metrics)
    mixed = task.uniform(4).replace({"stem": (8, 4)})  # which the table lacks, but not the device
    assert task.total_costs(mixed) == dict(task.cost(mixed).metrics)


def test_widths_that_a_table_lacks_are_refused():
    assert make_task("tabular/kws-dscnn").free_bits == (2, 4, 8)
    with pytest.raises(UnsupportedPrecisionError, match="has no 3 bits; it has 2, 4, 8"):
        make_task("tabular/kws-dscnn", bits=(2, 3, 4, 8))


def test_options_of_the_network_are_refused():
    for options in ({"recipe": "nearest"}, {"engine": "float"}, {"separate": True}):
        with pytest.raises(InputError, match="is a table"):
            make_task("tabular/digits-cnn", **options)
    task = make_task("tabular/digits-cnn")
    with pytest.raises(UnsupportedPrecisionError, match="the table of 'digits-cnn' has only"):
        task.evaluator.evaluate(task.workload.uniform(6))


def test_every_row_is_the_allocation_that_it_says(nearest, built):
    evaluator = TableEvaluator(built)
    assert len(built) == 2**6
    names = [
        "stem", "block1.conv1+block1.conv2", "depthwise", "pointwise", "block2.conv1+block2.conv2", "classifier"
    ]  # fmt: skip
    for row, bits in enumerate(itertools.product((2, 8), repeat=6)):
        chosen = BitAllocation({name: (b, b) for name, b in zip(names, bits, strict=True)})
        assert evaluator.table.row(chosen) == row
        if row % 9 == 0:
            full = BitAllocation({part: precision for name, precision in chosen.items() for part in name.split("+")})
            ordered = full.require_layers(nearest.workload.layer_names, "the network")
            for split in ("search", "test"):
                quality, found = nearest.evaluate(ordered, split), evaluator.evaluate(chosen, split)
                assert (found.correct, found.samples) == (quality.correct, quality.samples)
                assert found.loss == float(np.float16(quality.loss))
                assert found.score == float(np.float16(quality.score)) and found.scored_by == DIVERGENCE


def test_what_a_table_is_scored_by(built):
    names = {None: DIVERGENCE, "divergence": DIVERGENCE, "loss": LOSS, "metric": TOP_1, "top-1": TOP_1}
    for name, score in names.items():
        evaluator = TableEvaluator(built, score=name)
        assert evaluator.score == score and not evaluator.score_remarks()
        quality = evaluator.evaluate(evaluator.table.allocation(5))
        wanted = {DIVERGENCE: built.divergence, LOSS: built.loss}.get(score)
        assert quality.score == (quality.accuracy if wanted is None else float(wanted["search"][5]))
        assert quality.accuracy == built.correct["search"][5] / 500 and quality.metrics == {"top-1": quality.accuracy}
        assert (
            evaluator.evaluate(evaluator.workload.uniform(32)).score
            == {
                DIVERGENCE: 0.0,
                LOSS: built.float_quality["search"].loss,
                TOP_1: built.float_quality["search"].accuracy,
            }[score]
        )
    with pytest.raises(UnknownNameError, match="macro-f1"):
        TableEvaluator(built, score="macro-f1")


def test_tables_without_divergences_are_scored_by_accuracy_and_say_so(tabular):
    assert tabular.score == DIVERGENCE and not tabular.evaluator.score_remarks()
    plain = replace(tabular.evaluator.table, divergence=None)
    evaluator = TableEvaluator(plain)
    assert evaluator.score == TOP_1 and "holds no divergences, so accuracy" in evaluator.score_remarks()[0]
    assert not TableEvaluator(plain, score="metric").score_remarks()
    with pytest.raises(TableError, match="holds no divergence; it holds top-1, loss"):
        TableEvaluator(plain, score="divergence")
    with pytest.raises(InputError, match="other metrics belong to the task of the network itself, 'digits-cnn'"):
        make_task("tabular/digits-cnn", metrics=["macro-f1"])


def test_only_scores_by_divergence_depend_on_the_divergences(built):
    changed = {split: values + np.float16(1) for split, values in built.divergence.items()}
    other = replace(built, divergence=changed)
    for score in ("metric", "loss"):
        assert TableEvaluator(other, score=score).fingerprint == TableEvaluator(built, score=score).fingerprint
    assert TableEvaluator(other).fingerprint != TableEvaluator(built).fingerprint


def test_a_table_without_divergences_can_still_be_built(nearest, tmp_path, built):
    splits = nearest._splits
    accuracy = PostTrainingEvaluator(nearest.traced, splits, "nearest", threads=1, score="metric")
    found = TableBuilder(accuracy, (8, 2), TIED, tmp_path / "chunks").build()
    assert found.divergence is None
    for split in ("search", "test"):
        np.testing.assert_array_equal(found.correct[split], built.correct[split])
    found.save(tmp_path / "table.npz")
    assert QualityTable.load(tmp_path / "table.npz").digest == found.digest
    with pytest.raises(TableError, match="another table"):
        TableBuilder(nearest, (8, 2), TIED, tmp_path / "chunks")
    with pytest.raises(TableError, match="built again without divergences"):
        StoredDivergences.of(found, built)


def test_divergences_come_back_for_the_table_that_they_repeat(built, path, tmp_path):
    stored = StoredDivergences.of(built, QualityTable.load(path))
    assert stored.samples == {"search": 500, "test": 500} and stored.provenance["share_of_equal_counts"] == 1
    file = tmp_path / "divergences.npz"
    stored.save(file)
    table = StoredDivergences.load(file).added_to(QualityTable.load(path))
    assert table.digest == built.digest and TableEvaluator(table).fingerprint == TableEvaluator(built).fingerprint
    for split in ("search", "test"):
        np.testing.assert_array_equal(table.divergence[split], built.divergence[split])
    StoredDivergences.load(file).save(tmp_path / "again.npz")
    assert (tmp_path / "again.npz").read_bytes() == file.read_bytes()


def test_divergences_of_something_else_are_refused(built, path, tmp_path, tabular):
    table = QualityTable.load(path)
    stored = StoredDivergences.of(built, table)
    with pytest.raises(TableError, match="belong to another table"):
        stored.added_to(tabular.evaluator.table)
    for changed in (
        {"network_and_calibration": "other"},
        {"samples": {**table.provenance["samples"], "search": "other"}},
    ):
        with pytest.raises(TableError, match="another network, other allocations or other samples"):
            StoredDivergences.of(built, replace(table, provenance={**table.provenance, **changed}))
    with pytest.raises(TableError, match="another network, other allocations or other samples"):
        StoredDivergences.of(built, tabular.evaluator.table)
    stored.save(tmp_path / "good.npz")
    wrong = tmp_path / "wrong.npz"
    change_a_byte(tmp_path / "good.npz", wrong, "search.npy")
    with pytest.raises(TableError, match="checksum"):
        StoredDivergences.load(wrong)
    with pytest.raises(TableError, match="format"):
        StoredDivergences.load(path)


def test_a_build_goes_on_where_it_stopped(nearest, built, tmp_path, monkeypatch):
    monkeypatch.setattr(table_building, "CHUNK_ROWS", 24)
    asked = []
    evaluate_many = nearest.evaluate_many

    def counted(allocations, split="search", **options):
        asked.extend(allocations if split == "search" else [])
        return evaluate_many(allocations, split, **options)

    monkeypatch.setattr(nearest, "evaluate_many", counted)
    assert TableBuilder(nearest, (2, 8), TIED, tmp_path).build(rows=40) is None
    assert len(asked) == 40
    (tmp_path / "00000024.npy").write_bytes(b"damaged")
    seen = []
    again = TableBuilder(nearest, (2, 8), TIED, tmp_path).build(lambda done, total: seen.append((done, total)))
    assert len(asked) == 40 + 40 and seen == [(24, 64), (48, 64), (64, 64)]
    for split in ("search", "test"):
        np.testing.assert_array_equal(again.correct[split], built.correct[split])
        np.testing.assert_array_equal(again.loss[split], built.loss[split])
        np.testing.assert_array_equal(again.divergence[split], built.divergence[split])
    with pytest.raises(TableError, match="another table"):
        TableBuilder(nearest, (2, 4), TIED, tmp_path)


def test_more_samples_than_the_table_can_count_are_refused(nearest, tmp_path, monkeypatch):
    monkeypatch.setattr(table_building, "MOST_SAMPLES", 499)
    with pytest.raises(TableError, match="search split has 500 samples; a table counts up to 499"):
        TableBuilder(nearest, (2, 8), TIED, tmp_path)


def test_predicted_loss_of_tied_layers_is_the_sum_of_theirs(nearest, built):
    alone = nearest.predicted_loss(built.precisions)
    np.testing.assert_allclose(built.predicted_loss[1], alone[1] + alone[2])
    assert built.weight_statistics[1] == nearest.weight_statistics()[1:3].max()


@pytest.mark.parametrize("name", ["digits-cnn", "cifar10-resnet8", "kws-dscnn"])
def test_shipped_tables_have_divergences_that_fit_their_accuracies(name):
    task = make_task(f"tabular/{name}")
    table = task.evaluator.table
    assert task.score == DIVERGENCE
    for split in ("search", "test"):
        worst, best = table.divergence[split].argmax(), table.divergence[split].argmin()
        assert table.correct[split][best] > table.correct[split][worst]
        # Ranks, by numpy: of 500 samples many allocations have equally many correct ones.
        ranks = [np.argsort(np.argsort(column)) for column in (table.divergence[split], table.correct[split])]
        assert np.corrcoef(*ranks)[0, 1] < -0.6
    stored = files("amed_env.evaluation") / "tables" / f"{name}.divergences.npz"
    assert StoredDivergences.load(stored).provenance["share_of_equal_counts"] > 0.75


@pytest.mark.parametrize("name", ["digits-cnn", "cifar10-resnet8", "kws-dscnn"])
def test_shipped_tables_keep_the_digests_by_which_results_name_them(name):
    with np.load(files("amed_env.evaluation") / "tables" / f"{name}.npz", allow_pickle=False) as archive:
        written = archive["sha256"].tobytes().hex()
    assert make_task(f"tabular/{name}").evaluator.table.digest == written


def test_a_file_comes_back_whole(built, path, tmp_path):
    found = QualityTable.load(path)
    assert found.digest
    assert found.ties == built.ties and found.precisions == built.precisions
    assert found.float_quality == built.float_quality and found.provenance == built.provenance
    np.testing.assert_array_equal(found.correct["test"], built.correct["test"])
    assert found.divergence is None  # which has a file of its own
    found.save(tmp_path / "again.npz")
    assert (tmp_path / "again.npz").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("damage", ["empty", "cut", "text", "missing"])
def test_damaged_files_are_refused(path, tmp_path, damage):
    content = path.read_bytes()
    wrong = tmp_path / "wrong.npz"
    if damage != "missing":
        wrong.write_bytes({"empty": b"", "cut": content[: len(content) // 2], "text": b"hello"}[damage])
    with pytest.raises(TableError, match=r"wrong\.npz"):
        QualityTable.load(wrong)


def change_a_byte(source, target, member):
    with zipfile.ZipFile(source) as read, zipfile.ZipFile(target, "w") as written:
        for name in read.namelist():
            content = bytearray(read.read(name))
            if name == member:
                content[-70] ^= 1
            written.writestr(name, bytes(content))


def test_a_changed_number_is_noticed(path, tmp_path):
    wrong = tmp_path / "wrong.npz"
    change_a_byte(path, wrong, "search_correct.npy")
    with pytest.raises(TableError, match="checksum"):
        QualityTable.load(wrong)


def test_what_a_table_lacks_is_named(built):
    evaluator = TableEvaluator(built, score="metric")
    with pytest.raises(UnsupportedPrecisionError, match="layer 'stem' has w4a4"):
        evaluator.evaluate(evaluator.workload.uniform(4))
    with pytest.raises(AllocationError, match="does not fit"):
        evaluator.evaluate(built.ties.full.uniform(8))
    with pytest.raises(UnsupportedPrecisionError, match="w3a3"):
        evaluator.predicted_loss([(2, 2), make_task("tabular/digits-cnn").precisions[1]])
    assert evaluator.evaluate(evaluator.workload.uniform(32), "test") == built.float_quality["test"]
    with pytest.raises(InputError, match="unknown split"):
        evaluator.evaluate(evaluator.workload.uniform(8), "calibration")


def test_tables_of_too_many_rows_are_refused():
    assert check_size(10, 3) == 59_049
    with pytest.raises(TableError, match=r"1,099,511,627,776 allocations"):
        check_size(20, 4)
