import gzip
import hashlib
import io
import logging
import os
import subprocess
import sys
import tarfile
import threading
from dataclasses import replace

import filelock
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from amed_env.datasets import assets, cifar10, fashion_mnist
from amed_env.datasets.assets import ASSETS
from amed_env.datasets.fetch import fetch
from amed_env.errors import DownloadError, UnknownNameError
from amed_env.networks import ds_cnn, load_weights, resnet8, resnet20, resnet56, weights_digest
from amed_env.support.data_files import FASHION_FILES, RESNET20_WEIGHTS, RESNET56_WEIGHTS

ARCHIVE = "cifar-10-binary.tar.gz"
CHECKPOINT = "resnet20-12fca82f.th"
NAMES = sorted(f"{name}.bin" for name in (*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"))
RECORDS = 20


def tar_of(members, mode=0o644):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            info.size, info.mode = len(data), mode
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def checkpoint_of(state):
    """As published: the network was trained on several GPUs."""
    buffer = io.BytesIO()
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}, "best_prec1": 91.7}, buffer)
    return buffer.getvalue()


def batches():
    rng = np.random.default_rng(0)
    files = {}
    for name in NAMES:
        records = rng.integers(0, 256, (RECORDS, 3073), dtype=np.uint8)
        records[:, 0] %= 10
        files[name] = records.tobytes()
    return files


class Upstream:
    """A small data set and other weights, served in place of the real ones, in the same formats."""

    def __init__(self, server, monkeypatch):
        self.server, self.monkeypatch = server, monkeypatch
        torch.manual_seed(0)
        self.state = resnet20().state_dict()
        self.batches = batches()
        monkeypatch.setattr(cifar10, "RECORDS_PER_FILE", RECORDS)
        monkeypatch.setitem(assets.DIGESTS, RESNET20_WEIGHTS, weights_digest(self.state))
        self.publish(ARCHIVE, tar_of(self.batches | {"batches.meta.txt": b"airplane\n", "readme.html": b"<p>"}))
        self.publish(CHECKPOINT, checkpoint_of(self.state))

    def publish(self, name, data):
        """Serve a file, and expect its checksum."""
        self.server.files[name] = data
        checksum = f"sha256:{hashlib.sha256(data).hexdigest()}"
        rows = tuple(
            replace(a, source=replace(a.source, checksum=checksum, size=len(data))) if a.source.file == name else a
            for a in ASSETS["cifar10-resnet20"]
        )
        self.monkeypatch.setitem(ASSETS, "cifar10-resnet20", rows)


@pytest.fixture
def upstream(server, monkeypatch):
    return Upstream(server, monkeypatch)


@pytest.fixture
def get(upstream, server, patience, tmp_path):
    folder = tmp_path / "data"
    return lambda: fetch("cifar10-resnet20", folder, progress=False, base_url=server.url, patience=patience)


