"""SQL over a dataset reads that dataset and does nothing else, whatever it is given."""

from collections.abc import Callable
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest
from labels import ok, put

from workflows.query import Dataset
from workflows.read_only_sql import QueryError, check_only_reads, lock
from workflows.results import DatasetWriter
from workflows.storage import Storage

hidden_table = pa.table({"x": ["secret"]})  # that DuckDB would find by its name in Python


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset in a folder with secrets, one of them where DuckDB by itself would spill."""
    folder = tmp_path_factory.mktemp("read-only")
    storage, root = Storage(), str(folder / "labels")
    DatasetWriter(storage, root).commit([put(storage, root, ok("a"))])
    (folder / ".tmp").mkdir()
    for place in (folder, folder / ".tmp"):
        (place / "secret.csv").write_text("x\nsecret\n")
    return folder


@pytest.fixture
def ask(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], pa.Table]:
    """Asks the dataset from within that folder."""
    monkeypatch.chdir(folder)
    return Dataset(str(folder / "labels")).sql


OTHER_STATEMENTS = [
    ("COPY masks TO 'out.csv'", "got COPY"),
    ("ATTACH 'out.db'", "got ATTACH"),
    ("EXPORT DATABASE 'out'", "got EXPORT"),
    ("IMPORT DATABASE 'out'", "got PRAGMA"),
    ("CREATE TABLE x AS SELECT 1", "got CREATE"),
    ("CREATE SECRET x (TYPE s3)", "got CREATE"),
    ("CREATE MACRO f(x) AS x", "got CREATE"),
    ("DROP VIEW masks", "got DROP"),
    ("ALTER VIEW masks RENAME TO x", "got ALTER"),
    ("INSERT INTO masks VALUES (1)", "got INSERT"),
    ("UPDATE masks SET area_px = 0", "got UPDATE"),
    ("DELETE FROM masks", "got DELETE"),
    ("SET threads = 1", "got SET"),
    ("RESET threads", "got SET"),
    ("PRAGMA database_list", "got PRAGMA"),
    ("CALL pragma_version()", "got CALL"),
    ("CHECKPOINT", "got CALL"),
    ("INSTALL httpfs", "got LOAD"),
    ("LOAD httpfs", "got LOAD"),
    ("PREPARE x AS SELECT 1", "got PREPARE"),
    ("USE memory", "got SET"),
    ("BEGIN", "got TRANSACTION"),
    ("SELECT 1; DROP VIEW masks", "got SELECT, DROP"),
    ("SELECT 1; SELECT 2", "got SELECT, SELECT"),
    ("", "got nothing"),
    ("-- SELECT 1", "got nothing"),
    ("EXPLAIN ANALYZE COPY masks TO 'out.csv'", "got COPY"),
    ("EXPLAIN ANALYZE CREATE TABLE x AS SELECT 1", "got CREATE"),
    ("EXPLAIN (FORMAT json) DROP VIEW masks", "got DROP"),
    ("EXPLAIN /* hidden */ ANALYZE DROP VIEW masks", "syntax error"),
]
# a SELECT on the outside
HIDDEN_STATEMENTS = [
    ("WITH x AS (COPY tracks TO 'out.csv') SELECT * FROM x", "got COPY in it"),
    ("WITH x AS (COPY tracks TO '.tmp/out.csv') SELECT * FROM x", "got COPY in it"),
    ("WITH x AS (INSERT INTO _files.tracks VALUES (1) RETURNING *) SELECT 1", "got INSERT in it"),
    ("WITH x AS (UPDATE _files.tracks SET object_id = 1 RETURNING *) SELECT 1", "got UPDATE in it"),
    ("WITH x AS (DELETE FROM _files.tracks RETURNING *) SELECT 1", "got DELETE in it"),
    (
        "SELECT (SELECT 1 FROM (WITH x AS (COPY tracks TO 'out.csv') SELECT * FROM x))",
        "got COPY in it",
    ),
    (
        "SELECT 1 UNION ALL (WITH x AS (COPY tracks TO 'out.csv') SELECT 1 FROM x)",
        "got COPY in it",
    ),
    ("EXPLAIN ANALYZE WITH x AS (COPY tracks TO 'out.csv') SELECT * FROM x", "got COPY in it"),
    (
        "SELECT * FROM query('WITH x AS (COPY tracks TO ''out.csv'') SELECT * FROM x')",
        "query is not allowed",
    ),
    ("SELECT * FROM QUERY('SELECT 1')", "query is not allowed"),
    ("SELECT * FROM query_table('secret.csv')", "query_table is not allowed"),
]
OTHER_SOURCES = [
    "'secret.csv'",
    "'.tmp/secret.csv'",
    "'labels/masks/**/*.parquet'",
    "'s3://bucket/x.parquet'",
    "'https://example.com/x.csv'",
    "read_csv('secret.csv')",
    "read_csv('.tmp/secret.csv')",
    "read_text('secret.csv')",
    "read_text('.tmp/secret.csv')",
    "read_blob('secret.csv')",
    "read_json('secret.csv')",
    "sniff_csv('secret.csv')",
    "read_parquet('secret.csv')",
    "parquet_metadata('secret.csv')",
    "glob('*')",
    "glob('.tmp/*')",
    "duckdb_secrets()",
    "hidden_table",
    "delta_scan('labels/masks')",
    "arrow_scan(1, 2, 3)",
    "pandas_scan(1)",
]


@pytest.mark.parametrize(("query", "message"), [*OTHER_STATEMENTS, *HIDDEN_STATEMENTS])
def test_a_statement_that_does_more_than_read_is_refused(
    ask: Callable[[str], pa.Table], folder: Path, query: str, message: str
) -> None:
    before = sorted(folder.rglob("*"))
    with pytest.raises(QueryError, match=message):
        ask(query)
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("source", OTHER_SOURCES)
def test_nothing_but_the_dataset_can_be_read(ask: Callable[[str], pa.Table], source: str) -> None:
    with pytest.raises(QueryError) as refusal:
        ask(f"SELECT * FROM {source}")
    assert "\nsecret" not in str(refusal.value)


def test_the_environment_cannot_be_read(ask: Callable[[str], pa.Table]) -> None:
    with pytest.raises(QueryError, match="getenv"):
        ask("SELECT getenv('HOME')")


@pytest.mark.parametrize(
    "query",
    [
        "SELECT 1;",
        "FROM tracks",
        "TABLE tracks",
        "VALUES (1)",
        "DESCRIBE masks",
        "SUMMARIZE tracks",
        "EXPLAIN SELECT * FROM masks",
        "EXPLAIN ANALYZE SELECT * FROM masks",
        "EXPLAIN (FORMAT json) SELECT 1",
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 5) FROM n",
        "SELECT object_id FROM tracks UNION SELECT object_id FROM masks EXCEPT SELECT 7",
        "SELECT 'COPY masks TO ''out.csv''' AS text -- DROP VIEW masks",
        "SELECT * FROM masks TABLESAMPLE 100%",
        "SELECT * FROM (PIVOT tracks ON object_id IN (0, 1) USING count(*))",
        "SELECT list_transform(flags, lambda flag: flag.kind) FROM current_tracks",
    ],
)
def test_any_question_may_be_asked(ask: Callable[[str], pa.Table], query: str) -> None:
    assert ask(query).num_rows > 0


def test_only_what_may_be_asked_for_is_listed(ask: Callable[[str], pa.Table]) -> None:
    listed = ask("SHOW TABLES")["name"].to_pylist()
    views = ["current_masks", "current_tracks", "masks", "refinements", "runs", "tracks", "videos"]
    assert listed == views


def test_settings_cannot_be_changed_once_locked() -> None:
    with duckdb.connect() as connection:
        lock(connection)
        for setting in ("enable_external_access = true", "memory_limit = '1TB'", "threads = 9"):
            with pytest.raises(duckdb.Error, match="locked"):
                connection.execute(f"SET {setting}")


def test_what_spills_to_disk_is_gone_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workflows.read_only_sql.MEMORY_BYTES", 64 * 2**20)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    spilled = "SELECT md5(r::VARCHAR) AS m FROM range(2000000) t(r) ORDER BY m"
    with duckdb.connect() as connection:
        check_only_reads(connection, spilled)
        lock(connection)
        rows = connection.sql(spilled).to_arrow_reader(10_000)
        assert rows.read_next_batch().num_rows
        assert any(tmp_path.iterdir()), "it did not have to spill"
        (folder,) = (path.name for path in tmp_path.iterdir())
        assert folder.startswith("maskmill-query-")
        del rows
    assert not any(tmp_path.iterdir())
