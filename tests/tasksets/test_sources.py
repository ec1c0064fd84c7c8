"""Sources: which one a path means, that rows are read late, and what is said about bad ones."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from explorer_mq.tasksets.settings import TasksetSettings
from explorer_mq.tasksets.sources import parquet
from explorer_mq.tasksets.sources.opening import open_source
from explorer_mq_schemas.errors import ConfigError

FDS = Path("/proc/self/fd")
ROWS = [{"prompt": f"p{n}", "n": n, "level": n / 10} for n in range(7)]


def opened(path, **fields):
    return open_source(TasksetSettings(name="mine", path=str(path), **fields))


def write_parquet(file, rows, **options):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(rows), file, **options)
    return file


@pytest.fixture(params=["jsonl", "parquet", "saved", "saved_splits", "directory", "code"])
def any_source(request, tmp_path, write_jsonl, rows_file):
    """The same seven rows from every kind of source that stores rows."""
    match request.param:
        case "jsonl":
            return opened(write_jsonl(*ROWS))
        case "parquet":
            return opened(write_parquet(tmp_path / "r.parquet", ROWS, row_group_size=3))
        case "code":
            columns = {"level": [n / 10 for n in range(7)]}
            return opened(f"{rows_file}:make", options={"rows": 7, **columns})
    datasets = pytest.importorskip("datasets")
    directory = tmp_path / "set"
    if request.param == "directory":
        directory.mkdir()
        write_jsonl(*ROWS, name="set/train.jsonl")
        return opened(directory, options={"cache_dir": str(tmp_path / "cache")})
    found = datasets.Dataset.from_list(ROWS)
    if request.param == "saved_splits":
        found = datasets.DatasetDict({"test": found.select([0]), "train": found})
    found.save_to_disk(str(directory))
    return opened(directory)


def test_source_gives_rows_by_number_when_asked_in_any_order(any_source):
    assert len(any_source) == 7
    assert any_source.rows([5, 0, 5, 6]) == [ROWS[5], ROWS[0], ROWS[5], ROWS[6]]
    assert any_source.rows(range(7)) == ROWS
    assert any_source.rows([]) == []


def test_source_gives_a_column_when_it_has_it(any_source):
    assert any_source.column("level") == [row["level"] for row in ROWS]
    assert any_source.column("nothing") == [None] * 7


def test_source_gives_rows_of_their_own_when_the_same_is_asked_twice(any_source):
    first, second = any_source.rows([3, 3])
    first["prompt"] = "changed"
    assert second == ROWS[3]
    assert any_source.rows([3]) == [ROWS[3]]


@pytest.mark.parametrize("max_rows", [2, 7, 9])
def test_source_ends_early_when_max_rows_is_given(write_jsonl, max_rows):
    source = opened(write_jsonl(*ROWS), max_rows=max_rows)
    assert len(source) == min(max_rows, 7)
    assert source.column("n") == list(range(min(max_rows, 7)))


def test_jsonl_parses_no_other_row_when_one_is_read(write_jsonl):
    file = write_jsonl(*ROWS[:3], "{poison", "[1]", *ROWS[3:])
    source = opened(file)
    assert len(source) == 9
    assert source.rows([0, 2, 5]) == [ROWS[0], ROWS[2], ROWS[3]]
    with pytest.raises(ConfigError, match=rf"{file}:4: not JSON: "):
        source.rows([3])
    with pytest.raises(ConfigError, match=rf"{file}:5: a row must be a JSON object"):
        source.rows([4])


def test_jsonl_counts_blank_lines_as_lines_but_not_as_rows(write_jsonl):
    file = write_jsonl("", ROWS[0], "  \t", "", ROWS[1], "nonsense", "")
    source = opened(file)
    assert source.rows([0, 1]) == ROWS[:2]
    with pytest.raises(ConfigError, match=rf"{file}:6: not JSON"):
        source.rows([2])


def test_jsonl_reads_any_line_end_and_byte_order_mark(tmp_path):
    file = tmp_path / "windows.jsonl"
    file.write_bytes(b'\xef\xbb\xbf{"prompt": "\xc3\xa4"}\r\n{"prompt": "b"}')
    assert opened(file).rows([0, 1]) == [{"prompt": "ä"}, {"prompt": "b"}]


def test_jsonl_holds_offsets_and_no_open_file_when_it_is_large(tmp_path):
    file = tmp_path / "large.jsonl"
    with file.open("w") as lines:
        lines.writelines(f'{{"prompt": "{"x" * 500}", "n": {n}}}\n' for n in range(20_000))
    before = len(list(FDS.iterdir()))
    source = opened(file)
    assert source.rows([19_999])[0]["n"] == 19_999
    assert len(list(FDS.iterdir())) == before
    kept = sum(sys.getsizeof(value) for value in vars(source).values())
    assert kept < file.stat().st_size / 40


def test_jsonl_refuses_when_the_file_has_changed(write_jsonl):
    file = write_jsonl(*ROWS)
    source = opened(file)
    write_jsonl(*ROWS, ROWS[0])
    with pytest.raises(ConfigError, match=r"rows\.jsonl has changed since it was opened"):
        source.rows([0])


def test_parquet_decodes_only_the_row_groups_asked_for(tmp_path, monkeypatch):
    source = opened(write_parquet(tmp_path / "r.parquet", ROWS, row_group_size=2))
    read = []
    inner = source._file

    class Spy:
        def read_row_group(self, group):
            read.append(group)
            return inner.read_row_group(group)

    source._file = Spy()
    source.rows([0, 6, 1])
    assert read == [0, 3]
    source.rows([1, 6])
    assert read == [0, 3]
    monkeypatch.setattr(parquet, "_KEPT_BYTES", 0)
    source.rows([2])
    source.rows([2, 0])
    assert read == [0, 3, 1, 0, 1]


def test_huggingface_names_the_splits_when_none_is_meant(tmp_path):
    datasets = pytest.importorskip("datasets")
    found = datasets.Dataset.from_list(ROWS)
    splits = {"easy": found.select([1]), "hard": found}
    datasets.DatasetDict(splits).save_to_disk(str(tmp_path / "set"))
    with pytest.raises(ConfigError, match=r"no split 'train'; it has easy, hard: set split"):
        opened(tmp_path / "set")
    assert len(opened(tmp_path / "set", split="easy")) == 1
    with pytest.raises(ConfigError, match=r"'mine'.*has no subsets"):
        opened(tmp_path / "set", split="easy", subset="main")


def test_huggingface_says_why_when_a_directory_holds_no_dataset(tmp_path):
    with pytest.raises(ConfigError, match=r"taskset 'mine': .* cannot be loaded: "):
        opened(tmp_path, options={"cache_dir": str(tmp_path / "cache")})


@pytest.fixture(scope="module")
def gym():
    return pytest.importorskip("reasoning_gym")


def test_reasoning_gym_gives_the_same_rows_when_opened_again(gym):
    options = {"size": 5, "min_terms": 2, "max_terms": 3}
    first = opened("reasoning_gym:chain_sum", seed=3, options=options)
    again = opened("reasoning_gym:chain_sum", seed=3, options=options)
    other = opened("reasoning_gym:chain_sum", seed=4, options=options)
    rows = first.rows(range(5))
    assert rows == again.rows(range(5)) != other.rows(range(5))
    assert {"question", "answer", "metadata"} <= set(rows[0])
    assert first.column("num_terms") == [row["metadata"]["num_terms"] for row in rows]


@pytest.mark.parametrize(
    ("path", "options", "message"),
    [
        ("chain_sun", {}, r"no set 'chain_sun'; did you mean reasoning_gym:chain_sum\?"),
        ("chain_sum", {"terms": 3}, r"options .*'terms': 3.* are refused: TypeError"),
        ("chain_sum", {"min_terms": -1}, r"are refused: AssertionError"),
    ],
)
def test_reasoning_gym_says_what_is_wrong_when_it_cannot_make_rows(gym, path, options, message):
    with pytest.raises(ConfigError, match=rf"taskset 'mine' \(reasoning_gym:{path}\): .*{message}"):
        opened(f"reasoning_gym:{path}", options=options)


def test_code_is_asked_row_by_row_when_it_has_a_length(rows_file):
    from explorer_mq import plugins

    source = opened(f"{rows_file}:Lazy")
    seen = plugins.load(f"{rows_file}:SEEN", "explorer_mq.tasksets")
    seen.clear()
    assert len(source) == 1_000_000
    assert source.rows([999_999]) == [{"prompt": "999999"}]
    assert seen == [999_999]


def test_code_is_read_to_max_rows_when_it_never_ends(rows_file):
    source = opened(f"{rows_file}:endless", max_rows=4)
    assert [row["prompt"] for row in source.rows(range(4))] == ["0", "1", "2", "3"]


@pytest.mark.parametrize(
    ("attribute", "options", "message"),
    [
        ("broken", {}, "RuntimeError: no rows today"),
        ("TEXT", {}, "gives str; expected an iterable of rows"),
        ("NUMBERS", {"rows": 3}, "no callable and takes no options"),
        ("make", {}, "TypeError: .*missing"),
    ],
)
def test_code_says_what_is_wrong_when_it_gives_no_rows(rows_file, attribute, options, message):
    with pytest.raises(ConfigError, match=rf"taskset 'mine' \(.*:{attribute}\): .*{message}"):
        opened(f"{rows_file}:{attribute}", options=options)


def test_code_names_the_row_when_it_is_no_mapping(rows_file):
    source = opened(f"{rows_file}:NUMBERS")
    with pytest.raises(ConfigError, match=r"rows\.py:NUMBERS\) row 1 is int; a row must be a map"):
        source.rows([1])


@pytest.mark.parametrize("name", ["empty.jsonl", "empty.parquet"])
def test_source_is_refused_by_name_when_it_has_no_rows(tmp_path, name):
    path = tmp_path / name
    if name == "empty.parquet":
        write_parquet(path, [])
    else:
        path.write_text("\n \n")
    with pytest.raises(ConfigError, match=rf"taskset 'mine' has no rows: {path} is empty"):
        opened(path)


def test_huggingface_is_refused_by_name_when_it_has_no_rows(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict({"prompt": []}).save_to_disk(str(tmp_path / "set"))
    # datasets itself stumbles over a saved set without rows
    with pytest.raises(ConfigError, match=rf"taskset 'mine': {tmp_path}/set cannot be loaded"):
        opened(tmp_path / "set")


@pytest.mark.parametrize(
    ("path", "fields", "message"),
    [
        ("rows.jsonlx", {}, r"no file or directory .*did you mean .*rows\.jsonl\?"),
        ("rows.jsonl", {"split": "test"}, r"takes no split"),
        ("rows.jsonl", {"subset": "main"}, r"takes no subset"),
        ("rows.jsonl", {"options": {"a": 1}}, r"takes no options"),
        ("rows.csv", {}, r"neither \.jsonl nor \.parquet"),
        ("broken.parquet", {}, r"cannot be read"),
    ],
)
def test_source_is_refused_with_the_reason_when_settings_do_not_fit(
    tmp_path, write_jsonl, path, fields, message
):
    write_jsonl(*ROWS)
    (tmp_path / "rows.csv").write_text("prompt\n")
    (tmp_path / "broken.parquet").write_text("no parquet")
    with pytest.raises(ConfigError, match=message):
        opened(tmp_path / path, **fields)


def test_source_says_what_to_install_when_its_package_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match=r"needs datasets: pip install 'explorer-mq\[tasksets\]'"):
        opened(tmp_path)