def files_below(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_layout_is_the_official_one(get, upstream, tmp_path):
    fetched = get()
    folder = tmp_path / "data"
    expected = [".fetch.lock", *(f"cifar-10-batches-bin/{n}" for n in NAMES), "weights/cifar10_resnet20.safetensors"]
    assert [name for name in files_below(folder) if name != ".fetch.lock"] == expected[1:]
    assert not (folder / "downloads").exists()
    for name, data in upstream.batches.items():
        assert (folder / "cifar-10-batches-bin" / name).read_bytes() == data
    assert len(cifar10.cifar10_test_file(folder)) == RECORDS
    network = load_weights(resnet20(), folder / "weights" / "cifar10_resnet20.safetensors")
    assert weights_digest(network.state_dict()) == weights_digest(upstream.state)
    assert [(entry.title, entry.downloaded) for entry in fetched] == [
        ("CIFAR-10", True),
        ("pretrained ResNet-20", True),
    ]
    assert all(entry.path.exists() for entry in fetched)


def test_present_and_valid_is_not_downloaded_again(get, server, caplog):
    get()
    requests = len(server.ranges)
    with caplog.at_level(logging.INFO):
        assert [entry.downloaded for entry in get()] == [False, False]
    assert len(server.ranges) == requests
    assert "CIFAR-10: already present" in caplog.text


def test_nothing_is_written_if_all_is_there(get, tmp_path):
    # So a folder that several people share may be read-only.
    get()
    (tmp_path / "data" / ".fetch.lock").unlink(missing_ok=True)
    before = files_below(tmp_path / "data")
    get()
    assert files_below(tmp_path / "data") == before


@pytest.mark.parametrize("name", ["cifar-10-batches-bin/data_batch_2.bin", "weights/cifar10_resnet20.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_only_what_is_damaged_is_fetched_again(get, server, tmp_path, name, damage):
    get()
    path = tmp_path / "data" / name
    intact = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(intact[:-100])
    requests = len(server.ranges)
    assert [entry.downloaded for entry in get()] == ["cifar" in name.split("/")[0], "weights" in name]
    assert len(server.ranges) == requests + 1
    assert load_file(path).keys() if "weights" in name else path.read_bytes() == intact


def test_other_weights_under_the_right_name_are_replaced(get, upstream, tmp_path):
    get()
    path = tmp_path / "data" / "weights" / "cifar10_resnet20.safetensors"
    save_file({name: torch.zeros_like(tensor) for name, tensor in load_file(path).items()}, path)
    get()
    assert weights_digest(load_file(path)) == weights_digest(upstream.state)


def test_a_cut_connection_is_resumed(get, server):
    server.cut_after = [200_000]
    get()
    start = int(server.ranges[1].removeprefix("bytes=").removesuffix("-"))
    assert start > 180_000
    assert server.sent[1] == len(server.files[ARCHIVE]) - start


@pytest.mark.parametrize("name", [ARCHIVE, CHECKPOINT])
@pytest.mark.parametrize("damage", ["corrupted", "truncated"])
def test_a_damaged_download_installs_nothing(get, server, tmp_path, name, damage):
    data = bytearray(server.files[name])
    if damage == "corrupted":
        data[len(data) // 2] ^= 0xFF
    else:
        data = data[: len(data) // 2]
    server.files[name] = bytes(data)
    with pytest.raises(DownloadError, match=rf"{name} brought a damaged or another file: expected sha256"):
        get()
    left = [path for path in files_below(tmp_path / "data") if path != ".fetch.lock"]
    assert left == ([] if name == ARCHIVE else [f"cifar-10-batches-bin/{n}" for n in NAMES])


def test_not_found(get, server):
    del server.files[CHECKPOINT]
    with pytest.raises(DownloadError, match=r"404 Not Found.*resnet20-12fca82f.th by hand"):
        get()


def test_a_file_that_was_put_there_by_hand_is_used(get, server, tmp_path):
    folder = tmp_path / "data" / "downloads"
    folder.mkdir(parents=True)
    (folder / CHECKPOINT).write_bytes(server.files[CHECKPOINT])
    get()
    assert len(server.ranges) == 1


def test_an_archive_cannot_write_elsewhere(get, upstream, tmp_path):
    evil = {"../../evil.bin": b"x", "../cifar-10-batches-bin/evil.bin": b"x"}
    upstream.publish(ARCHIVE, tar_of(evil | upstream.batches, mode=0o4777))
    get()
    assert not list(tmp_path.rglob("evil.bin"))
    assert (tmp_path / "data" / "cifar-10-batches-bin" / "test_batch.bin").stat().st_mode & 0o7111 == 0


def test_a_link_in_place_of_a_file_is_refused(get, upstream, tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(b"mine")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        info = tarfile.TarInfo("cifar-10-batches-bin/test_batch.bin")
        info.type, info.linkname = tarfile.SYMTYPE, str(secret)
        tar.addfile(info)
    upstream.publish(ARCHIVE, buffer.getvalue())
    with pytest.raises(DownloadError, match=r"has no .*test_batch.bin"):
        get()


def test_an_archive_without_all_files_is_refused(get, upstream):
    upstream.publish(ARCHIVE, tar_of({n: d for n, d in upstream.batches.items() if n != "test_batch.bin"}))
    with pytest.raises(DownloadError, match=r"has no cifar-10-batches-bin/test_batch\.bin;"):
        get()


def test_an_archive_of_files_of_another_size_is_refused(get, upstream):
    upstream.publish(ARCHIVE, tar_of({name: data[:-1] for name, data in upstream.batches.items()}))
    with pytest.raises(DownloadError, match="CIFAR-10 is not valid after unpacking"):
        get()


def test_what_is_no_archive_is_refused(get, upstream):
    upstream.publish(ARCHIVE, b"no archive at all" * 1000)
    with pytest.raises(DownloadError, match="cannot be unpacked"):
        get()


class Evil:
    """Its pickle would make a folder."""

    def __reduce__(self):
        return os.mkdir, ("evil-folder",)


def test_a_checkpoint_cannot_run_code(get, upstream, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    buffer = io.BytesIO()
    torch.save({"state_dict": Evil()}, buffer)
    upstream.publish(CHECKPOINT, buffer.getvalue())
    with pytest.raises(DownloadError, match="cannot be read"):
        get()
    assert not (tmp_path / "evil-folder").exists()


def test_a_checkpoint_with_other_weights_is_refused(get, upstream):
    upstream.publish(CHECKPOINT, checkpoint_of({name: tensor + 1 for name, tensor in upstream.state.items()}))
    with pytest.raises(DownloadError, match="holds other weights than the published ones"):
        get()


def test_a_second_process_waits_and_downloads_nothing(get, server, tmp_path, caplog):
    folder = tmp_path / "data"
    get()
    held = tmp_path / "held"
    folder.rename(held)
    folder.mkdir()
    lock = filelock.FileLock(folder / ".fetch.lock", thread_local=False)
    lock.acquire()
    results = []
    with caplog.at_level(logging.WARNING):
        waiting = threading.Thread(target=lambda: results.append(get()))
        waiting.start()
        waiting.join(0.5)
        assert waiting.is_alive()
        requests = len(server.ranges)
        for name in ("cifar-10-batches-bin", "weights"):  # what the first process brings
            (held / name).rename(folder / name)
        lock.release()
        waiting.join(20)
    assert not waiting.is_alive()
    assert [entry.downloaded for entry in results[0]] == [False, False]
    assert len(server.ranges) == requests
    assert "another process is fetching" in caplog.text


def test_unknown_task():
    with pytest.raises(UnknownNameError, match="did you mean 'cifar10-resnet20'"):
        fetch("cifar10-resnet2")


def test_default_folder_is_the_data_folder(upstream, server, patience, tmp_path, monkeypatch):
    monkeypatch.setenv("AMED_DATA_DIR", str(tmp_path))
    fetched = fetch("cifar10-resnet20", progress=False, base_url=server.url, patience=patience)
    assert fetched[0].path == tmp_path / "cifar-10-batches-bin"


def test_official_homes():
    assert [asset.source.url() for asset in ASSETS["cifar10-resnet20"]] == [
        "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        "https://github.com/akamaster/pytorch_resnet_cifar10/raw/master/pretrained_models/resnet20-12fca82f.th",
    ]
    # The home page of CIFAR-10 and the name of the checkpoint state these.
    archive, checkpoint = (asset.source.checksum for asset in ASSETS["cifar10-resnet20"])
    assert archive == "md5:c32a1d4ab5d03f1284b67883e8d87530"
    assert checkpoint.startswith("sha256:12fca82f")
    assert len(checkpoint) == len("sha256:") + 64


def test_data_sets_are_imported_without_what_downloads_need():
    code = "import sys, amed_env.datasets; sys.exit('requests' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def serve_weights(server, monkeypatch, data, checksum):
    """ResNet-56 alone, as the published checkpoint is known: by the first digits of its checksum."""
    server.files["resnet56-4bfd9763.th"] = data
    (row,) = [a for a in ASSETS["cifar10-resnet56"] if a.path == RESNET56_WEIGHTS]
    monkeypatch.setitem(ASSETS, "cifar10-resnet56", (replace(row, source=replace(row.source, checksum=checksum)),))


def test_first_digits_of_a_checksum_are_checked(server, patience, tmp_path, monkeypatch):
    state = resnet56().state_dict()
    checkpoint = checkpoint_of(state)
    monkeypatch.setitem(assets.DIGESTS, RESNET56_WEIGHTS, weights_digest(state))
    found = hashlib.sha256(checkpoint).hexdigest()
    wrong = f"{(int(found[:8], 16) + 1) % 2**32:08x}"
    serve_weights(server, monkeypatch, checkpoint, f"sha256:{wrong}")
    with pytest.raises(DownloadError, match=f"expected sha256 {wrong}, found {found}"):
        fetch("cifar10-resnet56", tmp_path, progress=False, base_url=server.url, patience=patience)
    serve_weights(server, monkeypatch, checkpoint, f"sha256:{found[:8]}")
    (entry,) = fetch("cifar10-resnet56", tmp_path, progress=False, base_url=server.url, patience=patience)
    assert weights_digest(load_file(entry.path)) == weights_digest(state)


def idx(array):
    """The IDX format: two zero bytes, 8 for unsigned bytes, the number of dimensions, then each of them."""
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()


def test_fashion_mnist_is_unpacked_and_read_back(server, patience, tmp_path, monkeypatch):
    monkeypatch.setattr(fashion_mnist, "RECORDS", {"train": 30, "test": 20})
    rng = np.random.default_rng(0)
    content = {}
    for name in FASHION_FILES:
        count = 30 if "train" in name else 20
        shape = (count, 28, 28) if "images" in name else (count,)
        content[name] = idx(rng.integers(0, 10, shape, dtype=np.uint8))
        server.files[name.split("/")[-1] + ".gz"] = gzip.compress(content[name])
    rows = []
    for row in ASSETS["fashion-cnn"]:
        assert len(row.source.checksum) == len("md5:") + 32
        checksum = f"md5:{hashlib.md5(server.files[row.source.file]).hexdigest()}"
        rows.append(replace(row, source=replace(row.source, checksum=checksum)))
    monkeypatch.setitem(ASSETS, "fashion-cnn", tuple(rows))
    fetched = fetch("fashion-cnn", tmp_path, progress=False, base_url=server.url, patience=patience)
    assert [entry.downloaded for entry in fetched] == [True] * 4
    assert {name: (tmp_path / name).read_bytes() for name in content} == content


@pytest.mark.parametrize(("task", "network"), [("cifar10-resnet8", resnet8), ("kws-dscnn", ds_cnn)])
def test_what_the_user_has_to_provide_is_said_after_the_rest_is_fetched(task, network, tmp_path, monkeypatch):
    installed = [replace(a, is_installed=lambda _: True) for a in ASSETS[task] if isinstance(a, assets.Asset)]
    provided = [a for a in ASSETS[task] if isinstance(a, assets.Provided)]
    monkeypatch.setitem(ASSETS, task, (*installed, *provided))
    with pytest.raises(DownloadError, match=r"github\.com/mlcommons/tiny") as caught:
        fetch(task, tmp_path, progress=False, base_url="http://no.invalid/")
    assert all(str(tmp_path / row.path) in str(caught.value) for row in provided)
    assert len(provided) == (2 if task == "kws-dscnn" else 1)
    weights = provided[-1]
    # Layers of the file are numbered in the order in which they are made.
    layers = [m for m in network().modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    names = [f"conv{i}" for i in range(9)] + ["fc9"]
    tensors = {f"{n}.{k}": v.clone() for n, m in zip(names, layers, strict=True) for k, v in m.state_dict().items()}
    (tmp_path / "weights").mkdir()
    save_file(tensors, tmp_path / weights.path)
    assert weights.is_installed(tmp_path)
    tensors.pop("fc9.bias")
    save_file(tensors, tmp_path / weights.path)
    assert not weights.is_installed(tmp_path)


@pytest.mark.parametrize("task", [pytest.param(name, marks=pytest.mark.data(name)) for name in ASSETS])
def test_the_real_data_folder_needs_no_download(amed_data_dir, task):
    fetched = fetch(task, amed_data_dir, progress=False, base_url="http://no.invalid/")
    assert [entry.downloaded for entry in fetched] == [False] * len(ASSETS[task])
