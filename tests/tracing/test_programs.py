"""Networks that come as an exported program, or as the `.pt2` file of one."""

import io
import pickle
import zipfile

import pytest
import torch
from torch import nn
from torch.export import Dim, export, save

from amed_env import trace
from amed_env.errors import NetworkError


class Masked(nn.Module):
    """Takes a keyword, returns a dict, and calls a function with a weight of its own."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.mixing = nn.Parameter(torch.randn(8, 8))
        self.head = nn.Linear(8, 4)

    def forward(self, image, *, mask):
        features = self.body(image).mean(dim=(2, 3)) * mask
        return {"logits": self.head(torch.relu(nn.functional.linear(features, self.mixing)))}


@pytest.fixture
def masked():
    torch.manual_seed(0)
    network = Masked()
    network(torch.randn(20, 3, 8, 8), mask=torch.ones(20, 8))  # statistics of the batch norm
    return network.eval()


def inputs(count):
    generator = torch.Generator().manual_seed(count)
    image = torch.randn(count, 3, 8, 8, generator=generator)
    return image, {"mask": torch.rand(count, 8, generator=generator) > 0.5}


def exported(network, count=4, batch=None):
    image, keywords = inputs(count)
    sizes = None if batch is None else {"image": {0: batch}, "mask": {0: batch}}
    return export(network, (image,), keywords, dynamic_shapes=sizes)


def outputs_of(traced, given):
    image, keywords = given
    return traced.module(torch.cat([image.flatten(1), keywords["mask"].float()], dim=1))


@pytest.mark.parametrize("form", ["program", "file"])
def test_a_program_is_traced_by_its_own_example_under_the_names_of_its_parameters(masked, tmp_path, form):
    network = exported(masked, batch=Dim("batch", min=1))
    if form == "file":
        save(network, tmp_path / "net.pt2")
        network = tmp_path / "net.pt2"
    traced = trace(network)
    assert traced.workload.name == ("net" if form == "file" else "exported")
    assert traced.workload.layer_names == ("body.0", "mixing", "head")
    assert traced.workload == trace(masked, inputs(4), traced.workload.name).workload
    assert traced.batch_size is None and traced.kept_float == ()
    for count in (1, 3, 9):
        image, keywords = inputs(count)
        expected = masked.double()(image.double(), mask=keywords["mask"])["logits"]
        masked.float()
        torch.testing.assert_close(outputs_of(traced, (image, keywords)).double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("batch", [None, Dim("batch", min=2, max=4)])
def test_a_program_of_one_batch_size_runs_at_that_size(masked, batch):
    traced = trace(exported(masked, batch=batch), inputs(2))  # an example of another size is repeated
    assert traced.batch_size == 4
    assert traced.workload == trace(masked, inputs(1), "exported").workload
    expected = masked(inputs(4)[0], **inputs(4)[1])["logits"]
    torch.testing.assert_close(outputs_of(traced, inputs(4)), expected)


def test_a_program_that_was_exported_in_training_mode_is_refused(masked):
    with pytest.raises(NetworkError, match=r"changes body\.1\.(num_batches_tracked|running_mean)"):
        trace(exported(masked.train()))


class Evil:
    """Its unpickling would be seen."""

    unpickled = False

    def __reduce__(self):
        return _unpickle, ()


def _unpickle():
    Evil.unpickled = True
    return ()


def changed_file(source, target, changes):
    """A copy of an archive with other contents of some files, and further ones."""
    with zipfile.ZipFile(source) as before, zipfile.ZipFile(target, "w") as after:
        names = before.namelist()
        for name in names:
            found = [content for end, content in changes.items() if name.endswith(end)]
            after.writestr(name, found[0] if found else before.read(name))
        for end, content in changes.items():
            if not any(name.endswith(end) for name in names):
                after.writestr(f"{names[0].partition('/')[0]}/{end}", content)
    return target


def test_nothing_but_tensors_is_unpickled(masked, tmp_path):
    save(exported(masked), tmp_path / "good.pt2")
    buffer = io.BytesIO()
    torch.save(Evil(), buffer)
    evil = changed_file(tmp_path / "good.pt2", tmp_path / "inputs.pt2", {"sample_inputs/model.pt": buffer.getvalue()})
    with pytest.raises(NetworkError, match="objects other than tensors are not unpickled"):
        trace(evil)
    content = pickle.dumps(Evil())
    evil = changed_file(tmp_path / "good.pt2", tmp_path / "object.pt2", {"data/constants/opaque_obj_0": content})
    with pytest.raises(NetworkError, match=r"holds pickled objects \(opaque_obj_0\)"):
        trace(evil)
    assert not Evil.unpickled
    torch.load(io.BytesIO(buffer.getvalue()), weights_only=False)  # the control
    assert Evil.unpickled


def test_files_that_are_no_programs_are_named(tmp_path):
    with pytest.raises(NetworkError, match=r"no file .*absent\.pt2; the network must be"):
        trace(tmp_path / "absent.pt2")
    (tmp_path / "text.pt2").write_text("no archive")
    with pytest.raises(NetworkError, match=r"text\.pt2 is no \.pt2 file"):
        trace(str(tmp_path / "text.pt2"))
    with zipfile.ZipFile(tmp_path / "empty.pt2", "w") as archive:
        archive.writestr("empty/nothing", "")
    with pytest.raises(NetworkError, match="cannot be loaded as an exported program"):
        trace(tmp_path / "empty.pt2")
