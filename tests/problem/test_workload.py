import pytest
from hypothesis import given
from hypothesis import strategies as st

from amed_env import BitAllocation, Layer, Workload
from amed_env.errors import AllocationError, WorkloadError

HEADER = "name,kind,m,n,k,groups\n"
SIZES = st.integers(1, 5000)
# A cell is stripped when it is read; NUL and a lone carriage return are not what a CSV file can hold.
NAMES = (
    st.text(st.characters(exclude_characters="\0\r", exclude_categories=("Cs",)), min_size=1, max_size=10)
    .map(str.strip)
    .filter(bool)
)


@st.composite
def layers(draw):
    kind = draw(st.sampled_from(["conv", "depthwise", "linear", "matmul"]))
    n = 1 if kind == "depthwise" else draw(SIZES)
    counts = {key: draw(st.integers(0, 10**6)) for key in ("input_elements", "weight_elements", "output_elements")}
    return Layer(draw(NAMES), kind, draw(SIZES), n, draw(SIZES), draw(st.integers(1, 64)), **counts)


@given(st.lists(layers(), min_size=1, max_size=6, unique_by=lambda layer: layer.name))
def test_csv_round_trip(found):
    workload = Workload("net", tuple(found))
    assert Workload.parse_csv(workload.to_csv(), "net") == workload


def test_products_and_elements_by_hand():
    # 3x3 convolution, 16 -> 32 channels, 8x8 output; a depthwise 3x3 over 32 channels; 64 -> 10 classes.
    conv = Layer("conv", "conv", m=64, n=32, k=16 * 9)
    depthwise = Layer("dw", "depthwise", m=64, n=1, k=9, groups=32)
    linear = Layer("fc", "linear", m=1, n=10, k=64)
    assert [layer.macs for layer in (conv, depthwise, linear)] == [294_912, 18_432, 640]
    assert [layer.weight_elements for layer in (conv, depthwise, linear)] == [4608, 288, 640]
    assert [layer.output_elements for layer in (conv, depthwise, linear)] == [2048, 2048, 10]
    assert [layer.input_elements for layer in (conv, depthwise, linear)] == [9216, 18_432, 64]
    assert depthwise.out_channels == 32
    workload = Workload("net", (conv, depthwise, linear))
    assert workload.macs == 294_912 + 18_432 + 640
    allocation = BitAllocation({"conv": (8, 8), "dw": (4, 8), "fc": (2, 3)})
    assert workload.bops(allocation) == 294_912 * 64 + 18_432 * 32 + 640 * 6
    assert workload.weight_kib(allocation) == pytest.approx((4608 * 8 + 288 * 4 + 640 * 2) / 8192)
    assert workload.weight_elements == 4608 + 288 + 640


def test_channels_of_a_traced_convolution():
    layer = Layer("conv", "conv", m=64, n=8, k=9 * 4, groups=2, kernel=(3, 3))
    assert (layer.in_channels, layer.out_channels) == (8, 16)


def test_columns_in_any_order_blank_lines_and_spaces(tmp_path):
    path = tmp_path / "two.csv"
    path.write_text("k, groups,kind,name,m,n\n\n9,32,depthwise, dw ,64,1\n , ,,,,\n64,1,linear,fc,1,10\n", "utf-8-sig")
    workload = Workload.load_csv(path)
    assert workload.name == "two"
    assert workload.layers == (Layer("dw", "depthwise", 64, 1, 9, 32), Layer("fc", "linear", 1, 10, 64))


