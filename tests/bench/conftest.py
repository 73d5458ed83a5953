"""A small suite and its results."""

import json

import pytest
from bench_suite import SUITE, write

from amed_env.bench.result_file import read_result
from amed_env.bench.suites import SUITES


@pytest.fixture(autouse=True)
def suite(monkeypatch):
    monkeypatch.setitem(SUITES, "unit", SUITE)
    return SUITE


@pytest.fixture(scope="session")
def good(tmp_path_factory):
    """Results that hold: of `random`, and of `greedy`."""
    folder = tmp_path_factory.mktemp("results")
    SUITES["unit"] = SUITE
    try:
        return {spec: write(folder, spec) for spec in ("random", "greedy")}
    finally:
        del SUITES["unit"]


@pytest.fixture
def edited(good, tmp_path):
    """Makes a copy of a file in which `change(header, runs)` has changed something."""

    def edit(change, spec="random"):
        lines = [json.loads(line) for line in good[spec].read_text().splitlines()]
        header, runs = lines[0], lines[1:]
        changed = change(header, runs)
        runs = runs if changed is None else changed
        path = tmp_path / f"{spec}.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in [header, *runs]))
        return path

    return edit


@pytest.fixture
def result(good):
    return read_result(good["random"])
