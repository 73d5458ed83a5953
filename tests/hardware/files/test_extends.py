"""Device files that change a few fields of another device."""

import pytest
from hardware_samples import EASY_YAML, SMALL

from amed_env.errors import DeviceError
from amed_env.hardware import check_hardware, evaluate_cost, load_device
from amed_env.hardware.files.device_files import device_file_digest


@pytest.fixture
def write(tmp_path):
    def call(name, text):
        path = tmp_path / name
        path.write_text(text)
        return path

    return call


def test_a_faster_clock_and_nothing_else(write):
    path = write("fast.yaml", "extends: bitfusion\nname: fast\narray:\n  clock_mhz: 1000\n")
    fast, base = load_device(path), load_device("bitfusion")
    assert fast.name == "fast" and fast.description == base.description
    one, two = (evaluate_cost(device, SMALL, SMALL.uniform(4)) for device in (base, fast))
    assert two["cycles"] == one["cycles"] and two["latency_ms"] == pytest.approx(one["latency_ms"] / 2)
    assert fast.config.array.source == f"{base.config.array.source}; but clock_mhz: as set in fast.yaml"
    assert fast.config.dram == base.config.dram
    check_hardware(fast)


def test_files_extend_files_and_take_keys_away(write):
    write("base.yaml", EASY_YAML)
    write("wide.yaml", "extends: base.yaml\nname: wide\ndescription: Wider\narray: {cols: 8, source: made up too}\n")
    text = (
        "extends: wide.yaml\nname: quick\ndram:\n  bandwidth_bits_per_cycle: null\n  bandwidth_gb_per_s: 4\n"
        "energy:\n  mac:\n    pj_by_bits: {4: 5}\n"
    )
    quick = load_device(write("quick.yaml", text))
    assert (quick.config.array.rows, quick.config.array.cols) == (4, 8)
    assert quick.config.array.source == "made up too" and quick.description == "Wider"
    assert quick.config.bandwidth_bits_per_cycle == pytest.approx(32)
    assert quick.config.energy.mac.pj_by_bits == {2: 1, 4: 5, 8: 16}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("extends: bitfusoin\nname: x\n", "line 1: extends: unknown device 'bitfusoin'; did you mean 'bitfusion'"),
        ("name: x\nextends: absent.yaml\n", "line 2: extends: cannot read"),
        ("extends: bitfusion\n", "line 1: a device that extends another one needs a 'name'"),
        ("extends: [bitfusion]\nname: x\n", "line 1: extends: give the name"),
        ("extends: bitfusion\nname: x\narray:\n  clock: 3\n", "line 4: unknown key 'array.clock'.*'clock_mhz'"),
        ("extends: bitfusion\nname: x\narray:\n  clock_mhz: 500 MHz\n", "line 4: array.clock_mhz.*found '500 MHz'"),
        ("extends: bitfusion\nname: x\narray:\n  clock_mhz: -1\n", "line 4: array.clock_mhz"),
        ("extends: bitfusion\nname: x\narray:\n  clock_mhz: .inf\n", "line 4: array.clock_mhz"),
        ("extends: bitfusion\nname: x\narray:\n  rows: null\n", "line 4: 'array.rows' is missing"),
        ("extends: bitfusion\nname: x\nfrequency: 3\n", "line 3: unknown key 'frequency'"),
        ("extends: bitfusion\nname: x\ndram: {bandwidth_gb_per_s: 3}\n", "line 3: dram: give exactly one of"),
        ("extends: broken.yaml\nname: x\n", r"broken\.yaml, line 5: array.rows"),
        ("extends: x.yaml\nname: x\n", "extend each other in a circle"),
        ("extends: y.yaml\nname: x\n", r"circle: .*x\.yaml → .*y\.yaml"),
    ],
)
def test_faults_have_file_line_and_field(write, text, message):
    write("broken.yaml", EASY_YAML.replace("rows: 4", "rows: many"))
    write("y.yaml", "extends: x.yaml\nname: y\n")
    with pytest.raises(DeviceError, match=message):
        load_device(write("x.yaml", text))


def test_the_digest_of_a_file_covers_what_it_extends(write):
    write("base.yaml", EASY_YAML)
    path = write("x.yaml", "extends: base.yaml\nname: x\n")
    before = device_file_digest(path)
    assert device_file_digest(path) == before
    write("base.yaml", EASY_YAML.replace("rows: 4", "rows: 8"))
    assert device_file_digest(path) != before
