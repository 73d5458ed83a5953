import contextlib
import json
import pickle

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from amed_env import BitAllocation, Precision
from amed_env.errors import AllocationError

WIDTHS = st.one_of(st.integers(1, 16), st.just(32))
NAMES = st.text(min_size=1, max_size=12)
ALLOCATIONS = st.dictionaries(NAMES, st.tuples(WIDTHS, WIDTHS), min_size=1, max_size=6).map(BitAllocation)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)


@given(ALLOCATIONS)
def test_json_round_trip(allocation):
    assert BitAllocation.from_json(json.loads(json.dumps(allocation.to_json("net")))) == allocation


@given(ALLOCATIONS)
def test_file_round_trip_keeps_order(tmp_path, allocation):
    path = tmp_path / "allocation.json"
    allocation.save(path, network="net")
    found = BitAllocation.load(path)
    assert list(found.items()) == list(allocation.items())
    assert hash(found) == hash(allocation)
    assert json.loads(path.read_text())["network"] == "net"


def test_file_is_readable_by_other_tools(tmp_path):
    path = tmp_path / "allocation.json"
    BitAllocation({"conv1": (8, 8), "fc": (4, 2)}).save(path, "mine")
    assert json.loads(path.read_text()) == {
        "format": "amed-allocation/1",
        "network": "mine",
        "layers": {"conv1": {"w": 8, "a": 8}, "fc": {"w": 4, "a": 2}},
    }


@given(ALLOCATIONS, ALLOCATIONS)
def test_equality_and_hash_follow_the_content(first, second):
    same = list(first.items()) == list(second.items())
    assert (first == second) is same
    if same:
        assert hash(first) == hash(second)
    assert first != dict(first)
    assert first == pickle.loads(pickle.dumps(first))
    assert len({first, BitAllocation(dict(first)), second}) == (1 if same else 2)


def test_order_of_layers_is_part_of_the_content():
    forward, backward = BitAllocation({"a": (2, 2), "b": (4, 4)}), BitAllocation({"b": (4, 4), "a": (2, 2)})
    assert forward != backward
    assert backward.require_layers(["a", "b"], "network 'x'") == forward


def test_key_distinguishes_every_allocation_of_a_network():
    widths = (1, 11, 8, 16, 32)
    pairs = [(w, a) for w in widths for a in widths]
    keys = {BitAllocation({"a": first, "b": second}).key() for first in pairs for second in pairs}
    assert len(keys) == len(pairs) ** 2


def test_it_cannot_be_changed():
    allocation = BitAllocation.uniform(["a"], 4)
    with pytest.raises(TypeError):
        allocation["a"] = Precision(8, 8)
    source = {"a": (4, 4)}
    allocation = BitAllocation(source)
    source["a"] = (2, 2)
    assert allocation["a"] == (4, 4)


def test_replace_changes_a_copy_and_names_unknown_layers():
    before = BitAllocation.uniform(["a", "b"], 8, 4)
    after = before.replace({"b": (2, 3)})
    assert dict(after) == {"a": (8, 4), "b": (2, 3)}
    assert before["b"] == (8, 4)
    with pytest.raises(AllocationError, match=r"'c'.*a, b"):
        before.replace({"c": (8, 8)})


@pytest.mark.parametrize("bits", [0, -1, 17, 31, 33, 8.0, 2.5, True, None, "8", float("nan"), 10**30])
def test_widths_that_are_none(bits):
    with pytest.raises(AllocationError, match="'a', weights: bit-width"):
        BitAllocation({"a": (bits, 8)})
    with pytest.raises(AllocationError, match="'a', activations: bit-width"):
        BitAllocation({"a": (8, bits)})


@pytest.mark.parametrize("precisions", [{}, {"": (8, 8)}, {3: (8, 8)}, {"a": 8}, {"a": (8,)}, {"a": (8, 8, 8)}])
def test_what_is_no_allocation(precisions):
    with pytest.raises(AllocationError):
        BitAllocation(precisions)


def test_layers_that_do_not_fit_are_all_named():
    allocation = BitAllocation.uniform(["a", "b", "x", "y"], 8)
    with pytest.raises(AllocationError, match=r"network 'n': it lacks 'c', 'd' and it has the unknown 'x', 'y'"):
        allocation.require_layers(["a", "b", "c", "d"], "network 'n'")


