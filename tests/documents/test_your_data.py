"""What docs/tasks.md says about one's own data runs as printed."""

import re
from pathlib import Path

from warm import run_warm

DOCUMENT = Path(__file__).resolve().parents[2] / "docs/tasks.md"


def test_the_block_runs_as_printed(tmp_path):
    section = DOCUMENT.read_text(encoding="utf-8").partition("### Your data")[2].partition("\n### ")[0]
    (block,) = re.findall(r"^```python\n(.*?)^```$", section, flags=re.MULTILINE | re.DOTALL)
    (tmp_path / "block.py").write_text(block, encoding="utf-8")
    done = run_warm(["block.py"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) > 0
