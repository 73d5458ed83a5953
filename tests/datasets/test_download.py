import errno
import hashlib
import logging
import socket
import time
from pathlib import Path

import numpy as np
import pytest

from amed_env.datasets.download import Download, Patience, download
from amed_env.errors import DownloadError

CONTENT = np.random.default_rng(0).bytes(300_000)
ITEM = Download("file.bin", "http://no.invalid/", f"sha256:{hashlib.sha256(CONTENT).hexdigest()}", len(CONTENT))


@pytest.fixture
def get(server, patience, tmp_path):
    """Download `ITEM` from the local server."""
    server.files["file.bin"] = CONTENT

    def call(item=ITEM):
        return download(item, tmp_path, progress=False, base_url=server.url, patience=patience)

    return call


def part_of(folder):
    return folder / "file.bin.part"


def test_official_address_and_mirror():
    assert ITEM.url() == "http://no.invalid/file.bin"
    assert ITEM.url("http://mirror/x") == ITEM.url("http://mirror/x/") == "http://mirror/x/file.bin"


def test_success_leaves_the_file_and_nothing_else(get, server, tmp_path):
    path = get()
    assert path == tmp_path / "file.bin"
    assert path.read_bytes() == CONTENT
    assert list(tmp_path.iterdir()) == [path]
    assert server.ranges == [None]


def test_a_complete_file_is_not_downloaded_again(get, server):
    get()
    get()
    assert len(server.ranges) == 1


def test_a_cut_connection_is_resumed_where_it_ended(get, server):
    server.cut_after = [120_000]
    assert get().read_bytes() == CONTENT
    (first, second), (sent, resent) = server.ranges, server.sent
    assert first is None
    start = int(second.removeprefix("bytes=").removesuffix("-"))
    # Of the last chunk that was on its way, nothing may have been written.
    assert 120_000 - (1 << 14) <= start <= 120_000
    assert (sent, resent) == (120_000, len(CONTENT) - start)


def test_a_later_call_resumes_what_an_earlier_one_left(get, server, tmp_path):
    server.cut_after = [100_000, 0, 0, 0]
    with pytest.raises(DownloadError, match=r"3 attempts in a row brought nothing new; [\d,]+ bytes are kept"):
        get()
    kept = part_of(tmp_path).stat().st_size
    assert kept > 80_000
    assert part_of(tmp_path).read_bytes() == CONTENT[:kept]
    assert get().read_bytes() == CONTENT
    assert server.ranges[-1] == f"bytes={kept}-"
    assert server.sent[-1] == len(CONTENT) - kept
    assert not part_of(tmp_path).exists()


def test_any_number_of_cuts_is_survived_while_bytes_come(get, server):
    server.cut_after = [40_000] * 20
    assert get().read_bytes() == CONTENT
    assert len(server.ranges) > 5


def test_a_server_that_ignores_ranges_sends_everything_again(get, server):
    server.ignores_ranges = True
    server.cut_after = [120_000]
    assert get().read_bytes() == CONTENT
    assert server.ranges[1].startswith("bytes=")
    assert server.sent == [120_000, len(CONTENT)]


def test_a_server_that_always_starts_over_and_fails_is_given_up(get, server):
    server.ignores_ranges = True
    server.cut_after = [120_000] * 50
    with pytest.raises(DownloadError, match="3 attempts in a row"):
        get()
    assert len(server.ranges) == 4


def test_a_server_that_tells_no_length_is_checked_by_checksum(get, server):
    server.tells_length = False
    assert get().read_bytes() == CONTENT


def test_a_complete_part_file_is_used(get, server, tmp_path):
    part_of(tmp_path).write_bytes(CONTENT)
    assert get().read_bytes() == CONTENT
    assert server.ranges == [f"bytes={len(CONTENT)}-"]
    assert server.sent == [0]


def test_a_part_file_that_is_too_long_is_thrown_away(get, server, tmp_path):
    part_of(tmp_path).write_bytes(CONTENT + b"more")
    assert get().read_bytes() == CONTENT
    assert server.ranges == [f"bytes={len(CONTENT) + 4}-", None]


