"""Tables as devices: the three file formats, what is wrong with them, interpolation, and the builder."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hardware_samples import SMALL
from hypothesis import given
from hypothesis import strategies as st

from amed_env import BitAllocation, Layer, Precision, Workload
from amed_env.errors import BackendError, DeviceError, UnsupportedLayerError, UnsupportedPrecisionError
from amed_env.hardware import (
    HardwareBackend,
    build_table,
    check_hardware,
    cost_table,
    csv_text,
    evaluate_cost,
    load_device,
    load_table,
)
from amed_env.hardware.tables.lookup_files import parse_csv

TWO = Workload("two", (Layer("first", "conv", m=4, n=2, k=9), Layer("second", "linear", m=1, n=3, k=8)))
OWN = """\
# format: amed-table/1
# device: board 7
layer,w_bits,a_bits,latency_ms,area:mm2
first,4,8,1.5,2
first,8,8,2.5,2
second,8,8,0.75,1
second,4,8,0.5,1
"""
AMED = ",latency_2,latency_3,latency_4,latency_8\nfirst,1,2,3,4\nsecond,0.1,0.2,0.3,0.4\n"


@pytest.fixture
def load(tmp_path):
    def write(text, name="table.csv"):
        (tmp_path / name).write_text(text)
        return load_device(tmp_path / name)

    return write


def test_own_format(load):
    device = load(OWN)
    assert device.name == "board 7" and "board 7" in device.description
    assert dict(device.metrics) == {"latency_ms": "ms", "area": "mm2"}
    cost = evaluate_cost(device, TWO, BitAllocation({"first": (4, 8), "second": (8, 8)}))
    assert cost["latency_ms"] == 2.25 and cost["area"] == 3
    assert cost_table(device, TWO, (8, 4), (8,)).metrics["latency_ms"].tolist() == [[[2.5], [1.5]], [[0.75], [0.5]]]
    check_hardware(device)
    with pytest.raises(UnsupportedPrecisionError, match="2-bit weights; it supports 4, 8"):
        evaluate_cost(device, TWO, TWO.uniform(2, 8))


def test_format_of_amed_has_equal_widths_only(load):
    device = load(AMED)
    assert [evaluate_cost(device, TWO, TWO.uniform(b))["latency_ms"] for b in (2, 3, 4, 8)] == pytest.approx(
        [1.1, 2.2, 3.3, 4.4]
    )
    with pytest.raises(UnsupportedPrecisionError, match=r"cannot run layer 'first'.* at w4a8; it supports w2a2, w3a3"):
        evaluate_cost(device, TWO, TWO.uniform(4, 8))
    check_hardware(device)


def test_format_of_haq_is_cycles_by_position(tmp_path):
    path = tmp_path / "haq.npy"
    array = np.arange(2 * 64, dtype=np.float32).reshape(2, 8, 8)
    np.save(path, array)
    device = load_device(path)
    cost = evaluate_cost(device, TWO, BitAllocation({"first": (3, 5), "second": (8, 1)}))
    assert cost["cycles"] == array[0, 2, 4] + array[1, 7, 0] and "latency_ms" not in cost.metrics
    (tmp_path / "haq.yaml").write_text("format: amed-table/1\nname: with-clock\ntable: haq.npy\nclock_mhz: 100\n")
    timed = load_device(tmp_path / "haq.yaml")
    assert timed.name == "with-clock" and timed.lookup.provenance["clock_mhz"] == "100"
    assert evaluate_cost(timed, TWO, TWO.uniform(8))["latency_ms"] == pytest.approx((63 + 127) / 100e3)
    three = Workload("three", (*TWO.layers, Layer("third", "linear", m=1, n=1, k=1)))
    with pytest.raises(UnsupportedLayerError, match=r"2 layers without names, network 'three' has 3"):
        evaluate_cost(device, three, three.uniform(8))
    check_hardware(device)


def test_arrays_with_a_json_file(tmp_path):
    np.save(tmp_path / "t.npy", np.arange(8.0).reshape(2, 2, 2, 1))
    facts = {
        "format": "amed-table/1", "layers": ["second", "first"], "weight_bits": [4, 8], "activation_bits": [8],
        "metrics": {"latency_ms": "ms", "energy_uj": "uJ"}, "provenance": {"device": "rig"},
    }  # fmt: skip
    (tmp_path / "t.json").write_text(json.dumps(facts))
    device = load_device(tmp_path / "t.npy")
    cost = evaluate_cost(device, TWO, BitAllocation({"first": (8, 8), "second": (4, 8)}))
    assert (cost["latency_ms"], cost["energy_uj"]) == (3 + 0, 7 + 4)
    facts["layers"].append("third")
    (tmp_path / "t.json").write_text(json.dumps(facts))
    with pytest.raises(DeviceError, match=r"shape \(2, 2, 2, 1\), expected \(2, 3, 2, 1\).*t.json says so"):
        load_device(tmp_path / "t.npy")
    (tmp_path / "t.json").write_text(json.dumps({**facts, "lairs": []}))
    with pytest.raises(DeviceError, match="unknown keys 'lairs'"):
        load_device(tmp_path / "t.npy")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("second,4,8", "second,8,8", "line 7: layer 'second' at w8a8 is a duplicate of line 6"),
        ("1.5", "-1.5", "line 4, column 'latency_ms': -1.5 is not finite or negative"),
        ("1.5", "nan", "line 4, column 'latency_ms': nan is not finite"),
        ("1.5", "fast", "line 4, column 'latency_ms': 'fast' is no number"),
        ("first,4,8,1.5,2", "first,4,8,1.5", "line 4: 4 values for 5 columns"),
        ("first,4,8", "first,four,8", "line 4, column 'w_bits': 'four' is no width"),
        ("first,4,8", "first,17,8", "line 4, column 'w_bits': bit-width 17 is out of range"),
        ("area:mm2", "area", "line 3: the unit of column 'area' is not known; write it behind the name"),
        ("latency_ms", "latency_ms:s", "line 3: metric 'latency_ms' is in ms, not in 's'"),
        ("w_bits", "weights:x", "line 3: columns missing: w_bits"),
        ("area:mm2", "latency_ms", "line 3: column 'latency_ms' is repeated"),
        ("first,4", '"first,4', "no valid CSV"),
    ],
)
def test_what_is_wrong_with_a_table_is_named(load, old, new, message):
    assert old in OWN
    with pytest.raises(DeviceError, match=rf"table\.csv.*{message}"):
        load(OWN.replace(old, new, 1))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty"),
        ("layer,w_bits,a_bits,latency_ms\n", "no rows below the header"),
        (AMED.replace("second", "first"), "line 3: layer 'first' is a duplicate of line 2"),
        (AMED.replace("0.4", "inf"), "line 3, column 'latency_8': inf is not finite"),
        (AMED.replace("latency_8", "latency_99"), "column 'latency_99': bit-width 99"),
    ],
)
def test_empty_tables_and_those_of_amed(load, text, message):
    with pytest.raises(DeviceError, match=message):
        load(text)


NAMED = "layer,w_bits,a_bits,latency_us,energy_mj,area:mm2\nc0,8,8,1500,2,1\npool,8,8,3,1,1\nc1,8,8,250,0.5,1\n"
OPTIONS = "format: amed-table/1\nname: t\ntable: table.csv\n"


def test_names_of_others_are_mapped_and_their_units_converted(tmp_path, load):
    load(NAMED)
    (tmp_path / "t.yaml").write_text(OPTIONS + "layers: {c0: first, c1: second, pool: null}\n")
    device = load_device(tmp_path / "t.yaml")
    assert device.metrics == {"latency_ms": "ms", "energy_uj": "uJ", "area": "mm2"}
    cost = evaluate_cost(device, TWO, TWO.uniform(8))
    assert cost["latency_ms"] == pytest.approx(1.75) and cost["energy_uj"] == pytest.approx(2500) and cost["area"] == 2
    check_hardware(device)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ("{c2: first}", r"t\.yaml: layers: .*table\.csv has no 'c2'; did you mean 'c[01]'"),
        ("{c0: first, c1: first}", "two layers of .* get the same name"),
        ("{c0: pool}", "two layers of .* get the same name"),
        ("{c0: null, c1: null, pool: null}", "the table is empty"),
        ("{c0: 3}", "line 4: layers.c0"),
    ],
)
def test_faults_of_a_mapping(tmp_path, load, layers, message):
    load(NAMED)
    (tmp_path / "t.yaml").write_text(f"{OPTIONS}layers: {layers}\n")
    with pytest.raises(DeviceError, match=message):
        load_device(tmp_path / "t.yaml")


def test_every_name_that_is_missing_or_not_used_is_listed(load):
    device = load("layer,w_bits,a_bits,latency_ms\n" + "".join(f"theirs{i},8,8,1\n" for i in range(9)))
    ours = Workload("ours", tuple(Layer(f"ours{i}", "linear", m=1, n=1, k=1) for i in range(9)))
    with pytest.raises(UnsupportedLayerError, match="If these are other names for the same layers") as caught:
        evaluate_cost(device, ours, ours.uniform(8))
    assert all(f"'{side}{i}'" in str(caught.value) for side in ("ours", "theirs") for i in range(9))


def test_a_table_with_other_names_is_still_for_its_shapes_alone(tmp_path):
    table = build_table(load_device("bitfusion"), SMALL, [Precision(8, 8)], {})
    (tmp_path / "table.csv").write_text(csv_text(table))
    names = {layer.name: f"my {layer.name}" for layer in SMALL}
    (tmp_path / "t.yaml").write_text(f"{OPTIONS}layers: {json.dumps(names)}\n")
    device = load_device(tmp_path / "t.yaml")
    renamed = Workload("renamed", tuple(replace(layer, name=names[layer.name]) for layer in SMALL))
    assert evaluate_cost(device, renamed, renamed.uniform(8))["latency_ms"] == pytest.approx(
        evaluate_cost(load_device("bitfusion"), SMALL, SMALL.uniform(8))["latency_ms"]
    )
    wider = Workload("wider", tuple(replace(layer, k=2 * layer.k, input_elements=0) for layer in renamed))
    with pytest.raises(DeviceError, match="made for other shapes"):
        evaluate_cost(device, wider, wider.uniform(8))


def test_a_metric_is_there_once(load):
    with pytest.raises(DeviceError, match="column 'latency_us' is latency_ms, which another column is too"):
        load("layer,w_bits,a_bits,latency_ms,latency_us\na,8,8,1,1000\n")


def test_arrays_in_microseconds_and_layers_without_names(tmp_path):
    np.save(tmp_path / "t.npy", np.full((2, 8, 8), 500.0))
    (tmp_path / "t.json").write_text(
        '{"format": "amed-table/1", "metrics": {"latency_us": "us"}, "layers": ["a", "b"]}'
    )
    assert load_device(tmp_path / "t.npy").lookup.metrics["latency_ms"].max() == 0.5
    (tmp_path / "t.json").unlink()
    (tmp_path / "t.yaml").write_text("format: amed-table/1\nname: t\ntable: t.npy\nlayers: {a: b}\n")
    with pytest.raises(DeviceError, match="have no names; leave 'layers' out"):
        load_device(tmp_path / "t.yaml")


def test_comments_that_a_spreadsheet_put_into_quotes_stay_comments():
    table = parse_csv('"# measured: 2024, twice",,,\nlayer,w_bits,a_bits,latency_ms\n"#1",8,8,1\n', "text")
    assert table.layers == ("#1",) and table.provenance["measured"].startswith("2024, twice")


def test_other_networks_are_refused_with_the_names(load):
    device = load(OWN)
    other = Workload("other", (TWO.layers[0], Layer("third", "linear", m=1, n=1, k=1)))
    with pytest.raises(UnsupportedLayerError, match="lacks 'third'; the network lacks 'second'"):
        evaluate_cost(device, other, other.uniform(8))
    with pytest.raises(UnsupportedLayerError, match="2 layers are not the 1 of network 'alone': the network lacks"):
        alone = Workload("alone", TWO.layers[:1])
        cost_table(device, alone, (8,), (8,))


@pytest.mark.parametrize("content", [b"no array", b"\x93NUMPY\x01\x00garbage"])
def test_damaged_arrays(tmp_path, content):
    (tmp_path / "haq.npy").write_bytes(content)
    with pytest.raises(DeviceError, match="cannot read the table"):
        load_device(tmp_path / "haq.npy")


def test_arrays_of_another_kind(tmp_path):
    for array in (np.array(["a"]), np.zeros((2, 8, 4)), np.full((2, 8, 8), -1.0)):
        np.save(tmp_path / "haq.npy", array)
        with pytest.raises(DeviceError, match=r"haq\.npy"):
            load_device(tmp_path / "haq.npy")
    np.save(tmp_path / "haq.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(DeviceError, match="allow_pickle"):
        load_device(tmp_path / "haq.npy")


def test_interpolation_is_asked_for_and_seen(tmp_path, load):
    load(AMED)
    (tmp_path / "smooth.yaml").write_text(
        "format: amed-table/1\nname: smooth\ntable: table.csv\ninterpolation: linear\n"
    )
    device = load_device(tmp_path / "smooth.yaml")
    assert "linear interpolation" in device.description
    cost = evaluate_cost(device, TWO, BitAllocation({"first": (5, 5), "second": (8, 8)}))
    assert cost["latency_ms"] == pytest.approx(3.25 + 0.4)
    assert [layer.bound for layer in cost.layers] == ["interpolated", None]
    for bits in (1, 9):
        with pytest.raises(UnsupportedPrecisionError):
            evaluate_cost(device, TWO, TWO.uniform(bits))
    grid = OWN.replace("first,4,8,1.5,2", "first,4,8,1.5,2\nfirst,4,4,1,2\nfirst,8,4,2,2").replace(
        "second,4,8,0.5,1", "second,4,8,0.5,1\nsecond,4,4,0,1\nsecond,8,4,0,1"
    )
    (tmp_path / "table.csv").write_text(grid)
    cost = evaluate_cost(load_device(tmp_path / "smooth.yaml"), TWO, BitAllocation({"first": (6, 6), "second": (4, 4)}))
    assert cost["latency_ms"] == pytest.approx((1.5 + 2.5 + 1 + 2) / 4)
    (tmp_path / "table.csv").write_text(grid.replace("first,4,4,1,2\n", "").replace("second,4,4,0,1\n", ""))
    with pytest.raises(DeviceError, match="can be interpolated only with all pairs"):
        load_device(tmp_path / "smooth.yaml")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("clock: 3", "line 4: unknown key 'clock'; did you mean 'clock_mhz'"),
        ("clock_mhz: -3", "line 4: clock_mhz"),
        ("clock_mhz: 3", "a clock turns cycles into latency_ms, but the table has latency_ms"),
        ("interpolation: cubic", "line 4: interpolation"),
    ],
)
def test_faults_of_the_options(tmp_path, load, line, message):
    load(AMED)
    (tmp_path / "t.yaml").write_text(f"format: amed-table/1\nname: t\ntable: table.csv\n{line}\n")
    with pytest.raises(DeviceError, match=message):
        load_device(tmp_path / "t.yaml")


def test_a_built_table_answers_like_its_device(tmp_path):
    device = load_device("bitfusion")
    precisions = [Precision(w, a) for w in (2, 4, 8) for a in (4, 8)]
    table = build_table(device, SMALL, precisions, {"amed_env": "0"})
    assert table.provenance["device"] == "bitfusion" and table.provenance["network"] == "small"
    (tmp_path / "built.csv").write_text(csv_text(table))
    read = load_device(tmp_path / "built.csv")
    assert dict(read.lookup.provenance) == {"format": "amed-table/1", **table.provenance}
    for allocation in (SMALL.uniform(2, 4), SMALL.uniform(8, 8)):
        assert dict(evaluate_cost(read, SMALL, allocation).metrics) == dict(
            evaluate_cost(device, SMALL, allocation).metrics
        )
    check_hardware(read, SMALL)
    check_hardware(read)
    wider = Workload("small", (*SMALL.layers[:-1], Layer("fc", "linear", m=1, n=10, k=33)))
    with pytest.raises(DeviceError, match="made for other shapes"):
        evaluate_cost(read, wider, wider.uniform(8))


def test_what_does_not_add_up_is_no_table():
    from small_task import SharedBuffer

    with pytest.raises(BackendError, match="do not add up"):
        build_table(SharedBuffer(), SMALL, [Precision(8, 8)], {})


@given(
    st.dictionaries(
        st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=8)
        | st.text("# \t\r\n,\"'a", min_size=1, max_size=4),
        st.lists(st.floats(0, 1e300), min_size=2, max_size=2),
        min_size=1,
        max_size=4,
    )
)
def test_tables_survive_their_file(costs):
    workload = Workload("any", tuple(Layer(name, "linear", m=1, n=1, k=1) for name in costs))

    class Listed(HardwareBackend):
        name = "listed"

        def layer_cost(self, layer, precision):
            return {"latency_ms": costs[layer.name][precision.weight_bits // 8]}

    table = build_table(Listed(), workload, [Precision(4, 4), Precision(8, 8)], {})
    read = parse_csv(csv_text(table), "text")
    assert read.layers == tuple(costs) and read.metrics["latency_ms"].tolist() == list(costs.values())


@given(st.text(max_size=200))
def test_no_text_escapes_as_another_error(text):
    with pytest.raises(DeviceError):
        parse_csv(text, "text")


def test_missing_files(tmp_path):
    for name in ("absent.csv", "absent.npy"):
        with pytest.raises(DeviceError, match="cannot read the table"):
            load_table(tmp_path / name)
