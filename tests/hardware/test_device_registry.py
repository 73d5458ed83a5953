import importlib.metadata
import pickle
import subprocess
import sys

import pytest
import yaml
from hardware_samples import EASY_YAML, SMALL

from amed_env.errors import DeviceError, InputError, PluginError, UnknownNameError
from amed_env.hardware import HardwareBackend, device_names, evaluate_cost, list_devices, load_device, register_hardware
from amed_env.hardware import listing as listing_module
from amed_env.hardware import names as names_module
from amed_env.hardware import registry as registry_module
from amed_env.hardware.names import BUILT_IN, DEVICES, GROUP, shipped_files

SHIPPED = [
    *("bit-serial", "bitfusion", "bitfusion-published", "bops", "cortex-m4", "edge-tpu-like", "esp32-s3", "eyeriss"),
    *("eyeriss-ws", "gap8", "memory", "mpic", "stm32h7", "stm32l4", "systolic-32"),
]


class Mine(HardwareBackend):
    """A device of mine.

    With more to say.
    """

    def layer_cost(self, layer, precision):
        return {"latency_ms": 1.0}


class NeedsArguments(HardwareBackend):
    def __init__(self, port):
        self.port = port


@pytest.fixture
def mine():
    cls = type("Registered", (Mine,), {"__doc__": Mine.__doc__})
    register_hardware("my-device")(cls)
    yield cls
    DEVICES.unregister("my-device")


