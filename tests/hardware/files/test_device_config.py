import pickle
import re

import pytest
import yaml
from hardware_samples import EASY_YAML
from hypothesis import given, settings
from hypothesis import strategies as st

from amed_env.errors import DeviceError
from amed_env.hardware import DeviceConfig, load_device_config, parse_device_config


def changed(old, new):
    assert EASY_YAML.count(old) == 1, f"{old!r} is not unique"
    return EASY_YAML.replace(old, new)


def test_a_device_file_becomes_typed():
    config = parse_device_config(EASY_YAML)
    assert config.name == "easy" and config.array.rows == 4 and config.array.dataflow == "os"
    assert config.precision.weight_bits == (2, 4, 8)
    assert config.energy.mac.pj_by_bits == {2: 1.0, 8: 16.0}
    assert config.bandwidth_bits_per_cycle == 16
    assert pickle.loads(pickle.dumps(config)) == config


def test_bandwidth_in_gigabytes_per_second():
    # 4 GB/s at 1 GHz are 4 bytes, 32 bits, in a cycle.
    config = parse_device_config(changed("bandwidth_bits_per_cycle: 16", "bandwidth_gb_per_s: 4"))
    assert config.bandwidth_bits_per_cycle == pytest.approx(32)


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("rows: 4", "row: 4", 5, r"unknown key 'array.row'; did you mean 'rows'"),
        ("rows: 4", "rows: 0", 5, r"array.rows: .*greater than or equal to 1.*found 0"),
        ("rows: 4", "rows: -4", 5, r"array.rows: .*found -4"),
        ("rows: 4", "rows: 4.5", 5, r"array.rows: .*found 4.5"),
        ("rows: 4", "rows: true", 5, r"array.rows: .*integer.*found True"),
        ("rows: 4", "rows: '4'", 5, r"array.rows: .*integer.*found '4'"),
        ("rows: 4", "rows:", 5, r"array.rows: .*integer.*found None"),
        ("rows: 4", "rows: [4]", 5, r"array.rows: .*integer"),
        ("dataflow: os", "dataflow: xs", 7, r"array.dataflow: .*'os'.*found 'xs'"),
        ("clock_mhz: 1000", "clock_mhz: .inf", 8, r"array.clock_mhz: .*finite|less than"),
        ("clock_mhz: 1000", "clock_mhz: .nan", 8, r"array.clock_mhz: .*found nan"),
        ("clock_mhz: 1000", "clock_mhz: 1e3", 8, r"array.clock_mhz: .*found '1e3' as text .*write 1.0e\+3"),
        ("clock_mhz: 1000", "clock_mhz: 1000000000", 8, r"array.clock_mhz: .*less than"),
        ("overhead_cycles_per_layer: 7", "overhead_cycles_per_layer: -1", 9, r"overhead_cycles_per_layer"),
        ("model: fixed", "model: fussion", 12, r"precision.model: .*'fusion'.*found 'fussion'"),
        ("weight_bits: [2, 4, 8]\n  a", "weight_bits: []\n  a", 13, r"precision.weight_bits: .*at least 1"),
        ("weight_bits: [2, 4, 8]\n  a", "weight_bits: [2, 2]\n  a", 13, r"weight_bits: a width is repeated"),
        ("weight_bits: [2, 4, 8]\n  a", "weight_bits: [2, 0]\n  a", 13, r"precision.weight_bits.1: .*found 0"),
        ("weight_bits: [2, 4, 8]\n  a", "weight_bits: 8\n  a", 13, r"precision.weight_bits: .*found 8"),
        ("weight_bits: [2, 4, 8]\n  a", "weight_bits: [2, 16]\n  a", 1, r"ends at 8 bits, .*allows 16"),
        ("ifmap_kib: 1", "ifmap_kb: 1", 18, r"unknown key 'buffers.ifmap_kb'; did you mean 'ifmap_kib'"),
        ("ifmap_kib: 1", "ifmap_kib: 0", 18, r"buffers.ifmap_kib: .*greater than 0"),
        ("bandwidth_bits_per_cycle: 16", "bandwidth_bits_per_cycle: 0", 23, r"bandwidth_bits_per_cycle"),
        ("  bandwidth_bits_per_cycle: 16\n", "", 22, r"dram: give exactly one of"),
        ("{2: 1, 8: 16}", "{2: 1, 8: -16}", 27, r"energy.mac.pj_by_bits.8: .*found -16"),
        ("{2: 1, 8: 16}", "{2: 1, 99: 16}", 27, r"energy.mac.pj_by_bits.99: .*16"),
        ("{2: 1, 8: 16}", "{two: 1, 8: 16}", 27, r"energy.mac.pj_by_bits.two: .*integer"),
        ("{2: 1, 8: 16}", "{}", 27, r"energy.mac.pj_by_bits: .*at least 1"),
        ("between: next", "between: linear", 28, r"energy.mac.between: .*'next'"),
        ("name: easy", "name: ../easy", 2, r"name: "),
        ("name: easy", "name: 4", 2, r"name: .*string"),
        ("format: amed-device/1", "format: amed-device/9", 1, r"format: .*'amed-device/1'"),
        ("description: A device for tests", "description: ' '", 3, r"description: "),
        ("description: A device for tests\n", "", 1, r"'description' is missing"),
        ("name: easy", "name: easy\nextra: 1", 3, r"unknown key 'extra'"),
        (
            "energy:\n",
            "energy:\n  leakage: {power: 3, source: x}\n",
            26,
            r"unknown key 'energy.leakage.power'; did you mean 'power_mw'\?$",
        ),
        ("name: easy", "name: easy\nname: again", 3, r"'name' duplicates line 2"),
        ("rows: 4", "rows: 4\n  rows: 5", 6, r"'rows' duplicates line 5"),
        ("name: easy", "name: easy\n1: x", 3, r"1"),
        ("name: easy", "name: easy\n? [a]\n: x", 3, r"keys are plain names"),
        ("name: easy", "<<: {a: 1}\nname: easy", 2, r"merge key"),
        ("rows: 4\n  cols: 4", "rows: &four 4\n  cols: *four", 5, r"anchors and aliases"),
        ("name: easy", "name: !!python/object/apply:os.system [true]", 2, r"no valid YAML"),
        ("name: easy", "name: [", 4, r"no valid YAML"),
    ],
)
def test_faults_are_named_with_file_line_and_field(old, new, line, message):
    with pytest.raises(DeviceError) as caught:
        parse_device_config(changed(old, new), where="my.yaml")
    text = str(caught.value)
    assert re.search(message, text), text
    assert f"my.yaml, line {line}: " in text