LAYERS = '"layers": {"a": {"w": 8, "a": 8}}'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no valid JSON"),
        ("{", "no valid JSON"),
        ("[]", "expected a JSON object"),
        ("{}", "'format' is None"),
        ('{"format": "amed-allocation/2", ' + LAYERS + "}", "'format' is 'amed-allocation/2'"),
        ('{"format": "amed-allocation/1"}', "'layers' must be"),
        ('{"format": "amed-allocation/1", "layers": {}}', "'layers' must be"),
        ('{"format": "amed-allocation/1", "layers": []}', "'layers' must be"),
        ('{"format": "amed-allocation/1", "layers": {"a": 8}}', "layer 'a'.*'w' and 'a'"),
        ('{"format": "amed-allocation/1", "layers": {"a": {"w": 8}}}', "layer 'a'.*'w' and 'a'"),
        ('{"format": "amed-allocation/1", "layers": {"a": {"w": 8, "a": 8, "b": 1}}}', "layer 'a'"),
        ('{"format": "amed-allocation/1", "layers": {"a": {"w": 8.0, "a": 8}}}', "8.0 is not an integer"),
        ('{"format": "amed-allocation/1", "layers": {"a": {"w": NaN, "a": 8}}}', "not an integer"),
        ('{"format": "amed-allocation/1", "layer": {}, ' + LAYERS + "}", "unknown keys 'layer'"),
        ('{"format": "amed-allocation/1", "network": 5, ' + LAYERS + "}", "'network' is 5"),
        (
            '{"format": "amed-allocation/1", "layers": {"a": {"w": 8, "a": 8}, "a": {"w": 2, "a": 2}}}',
            "'a' is repeated",
        ),
        ('{"format": "amed-allocation/1", "layers": {"a": {"w": 8, "w": 2, "a": 8}}}', "'w' is repeated"),
        pytest.param("[" * 100_000, "no valid JSON", id="deep"),
    ],
)
def test_malformed_files_say_what_is_wrong(tmp_path, text, message):
    path = tmp_path / "mine.json"
    path.write_text(text)
    with pytest.raises(AllocationError, match=message) as caught:
        BitAllocation.load(path)
    assert "mine.json" in str(caught.value)
    assert caught.value.exit_code == 2


def test_missing_and_binary_files(tmp_path):
    with pytest.raises(AllocationError, match=r"nowhere\.json"):
        BitAllocation.load(tmp_path / "nowhere.json")
    with pytest.raises(AllocationError, match="cannot read"):
        BitAllocation.load(tmp_path)
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00{")
    with pytest.raises(AllocationError, match=r"binary.json"):
        BitAllocation.load(tmp_path / "binary.json")


def test_a_byte_order_mark_is_no_fault(tmp_path):
    path = tmp_path / "from_windows.json"
    text = json.dumps(BitAllocation.uniform(["a"], 4).to_json())
    path.write_text(text, encoding="utf-8-sig")
    assert BitAllocation.load(path)["a"] == (4, 4)


@given(JSON_VALUES)
@example({"format": "amed-allocation/1", "layers": {"a": {"w": 8, "a": [8]}}})
def test_any_document_is_read_or_refused(document):
    try:
        allocation = BitAllocation.from_json(document)
    except AllocationError:
        return
    assert BitAllocation.from_json(allocation.to_json()) == allocation


@given(st.fixed_dictionaries({"format": st.just("amed-allocation/1"), "layers": JSON_VALUES}))
def test_any_layers_are_read_or_refused(document):
    with pytest.raises(AllocationError):
        BitAllocation.from_json({**document, "extra": 1})
    try:
        BitAllocation.from_json(document)
    except AllocationError as error:
        assert str(error)


@given(st.one_of(st.binary(max_size=60), st.text(max_size=60).map(lambda text: text.encode("utf-8", "replace"))))
def test_any_bytes_are_read_or_refused(tmp_path, content):
    path = tmp_path / "any.json"
    path.write_bytes(content)
    with pytest.raises(AllocationError):
        BitAllocation.load(path)


@given(ALLOCATIONS, st.data())
def test_a_damaged_file_is_read_or_refused(tmp_path, allocation, data):
    path = tmp_path / "damaged.json"
    allocation.save(path)
    content = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(content[: data.draw(st.integers(at, len(content)))]))
    with contextlib.suppress(AllocationError):
        assert len(BitAllocation.load(path)) >= 1
