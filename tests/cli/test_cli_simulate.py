import json

import pytest

LAYERS = "name,kind,m,n,k,groups\nfirst,conv,64,32,27,1\nsecond,linear,1,10,128,1\ndw,depthwise,36,1,9,16\n"


@pytest.fixture
def layers(tmp_path):
    path = tmp_path / "layers.csv"
    path.write_text(LAYERS)
    return path


def test_compute_cycles_by_hand(amed, layers):
    document = amed("simulate", "--layers", layers, "--device", "systolic-32", "--bits", 8, "--json").json
    # Output stationary on 32 x 32: ceil(M/32) ceil(N/32) folds of K + 32 + 32 - 2 cycles, less one.
    first = 2 * 1 * (27 + 62) - 1
    second = 1 * 1 * (128 + 62) - 1
    depthwise = 16 * (2 * 1 * (9 + 62) - 1)
    assert [layer["compute_cycles"] for layer in document["layers"]] == [first, second, depthwise]
    assert document["total"]["compute_cycles"] == first + second + depthwise
    assert document["total"]["bops"] == (64 * 32 * 27 + 10 * 128 + 36 * 9 * 16) * 64
    assert document["total"]["weight_kib"] == (32 * 27 + 10 * 128 + 9 * 16) / 1024
    assert document["device"] == "systolic-32" and document["network"] == "layers"
    assert {"name", "w_bits", "a_bits", "cycles", "latency_ms", "energy_uj"} <= set(document["layers"][0])
    assert {"cycles", "latency_ms", "energy_uj"} <= set(document["total"])


def test_table(amed, layers):
    answer = amed("simulate", "--layers", layers, "--bits", 4, "--activation-bits", 8)
    assert answer.code == 0 and "4 / 8" in answer.out and "total" in answer.out


def test_named_network_needs_no_data(amed, tmp_path, monkeypatch):
    monkeypatch.setenv("AMED_DATA_DIR", str(tmp_path))
    document = amed("simulate", "--network", "cifar10-resnet20", "--bits", 8, "--json").json
    assert len(document["layers"]) == 20 and document["network"] == "cifar10-resnet20"
    assert document["total"]["weight_kib"] * 1024 == 268_336


def test_own_network_with_noise_on_stdout(amed, networks):
    answer = amed("simulate", "--network", f"{networks}:make", "--bits", 8, "--json")
    assert [layer["name"] for layer in answer.json["layers"]] == ["1", "3"]
    assert "noise on stdout" in answer.err


def test_allocation_file(amed, layers, tmp_path):
    entries = {"first": {"w": 2, "a": 4}, "second": {"w": 8, "a": 8}, "dw": {"w": 4, "a": 4}}
    path = tmp_path / "allocation.json"
    path.write_text(json.dumps({"format": "amed-allocation/1", "network": None, "layers": entries}))
    document = amed("simulate", "--layers", layers, "--allocation", path, "--json").json
    assert [(i["w_bits"], i["a_bits"]) for i in document["layers"]] == [(2, 4), (8, 8), (4, 4)]
    del entries["dw"]
    path.write_text(json.dumps({"format": "amed-allocation/1", "network": None, "layers": entries}))
    answer = amed("simulate", "--layers", layers, "--allocation", path, "--json")
    assert answer.code == 2 and "'dw'" in answer.err and answer.out == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--layers", "layers.csv", "--bits", 8, "--device", "bitfuson"], "did you mean 'bitfusion'"),
        (["--layers", "absent.csv", "--bits", 8], "absent.csv"),
        (["--layers", "bad.csv", "--bits", 8], "bad.csv, line 2, column 'm'"),
        (["--layers", "layers.csv", "--bits", 8, "--device", "bad.yaml"], "bad.yaml"),
        (["--layers", "layers.csv", "--allocation", "bad.json"], "bad.json is no valid JSON"),
        (["--layers", "layers.csv"], "--allocation FILE or --bits N"),
        (["--layers", "layers.csv", "--bits", 8, "--allocation", "bad.json"], "both are given"),
        (["--bits", 8], "--network or --layers"),
        (["--layers", "layers.csv", "--bits", 32], "'bitfusion' cannot run layer 'first'"),
        (["--layers", "layers.csv", "--bits", 99], "99"),
        (["--network", "digits-cn", "--bits", 8], "did you mean 'digits-cnn'"),
    ],
)
def test_bad_input(amed, layers, tmp_path, arguments, message):
    (tmp_path / "bad.csv").write_text("name,kind,m,n,k,groups\nfirst,conv,many,32,27,1\n")
    (tmp_path / "bad.yaml").write_text("format: amed-device/1\nname: bad\n")
    (tmp_path / "bad.json").write_text("{")
    answer = amed("simulate", *arguments)
    assert answer.code == 2 and message in answer.err and answer.out == ""
    assert answer.err.startswith("error: ") and "Traceback" not in answer.err


def test_devices_side_by_side(amed, layers):
    arguments = ["simulate", "--layers", layers, "--bits", 8, "--compare", "bitfusion", "systolic-32", "eyeriss-ws"]
    answer = amed(*arguments)
    assert answer.code == 0
    assert all(name in answer.out for name in ("bitfusion", "systolic-32", "eyeriss-ws", "energy uJ", "dw, latency ms"))
    document = amed(*arguments, "--json").json
    assert [entry["device"] for entry in document["devices"]] == ["bitfusion", "systolic-32", "eyeriss-ws"]
    alone = amed("simulate", "--layers", layers, "--bits", 8, "--device", "systolic-32", "--json").json
    assert document["devices"][1]["total"] == alone["total"]
    again = amed(
        "simulate", "--compare", "bitfusion", "--compare", "systolic-32", "--layers", layers, "--bits", 8, "--json"
    )
    assert [entry["device"] for entry in again.json["devices"]] == ["bitfusion", "systolic-32"]


def test_a_device_without_the_width_stands_beside_the_others(amed, layers):
    arguments = ["simulate", "--layers", layers, "--bits", 16, "--compare", "bitfusion", "systolic-32"]
    document = amed(*arguments, "--json").json
    assert "16-bit weights" in document["devices"][1]["problem"] and document["devices"][0]["total"]["cycles"] > 0
    assert "16-bit weights" in amed(*arguments).err
    assert amed("simulate", "--layers", layers, "--bits", 9, "--compare", "bitfusion", "systolic-32").code == 2


@pytest.mark.parametrize(("suffix", "start"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
@pytest.mark.parametrize("device", ["systolic-32", "bitfusion-chained"])
def test_a_picture(amed, layers, tmp_path, suffix, start, device):
    answer = amed("simulate", "--layers", layers, "--bits", 8, "--device", device, "--plot", f"it.{suffix}")
    assert answer.code == 0 and f"wrote it.{suffix}" in answer.out
    assert (tmp_path / f"it.{suffix}").read_bytes().startswith(start)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--compare", "bitfusion", "eyeris-ws"], "did you mean 'eyeriss-ws'"),
        (["bitfusion"], "name a device with --device"),
        (["--plot", "it.gif"], "a picture ends in .png, .svg, .pdf"),
        (["--plot", "it.png", "--compare", "bitfusion"], "--plot draws one device"),
    ],
)
def test_bad_comparisons_and_pictures(amed, layers, tmp_path, arguments, message):
    answer = amed("simulate", "--layers", layers, "--bits", 8, *arguments)
    assert answer.code == 2 and message in answer.err and not list(tmp_path.glob("it.*"))