def test_hardware_never_imports_torch():
    program = (
        "import sys, amed_env.hardware as h; h.list_devices(); h.check_hardware(h.load_device('bitfusion')); "
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_devices_load_under_their_file_name(name):
    device = load_device(name)
    assert device.name == name
    assert pickle.loads(pickle.dumps(device)).config == device.config
    assert evaluate_cost(device, SMALL, SMALL.uniform(8)).device == name


def test_the_listing_has_everything_with_a_description(mine):
    listing = list_devices()
    assert set(SHIPPED) | {"my-device"} <= set(listing) == set(device_names())
    assert all(info.error is None for info in listing.values())
    for name in (*SHIPPED, *BUILT_IN):  # the listing reads neither the whole file nor the class
        assert listing[name].description == load_device(name).description.partition("\n")[0]
    assert listing["bitfusion"].source == "file" and "Bit Fusion" in listing["bitfusion"].description
    assert (listing["my-device"].source, listing["my-device"].description) == ("registered", "A device of mine.")


def test_registered_devices_carry_their_name(mine):
    assert load_device("my-device").name == "my-device"
    assert mine().name == "my-device"
    assert evaluate_cost(load_device("my-device"), SMALL, SMALL.uniform(8))["latency_ms"] == 8


def test_names_are_taken_once(mine):
    with pytest.raises(InputError, match="registered already"):
        register_hardware("my-device")(Mine)
    with pytest.raises(InputError, match="shipped with amed_env"):
        register_hardware("bitfusion")(Mine)
    for wrong in (Mine(), dict, "Mine", None):
        with pytest.raises(InputError, match="no subclass of HardwareBackend"):
            register_hardware("other")(wrong)


def test_a_device_is_given_in_many_ways(tmp_path, monkeypatch):
    device = Mine()
    assert load_device(device) is device
    assert isinstance(load_device(Mine), Mine)
    path = tmp_path / "easy.yaml"
    path.write_text(EASY_YAML)
    assert load_device(path).name == load_device(str(path)).name == "easy"
    (tmp_path / "my_hardware_module.py").write_text(
        "from amed_env.hardware import HardwareBackend\n"
        "class Fast(HardwareBackend):\n"
        "    def layer_cost(self, layer, precision):\n"
        "        return {'latency_ms': 0.0}\n"
        "ready = Fast()\n"
        "number = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    assert load_device("my_hardware_module:Fast").name == "Fast"
    assert load_device("my_hardware_module:ready").name == "Fast"
    assert sys.modules["my_hardware_module"].ready.name == "unnamed"  # an instance stays as its module made it
    with pytest.raises(InputError, match="is 3; expected a subclass") as caught:
        load_device("my_hardware_module:number")
    assert caught.value.exit_code == 2
    with pytest.raises(UnknownNameError, match="'Fast'"):
        load_device("my_hardware_module:Fastt")
    with pytest.raises(InputError, match="cannot import"):
        load_device("no_such_module_anywhere:Fast")


@pytest.mark.parametrize(("typo", "nearest"), [("bitfusoin", "bitfusion"), ("eyeris-ws", "eyeriss-ws")])
def test_typos_name_the_nearest_device(typo, nearest):
    with pytest.raises(UnknownNameError, match=f"did you mean '{nearest}'") as caught:
        load_device(typo)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("wrong", [None, 3, b"bitfusion", ["bitfusion"]])
def test_what_is_no_device_is_refused(wrong):
    with pytest.raises(InputError, match="is no device"):
        load_device(wrong)


def test_files_and_classes_that_do_not_work_say_why(tmp_path):
    with pytest.raises(DeviceError, match="cannot read the device file"):
        load_device(tmp_path / "none.yaml")
    with pytest.raises(PluginError, match="port"):
        load_device(NeedsArguments)
    with pytest.raises(InputError, match="expected a subclass of HardwareBackend"):
        load_device(dict)


def test_one_broken_plug_in_never_hides_the_others(monkeypatch, tmp_path):
    (tmp_path / "exits_on_import.py").write_text("import sys\nsys.exit(3)\n")
    monkeypatch.syspath_prepend(tmp_path)
    points = importlib.metadata.EntryPoints(
        importlib.metadata.EntryPoint(name, value, GROUP)
        for name, value in [
            ("good", f"{__name__}:Mine"),
            ("missing-module", "no_such_module_anywhere:Device"),
            ("missing-class", f"{__name__}:NoSuchDevice"),
            ("exits", "exits_on_import:Device"),
            ("needs-arguments", f"{__name__}:NeedsArguments"),
            ("no-device", "collections:OrderedDict"),
        ]
    )
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: points.select(group=group))
    listing = list_devices()
    assert set(SHIPPED) <= {name for name, info in listing.items() if info.error is None}
    assert listing["good"].error is None and listing["good"].source == "plug-in"
    for name in ("missing-module", "missing-class", "exits", "needs-arguments", "no-device"):
        assert listing[name].error, name
    assert load_device("good").name == "good"
    with pytest.raises(PluginError, match="missing-module"):
        load_device("missing-module")
    with pytest.raises(InputError, match=r"exits_on_import.*SystemExit: 3"):
        load_device("exits_on_import:Device")


def test_a_broken_shipped_file_hides_no_other_and_names_its_line(monkeypatch, tmp_path):
    (tmp_path / "broken.yaml").write_text(EASY_YAML.replace("rows: 4", "rows: many"))
    (tmp_path / "easy.yaml").write_text(EASY_YAML)
    files = {path.stem: path for path in tmp_path.iterdir()}
    for module in (names_module, listing_module, registry_module):
        monkeypatch.setattr(module, "shipped_files", lambda: files)
    assert list_devices()["easy"].error is None
    with pytest.raises(DeviceError, match=r"broken\.yaml, line 5"):
        load_device("broken")


def test_every_constant_of_a_shipped_device_has_a_source():
    folder = shipped_files()
    assert sorted(folder) == SHIPPED
    for entry in folder.values():
        sections = sections_with_numbers(yaml.safe_load(entry.read_text()))
        assert sections and all(len(section["source"]) > 20 for section in sections)


def sections_with_numbers(section):
    """The innermost named sections of a device file; `energy` is a section of sections."""
    inner = [value for value in section.values() if isinstance(value, dict)]
    found = [part for value in inner for part in ([value] if "source" in value else sections_with_numbers(value))]
    return found or ([section] if inner == [] else [])