def test_uniform_fits_the_layers():
    workload = Workload.parse_csv(HEADER + "a,conv,1,1,1,1\nb,linear,1,1,1,1\n")
    assert dict(workload.uniform(4, 8)) == {"a": (4, 8), "b": (4, 8)}
    with pytest.raises(AllocationError):
        workload.uniform(5.5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        ("\n", "empty"),
        (HEADER, "no layers"),
        ("name,kind,m,n,k\n", "missing: groups"),
        (HEADER.replace("groups", "group"), "missing: groups; unknown: 'group'"),
        ("name,kind,m,n,k,groups,m\n", "column 'm' is repeated"),
        (HEADER + "a,conv,1,1,1\n", "line 2: 5 values for 6 columns"),
        (HEADER + "a,conv,1,1,1,1\nb,conv,1,1,1,1,7\n", "line 3: 7 values for 6 columns"),
        (HEADER + "a,konv,1,1,1,1\n", "line 2.*'konv'.*conv, depthwise"),
        (HEADER + ",conv,1,1,1,1\n", "line 2.*needs a name"),
        (HEADER + "a,conv,0,1,1,1\n", "line 2, column 'm': 0 is out of range"),
        (HEADER + "a,conv,1,-3,1,1\n", "line 2, column 'n': -3"),
        (HEADER + "a,conv,1,1,2.5,1\n", "line 2, column 'k': '2.5' is no integer"),
        (HEADER + "a,conv,1,1,1,\n", "line 2, column 'groups': '' is no integer"),
        (HEADER + "a,conv,9999999999999999999,1,1,1\n", "column 'm'.*out of range"),
        pytest.param(HEADER + f"a,conv,{'9' * 5000},1,1,1\n", "column 'm'", id="long number"),
        (HEADER + "a,conv,99999999999,99999999999,99999999999,1\n", "elements"),
        (HEADER + "a,depthwise,4,32,9,1\n", "line 2.*n = 1"),
        (HEADER + "a,conv,1,1,1,1\na,conv,2,2,2,1\n", "'a' is repeated"),
        (HEADER + '"a,conv,1,1,1,1\n', "no valid CSV"),
        (HEADER + "a\0,conv,1,1,1,1\n", "NUL"),
        pytest.param(HEADER + "x" * 200_000 + ",conv,1,1,1,1\n", "no valid CSV", id="long name"),
    ],
)
def test_malformed_files_say_what_is_wrong(tmp_path, text, message):
    path = tmp_path / "mine.csv"
    path.write_text(text)
    with pytest.raises(WorkloadError, match=message) as caught:
        Workload.load_csv(path)
    assert "mine.csv" in str(caught.value)
    assert caught.value.exit_code == 2


def test_missing_and_binary_files(tmp_path):
    with pytest.raises(WorkloadError, match=r"nowhere\.csv"):
        Workload.load_csv(tmp_path / "nowhere.csv")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(WorkloadError, match=r"binary.csv"):
        Workload.load_csv(tmp_path / "binary.csv")


CELLS = st.one_of(
    st.text(max_size=5),
    st.integers(-3, 2**70).map(str),
    st.sampled_from(["conv", "depthwise", "1e3", "nan", '"', "\r"]),
)


@given(st.one_of(st.text(), st.lists(st.lists(CELLS, min_size=5, max_size=7), max_size=4)))
def test_any_text_is_read_or_refused(content):
    if isinstance(content, list):
        content = HEADER + "\n".join(",".join(row) for row in content)
    try:
        workload = Workload.parse_csv(content)
    except WorkloadError as error:
        assert str(error)
    else:
        assert workload.macs > 0


@pytest.mark.parametrize(
    "changes",
    [
        {"name": ""},
        {"name": None},
        {"kind": "conv3d"},
        {"m": 0},
        {"m": None},
        {"n": -1},
        {"k": 1.5},
        {"groups": True},
        {"k": "9"},
        {"weight_elements": -1},
        {"output_elements": 2.0},
        {"m": 2**41},
    ],
)
def test_layers_that_cannot_be(changes):
    with pytest.raises(WorkloadError):
        Layer(**{"name": "a", "kind": "conv", "m": 4, "n": 4, "k": 9, **changes})


def test_a_workload_needs_layers():
    with pytest.raises(WorkloadError, match="no layers"):
        Workload("net", ())


def test_a_batch_divides_the_pixels_and_survives_a_file():
    batched = Workload("batched", (Layer("a", "conv", m=4 * 9, n=2, k=3, batch=4), Layer("b", "linear", m=1, n=2, k=3)))
    assert Workload.parse_csv(batched.to_csv(), "batched") == batched
    alone = Workload("alone", batched.layers[1:])
    assert "batch" not in alone.to_csv()
    for wrong in (5, 0, True, 1.5):
        with pytest.raises(WorkloadError, match="batch"):
            Layer("a", "conv", m=36, n=2, k=3, batch=wrong)