@pytest.mark.parametrize(
    "section", ["array", "precision", "buffers", "dram", "energy.mac", "energy.sram", "energy.dram"]
)
def test_every_section_needs_a_source(section):
    data = yaml.safe_load(EASY_YAML)
    part = data
    for key in section.split("."):
        part = part[key]
    del part["source"]
    with pytest.raises(DeviceError, match=rf"'{section}.source' is missing. Say where"):
        parse_device_config(yaml.safe_dump(data))


def test_all_faults_are_reported_at_once():
    text = changed("rows: 4", "rows: 0").replace("ifmap_kib: 1", "ifmap_kib: -1")
    with pytest.raises(DeviceError) as caught:
        parse_device_config(text, where="d")
    assert "array.rows" in str(caught.value) and "buffers.ifmap_kib" in str(caught.value)


def test_an_interpolated_table_needs_positive_energies():
    text = changed("{2: 1, 8: 16}", "{2: 0, 8: 16}").replace("between: next", "between: interpolate")
    with pytest.raises(DeviceError, match="cannot be interpolated"):
        parse_device_config(text)


@pytest.mark.parametrize("text", ["", "\n# nothing\n", "just text", "- a\n- b", "3", "null", "a: 1\n---\nb: 2", "\0"])
def test_what_is_no_mapping_is_refused(text):
    with pytest.raises(DeviceError, match=r"d: |d, line"):
        parse_device_config(text, where="d")


def test_unreadable_files_are_refused(tmp_path):
    with pytest.raises(DeviceError, match="cannot read the device file"):
        load_device_config(tmp_path / "none.yaml")
    with pytest.raises(DeviceError, match="cannot read the device file"):
        load_device_config(tmp_path)
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00rows")
    with pytest.raises(DeviceError, match="cannot read the device file"):
        load_device_config(binary)
    deep = tmp_path / "deep.yaml"
    deep.write_text("a: " + "[" * 5_000)
    with pytest.raises(DeviceError):
        load_device_config(deep)


def parses_or_complains(text):
    try:
        assert isinstance(parse_device_config(text), DeviceConfig)
    except DeviceError as error:
        assert str(error).startswith("device")


@settings(deadline=None)
@given(st.text(max_size=200))
def test_any_text_parses_or_complains(text):
    parses_or_complains(text)


# Scalars that look like dates, numbers, binary data, anchors or tags, and are none.
STRANGE_VALUES = """\
1e400 -.inf .nan 2023-99-99 0x_ 0b 1:99 12:30:45 &a *a << = ~ {} [] [[]] {1:2} ? ! % @ ` | > -
999999999999999999999999999999
"""
STRANGE_TAGS = "!!int x,!!float x,!!binary x,!!timestamp x,!!set {},!!omap [],!!null x,!!bool x,!!pairs [1],!!merge x"
junk = st.one_of(
    st.text(max_size=20),
    st.sampled_from([*STRANGE_VALUES.split(), *STRANGE_TAGS.split(",")]),
    st.integers(0, 6000).map(lambda digits: "9" * digits),
    st.floats().map(str),
)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_changed_value_parses_or_complains(data):
    lines = EASY_YAML.splitlines()
    at = data.draw(st.integers(0, len(lines) - 1))
    key, _, _ = lines[at].partition(":")
    lines[at] = f"{key}: {data.draw(junk)}"
    parses_or_complains("\n".join(lines))


@settings(max_examples=200, deadline=None)
@given(st.integers(0, len(EASY_YAML)), st.integers(0, 10), st.text(max_size=5))
def test_any_damaged_file_parses_or_complains(start, length, inserted):
    parses_or_complains(EASY_YAML[:start] + inserted + EASY_YAML[start + length :])
