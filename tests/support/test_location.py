import platformdirs
import pytest

from amed_env.datasets import data_dir
from amed_env.errors import DataError


def test_named_folder_wins(monkeypatch, tmp_path):
    monkeypatch.setenv("AMED_DATA_DIR", str(tmp_path))
    assert data_dir() == tmp_path


@pytest.mark.parametrize("value", [None, ""])
def test_cache_folder_otherwise(monkeypatch, tmp_path, value):
    monkeypatch.delenv("AMED_DATA_DIR", raising=False)
    if value is not None:
        monkeypatch.setenv("AMED_DATA_DIR", value)
    monkeypatch.setattr(platformdirs, "user_cache_dir", lambda name: str(tmp_path / name))
    assert data_dir() == tmp_path / "amed-env" / "data"


def test_a_named_folder_must_exist(monkeypatch, tmp_path):
    monkeypatch.setenv("AMED_DATA_DIR", str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match=r"AMED_DATA_DIR.*nowhere.*create it"):
        data_dir()
