import json
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing

import pytest

from amed_env import BitAllocation, Quality, Trial, TrialStore
from amed_env.errors import StoreError
from amed_env.problem.score import DIVERGENCE, Score


def trial(number, bits=None, **costs):
    allocation = BitAllocation({"a": (8, 8), "b": (bits or 1 + number % 16, 1 + number // 16 % 16)})
    return Trial(allocation, Quality(number, 1000, 0.1 * number), {"latency_ms": 1.5 * number, **costs}, 0.25)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "trials.sqlite"


@pytest.fixture(params=["file", "memory"])
def store(request, path):
    found = TrialStore(path if request.param == "file" else None)
    yield found
    found.close()


def test_round_trip_in_order(store):
    trials = [trial(number) for number in (3, 1, 2)]
    for each in trials:
        store.add(each)
    assert list(store) == trials
    assert len(store) == 3
    assert store.get(trials[1].allocation) == trials[1]
    assert store.get(BitAllocation.uniform(["a", "b"], 7)) is None


def test_an_allocation_is_kept_once(store):
    store.add(trial(1, bits=4))
    store.add(Trial(trial(1, bits=4).allocation, Quality(0, 1, 9.0), {}))
    assert list(store) == [trial(1, bits=4)]


def test_odd_names_and_values_survive(store):
    allocation = BitAllocation({"layer.0 'ü'\n": (32, 1), '"; DROP TABLE trials': (2, 3)})
    odd = Trial(allocation, Quality(0, 1, float("inf")), {"zero": 0.0, "large": 1e300}, 1e-9)
    store.add(odd)
    assert list(store) == [odd]


def test_a_trial_that_cannot_be_kept_is_not_lost_in_silence(store):
    with pytest.raises(StoreError):
        store.add(Trial(trial(1).allocation, Quality(0, 1, float("nan")), {}))
    assert len(store) == 0


def test_trials_as_json():
    document = json.loads(json.dumps(trial(2, energy_uj=7.0).to_json()))
    assert document == {
        "layers": {"a": {"w": 8, "a": 8}, "b": {"w": 3, "a": 1}},
        "quality": Quality(2, 1000, 0.2).to_json(),
        "costs": {"latency_ms": 3.0, "energy_uj": 7.0},
        "seconds": 0.25,
    }


WRITER = """
import sys
from contextlib import closing
from amed_env import BitAllocation, Quality, Trial, TrialStore

store = TrialStore(sys.argv[1])
for number in range(10_000):
    allocation = BitAllocation({f"layer{i}": (1 + number // 16**i % 16, 8) for i in range(4)})
    store.add(Trial(allocation, Quality(number, 10_000, 0.5), {"latency_ms": float(number)}))
    print(number, flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("after", [0, 7, 60])
def test_a_killed_process_loses_no_finished_trial(path, after):
    with subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if int(line) >= after:
                process.send_signal(signal.SIGKILL)
                break
        finished = after + len(process.stdout.read().splitlines())
    assert process.returncode == -signal.SIGKILL
    store = TrialStore(path)
    found = [each.quality.correct for each in store]
    assert found == list(range(len(found)))
    assert len(found) >= finished + 1
    store.add(Trial(BitAllocation.uniform(["other"], 32), Quality(1, 2, 0.0), {}))
    assert len(store) == len(found) + 1
    store.close()


@pytest.mark.parametrize(
    "content",
    [b"this is no database, but it is long enough to look like one" * 20, b"SQLite format 3\0" + b"\xff" * 4096],
)
def test_a_file_that_is_no_store(path, content):
    path.write_bytes(content)
    with pytest.raises(StoreError, match=r"trials\.sqlite"):
        TrialStore(path)
    assert path.read_bytes() == content


def test_places_where_no_store_can_be(tmp_path):
    for place in (tmp_path, tmp_path / "nowhere" / "trials.sqlite"):
        with pytest.raises(StoreError, match="cannot open the trial store"):
            TrialStore(place)


def fill(path, count=200):
    store = TrialStore(path)
    for number in range(count):
        store.add(trial(number))
    store.close()


@pytest.mark.parametrize("page", [1, 2, 4, 8])
def test_a_damaged_page_is_reported(path, page):
    fill(path)
    content = bytearray(path.read_bytes())
    size = int.from_bytes(content[16:18], "big")
    assert len(content) > size * 9
    content[page * size : (page + 1) * size] = b"\xa5" * size
    path.write_bytes(bytes(content))
    with pytest.raises(StoreError):
        store = TrialStore(path)
        store.bind({"network": "abc"})
        for each in store:
            store.get(each.allocation)
        for number in range(200, 256):
            store.add(trial(number))


@pytest.mark.parametrize(
    ("column", "value"),
    [("allocation", "{"), ("allocation", "{}"), ("allocation", "[" * 10_000), ("costs", "nonsense"), ("costs", "3")],
)
def test_a_damaged_row_of_an_older_version_is_reported(path, column, value):
    fill(path, 3)
    with sqlite3.connect(path) as connection:
        connection.execute(f"UPDATE trials SET {column}=?, checksum=NULL WHERE number=2", (value,))
    connection.close()
    store = TrialStore(path)
    with pytest.raises(StoreError, match="damaged row"):
        list(store)
    store.close()


OLD_SCHEMA = """
CREATE TABLE trials (number INTEGER PRIMARY KEY, allocation_key TEXT NOT NULL UNIQUE, allocation TEXT NOT NULL,
    correct INTEGER NOT NULL, samples INTEGER NOT NULL, loss REAL NOT NULL, costs TEXT NOT NULL, seconds REAL NOT NULL,
    created REAL NOT NULL);
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
INSERT INTO trials VALUES (1, '4/4',
    '{"format": "amed-allocation/1", "network": null, "layers": {"a": {"w": 4, "a": 4}}}',
    7, 10, 0.5, '{"latency_ms": 2.0}', 0.1, 0.0);
"""


@pytest.mark.parametrize("version", [1, 2])
def test_older_stores_are_brought_up_to_date(path, version):
    with sqlite3.connect(path) as connection:
        connection.executescript(OLD_SCHEMA)
        if version == 2:
            connection.execute("CREATE TABLE answers (question TEXT PRIMARY KEY, answer TEXT NOT NULL)")
            connection.execute("INSERT INTO facts VALUES ('network', 'abc')")
        connection.execute(f"PRAGMA user_version={version}")
    connection.close()
    for _ in range(2):
        store = TrialStore(path)
        (trial,) = store
        assert trial.quality == Quality(7, 10, 0.5)
        store.add_answer("question", "answer")
        assert store.answer("question") == "answer"
        if version == 2:  # it was tied to something, when accuracy was all that could be optimised
            with pytest.raises(StoreError, match="trials of another score"):
                store.bind({"network": "abc", "score": "divergence"})
            store.bind({"network": "abc", "score": "top-1"})
        store.close()


@pytest.mark.parametrize(
    "quality",
    [
        Quality(None, 100, None, 0.0125, DIVERGENCE, {}, 0.5),
        Quality(90, 100, 0.3, 0.0125, DIVERGENCE, {"macro-f1": 0.8, "top-1": 0.9}),
        Quality(None, 100, None, 3.5, Score("mine", "mine", True)),
    ],
)
def test_scores_and_metrics_come_back(path, quality):
    kept = Trial(BitAllocation({"a": (4, 4)}), quality, {"latency_ms": 1.0}, 0.5)
    store = TrialStore(path)
    store.add(kept)
    store.close()
    store = TrialStore(path)
    assert list(store) == [kept] and store.get(kept.allocation).quality.metrics == quality.metrics
    store.close()


def test_estimates_of_earlier_versions_count_as_not_evaluated(path):
    whole, estimate = (Trial(BitAllocation({"a": (bits, bits)}), Quality(7, 10, 0.5), {}) for bits in (4, 8))
    store = TrialStore(path)
    store.add(whole)
    store.add(estimate)
    store.close()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE trials SET partial=1 WHERE number=2")
    connection.close()
    store = TrialStore(path)
    assert list(store) == [whole] and len(store) == 1 and store.get(estimate.allocation) is None
    complete = Trial(estimate.allocation, Quality(60, 100, 0.7), {})
    store.add(complete)
    assert store.get(estimate.allocation) == complete and len(store) == 2
    store.close()


def test_a_store_of_another_version(path):
    fill(path, 1)
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version=99")
    connection.close()
    with pytest.raises(StoreError, match="version 99, this program reads"):
        TrialStore(path)


def test_a_database_of_another_program_is_left_alone(path):
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE invoices (id INTEGER)")
    connection.close()
    with pytest.raises(StoreError):
        TrialStore(path)
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("invoices",)]
    connection.close()


FULL_DISK = """
import resource, signal, sys
from amed_env import BitAllocation, Quality, Trial, TrialStore
from amed_env.errors import StoreError
from amed_env.problem.score import DIVERGENCE, Score

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
store = TrialStore(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
kept = 0
try:
    for number in range(10_000):
        allocation = BitAllocation({f"layer{i}": (1 + number // 16**i % 16, 8) for i in range(10)})
        store.add(Trial(allocation, Quality(number, 10_000, 0.5), {}))
        kept += 1
except StoreError as error:
    print(kept, len(store), "--resume" in str(error))
"""


def test_a_full_disk_ends_with_an_error_and_keeps_what_was_there(path):
    pytest.importorskip("resource")
    run = subprocess.run([sys.executable, "-c", FULL_DISK, str(path)], capture_output=True, text=True, check=True)
    kept, found, advised = run.stdout.split()
    assert int(kept) > 0
    assert (found, advised) == (kept, "True")
    store = TrialStore(path)
    assert [each.quality.correct for each in store] == list(range(int(kept)))
    store.close()


def test_it_is_bound_to_what_it_holds_trials_of(path):
    store = TrialStore(path)
    facts = {"network": "abc", "device": "def"}
    store.bind(facts)
    store.bind(facts)
    store.add(trial(1))
    store.close()
    again = TrialStore(path)
    assert list(again) == [trial(1)]
    again.bind(facts)
    with pytest.raises(StoreError, match="trials of another device; use another folder"):
        again.bind({**facts, "device": "other"})
    with pytest.raises(StoreError, match="device, network"):
        again.bind({"network": "x", "device": "y"})
    again.close()


def test_a_closed_store_says_so(path):
    store = TrialStore(path)
    store.close()
    with pytest.raises(StoreError, match="closed"):
        store.add(trial(1))


@pytest.mark.parametrize(
    ("column", "value"),
    [("correct", 999), ("loss", 0.125), ("costs", '{"latency_ms": 0.5}'), ("samples", 999), ("seconds", 1e9)],
)
def test_a_changed_value_is_not_believed(path, caplog, column, value):
    trials = [trial(number) for number in range(4)]
    with closing(TrialStore(path)) as store:
        for each in trials:
            store.add(each)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"UPDATE trials SET {column}=? WHERE number=2", (value,))
        connection.commit()
    with closing(TrialStore(path)) as store:
        assert list(store) == [trials[0], *trials[2:]]
        assert "1 of its trials do not match their checksums and are evaluated again" in caplog.text
        store.add(trials[1])  # evaluated again
        assert store.get(trials[1].allocation) == trials[1]


def test_a_changed_answer_of_a_device_is_asked_for_again(path):
    with closing(TrialStore(path)) as store:
        store.add_answer("question", "answer")
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE answers SET answer='other'")
        connection.commit()
    with closing(TrialStore(path)) as store:
        assert store.answer("question") is None
        store.add_answer("question", "answer")
        assert store.answer("question") == "answer"


def test_values_without_sign_or_fraction_match_their_checksum(store):
    first = Trial(BitAllocation.uniform(["a"], 4), Quality(5, 10, -0.0), {"latency_ms": 1}, 0)
    second = Trial(
        BitAllocation.uniform(["a"], 8), Quality(None, 10, None, score=0.5), {"latency_ms": 0.1 + 0.2}, 1e-300
    )
    for each in (first, second):
        store.add(each)
    assert len(list(store)) == 2