@pytest.mark.parametrize("body", [CONTENT[:-1] + bytes([CONTENT[-1] ^ 1]), CONTENT[:200_000], b"<html>login</html>"])
def test_another_file_is_deleted_and_reported(get, server, tmp_path, body):
    server.files["file.bin"] = body
    message = (
        rf"expected sha256 {hashlib.sha256(CONTENT).hexdigest()}, found {hashlib.sha256(body).hexdigest()} "
        rf"\({len(body):,} bytes of 300,000\).*run the same command again"
    )
    with pytest.raises(DownloadError, match=message):
        get()
    assert not list(tmp_path.iterdir())


def test_a_damaged_part_file_is_found_out_and_the_next_call_succeeds(get, tmp_path):
    part_of(tmp_path).write_bytes(b"x" * 1000)
    with pytest.raises(DownloadError, match="damaged or another file"):
        get()
    assert get().read_bytes() == CONTENT


def test_a_damaged_file_is_replaced(get, tmp_path):
    (tmp_path / "file.bin").write_bytes(CONTENT[:-1])
    assert get().read_bytes() == CONTENT


def test_not_found_is_not_retried(get, server, tmp_path):
    del server.files["file.bin"]
    with pytest.raises(DownloadError, match=r"answered 404 Not Found.*download file.bin by hand and put it into"):
        get()
    assert len(server.ranges) == 1
    assert not list(tmp_path.iterdir())


def test_passing_faults_of_a_server_are_retried(get, server, caplog):
    server.statuses = [503, 429]
    with caplog.at_level(logging.WARNING):
        assert get().read_bytes() == CONTENT
    assert "503 Service Unavailable" in caplog.text


def test_nobody_listens(tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
    with pytest.raises(DownloadError, match="Check the connection"):
        download(ITEM, tmp_path, progress=False, base_url=url, patience=Patience(attempts=2, pause_s=0.0))


def test_a_malformed_address(tmp_path):
    with pytest.raises(DownloadError, match="Check the address"):
        download(ITEM, tmp_path, progress=False, base_url="nonsense", patience=Patience(attempts=2, pause_s=0.0))


def test_a_full_disk_keeps_the_part_and_says_so(get, server, tmp_path, monkeypatch):
    real_open = Path.open

    class FullDisk:
        """A file that takes 50,000 bytes."""

        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, data):
            if self.file.tell() + len(data) > 50_000:
                raise OSError(errno.ENOSPC, "No space left on device")
            self.file.write(data)

    def opened(path, mode="r", *args, **kwargs):
        file = real_open(path, mode, *args, **kwargs)
        return FullDisk(file) if path.suffix == ".part" and mode in ("wb", "ab") else file

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", opened)
        with pytest.raises(DownloadError, match=r"disk of .* is full; what was downloaded so far is kept"):
            get()
    kept = part_of(tmp_path).stat().st_size
    assert 0 < kept <= 50_000
    assert get().read_bytes() == CONTENT
    assert server.ranges[-1] == f"bytes={kept}-"


def test_interrupted_by_hand_keeps_the_part(get, server, tmp_path, monkeypatch):
    def interrupted(_):
        raise KeyboardInterrupt

    server.cut_after = [100_000]
    with monkeypatch.context() as patch:
        patch.setattr(time, "sleep", interrupted)
        with pytest.raises(KeyboardInterrupt):
            get()
    assert [path.name for path in tmp_path.iterdir()] == ["file.bin.part"]
    assert get().read_bytes() == CONTENT


def test_a_folder_that_cannot_be_written(patience, server, tmp_path):
    server.files["file.bin"] = CONTENT
    (tmp_path / "folder").write_text("in the way")
    with pytest.raises(DownloadError, match=r"cannot write to .*folder"):
        download(ITEM, tmp_path / "folder", progress=False, base_url=server.url, patience=patience)


def test_progress_goes_to_stderr_only(server, patience, tmp_path, capfd):
    server.files["file.bin"] = CONTENT
    download(ITEM, tmp_path, progress=True, base_url=server.url, patience=patience)
    out, err = capfd.readouterr()
    assert not out
    assert "file.bin" in err


def test_silent_without_progress(get, capfd):
    get()
    assert capfd.readouterr() == ("", "")
