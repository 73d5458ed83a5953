"""docs/export.md is true: its Python block runs as printed, and its commands have the options that there are."""

import re
from pathlib import Path

import pytest
from warm import run_warm

from amed_env.deploy.c.building import compiler
from amed_env.deploy.export import FORMATS

DOCUMENT = (Path(__file__).resolve().parents[2] / "docs/export.md").read_text(encoding="utf-8")


@pytest.mark.skipif(compiler() is None, reason="there is no C compiler")
def test_the_python_block_runs_as_printed(tmp_path):
    (block,) = re.findall(r"^```python\n(.*?)^```$", DOCUMENT, flags=re.MULTILINE | re.DOTALL)
    (tmp_path / "block.py").write_text(block, encoding="utf-8")
    done = run_warm(["block.py"], tmp_path)
    assert done.returncode == 0, done.stderr
    size, weights, same = done.stdout.split()
    assert int(weights) == 12_080 < int(size) < 20_000 and float(same) == 1.0
    assert f"12,080 | {int(size):,}," in DOCUMENT


def test_formats_are_those_that_there_are():
    rows = re.findall(r"^\| `(\w+)` \| .* \| .* \|$", DOCUMENT[: DOCUMENT.index("## C")], flags=re.MULTILINE)
    assert tuple(rows) == FORMATS
