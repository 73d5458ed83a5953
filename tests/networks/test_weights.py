import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from amed_env.errors import NetworkError
from amed_env.networks import load_weights, weights_digest
from amed_env.networks.weights import tensor_file


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "weights.safetensors"


def saved(path, change=lambda tensors: None):
    tensors = network().state_dict()
    change(tensors)
    save_file(tensors, path)
    return path


def test_loads_all_weights(path):
    other = network(1)
    assert load_weights(other, saved(path)) is other
    assert weights_digest(other.state_dict()) == weights_digest(network().state_dict())


def test_counters_of_batch_norms_may_be_absent(path):
    load_weights(network(1), saved(path, lambda tensors: tensors.pop("1.num_batches_tracked")))


def resize(tensors):
    tensors["3.weight"] = torch.zeros(3, 9)


def spoil(tensors):
    tensors["0.weight"][1, 0, 0, 0] = float("nan")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("3.bias"), "1 missing: 3.bias"),
        (lambda tensors: tensors.update(extra=torch.zeros(1)), "1 unexpected: extra"),
        (resize, r"1 of another shape: 3.weight \(3, 9\) instead of \(3, 8\)"),
        (spoil, "1 not finite: 0.weight"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_changed(path, change, message):
    target = network(1)
    before = weights_digest(target.state_dict())
    with pytest.raises(NetworkError, match=message):
        load_weights(target, saved(path, change))
    assert weights_digest(target.state_dict()) == before


def test_everything_wrong_is_named_at_once(path):
    save_file({f"layer{i}": torch.zeros(1) for i in range(9)}, path)
    message = r"8 missing: 0\.weight, .* and 3 more; 9 unexpected: .* and 4 more"
    with pytest.raises(NetworkError, match=message):
        load_weights(network(), path)


def test_missing_file(path):
    with pytest.raises(NetworkError, match="cannot read the weight file"):
        load_weights(network(), path)


@pytest.mark.parametrize("data", [b"", b"nonsense" * 10, None])
def test_damaged_file(path, data):
    whole = saved(path).read_bytes()
    path.write_bytes(whole[:-10] if data is None else data)
    with pytest.raises(NetworkError, match="damaged or no safetensors file"):
        load_weights(network(), path)


def test_digest_is_of_names_shapes_types_and_values():
    tensors = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([3])}
    same = {"b": torch.tensor([3]), "a": torch.tensor([1.0, 2.0]), "bn.num_batches_tracked": torch.tensor(7)}
    assert weights_digest(tensors) == weights_digest(same)
    others = [
        {"a": torch.tensor([1.0, 2.5]), "b": torch.tensor([3])},
        {"a": torch.tensor([[1.0, 2.0]]), "b": torch.tensor([3])},
        {"a": torch.tensor([1.0, 2.0]), "c": torch.tensor([3])},
        {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([3], dtype=torch.int32)},
    ]
    assert len({weights_digest(tensors), *map(weights_digest, others)}) == 5


def test_equal_contents_make_equal_files(tmp_path):
    metadata = {"format": "a", "made": "mit Ümlaut", "further": "{}", "last": '"quoted"'}
    tensors = {"b": torch.arange(6.0).reshape(2, 3), "a/1": torch.ones(3, dtype=torch.int8), "c": torch.zeros(())}
    contents = {
        tensor_file(dict(order), dict(reversed(metadata.items())))
        for order in (list(tensors.items()), list(tensors.items())[::-1])
        for _ in range(5)
    }
    assert len(contents) == 1
    path = tmp_path / "file.safetensors"
    path.write_bytes(contents.pop())
    with safe_open(path, "pt") as stream:
        assert stream.metadata() == metadata
        for name, tensor in tensors.items():
            assert torch.equal(stream.get_tensor(name), tensor)
