"""SQL that can only read what it is given: what is refused, and a DuckDB with no way out.

Knows nothing of datasets. Two locks, each enough against most of what was tried: a statement is
parsed and refused unless it is one SELECT through and through (DuckDB lets a WITH hold a COPY or
an INSERT), and the database has neither files, network, extensions nor settings to change. What
DuckDB itself spills to disk is the exception that files of its own would slip through, so every
connection spills to a folder that did not exist before.
"""

import json
import os
import re
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb

# the kinds of query that an allowed statement may consist of; INSERT, COPY and others are missing
READING_NODES = {"SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE"}
# table functions that run text which nobody has looked at
RUN_TEXT = {"query", "query_table"}
EXPLAIN = re.compile(r"\s*EXPLAIN\s+(ANALYZE\s+)?(\([^()]*\)\s*)?", re.IGNORECASE)
MEMORY_BYTES = 4 * 2**30  # of one query, if the machine has twice that; more goes to disk
LOCKED = """
    SET memory_limit = '{memory_mib}MiB';
    SET temp_directory = '{spill_folder}';
    SET TimeZone = 'UTC';
    SET python_enable_replacements = false;
    SET autoinstall_known_extensions = false;
    SET autoload_known_extensions = false;
    SET enable_external_access = false;
    SET lock_configuration = true;
"""


class QueryError(ValueError):
    """A query that is wrong or not allowed; the message says why."""


def check_only_reads(connection: duckdb.DuckDBPyConnection, query: str) -> None:
    """Raise QueryError unless the text is one SELECT, or one EXPLAIN of a SELECT.

    connection: parses; nothing is run. Raises duckdb.Error for text that is no SQL.
    """
    kinds = _kinds(connection, query)
    body = query
    if kinds == [duckdb.StatementType.EXPLAIN]:
        body = EXPLAIN.sub("", query, count=1)
        kinds = _kinds(connection, body)
    if kinds != [duckdb.StatementType.SELECT]:
        found = ", ".join(kind.name for kind in kinds) or "nothing"
        raise QueryError(f"wanted one SELECT, got {found}; a dataset is only read here")
    for node in _nodes(_parse(connection, body)):
        kind = str(node.get("type", ""))
        if kind.endswith("_NODE") and kind not in READING_NODES:
            found = kind.removesuffix("_NODE").removesuffix("_QUERY")
            raise QueryError(f"wanted one SELECT, got {found} in it; a dataset is only read here")
        if node.get("function_name") in RUN_TEXT:
            raise QueryError(
                f"function {node['function_name']} is not allowed; write the query out"
            )


def lock(connection: duckdb.DuckDBPyConnection) -> None:
    """Shut a connection off from everything but what is registered with it."""
    spill_folder = Path(tempfile.gettempdir(), f"maskmill-query-{uuid.uuid4().hex}")
    quoted = str(spill_folder).replace("'", "''")
    memory_mib = min(MEMORY_BYTES, _memory_bytes() // 2) // 2**20
    connection.execute(LOCKED.format(memory_mib=memory_mib, spill_folder=quoted))


def _kinds(connection: duckdb.DuckDBPyConnection, query: str) -> list[Any]:
    return [statement.type for statement in connection.extract_statements(query)]


def _parse(connection: duckdb.DuckDBPyConnection, query: str) -> Any:
    """The statement as a tree."""
    ((text,),) = connection.execute("SELECT json_serialize_sql(?)", [query]).fetchall()
    tree = json.loads(text)
    if tree["error"]:
        raise QueryError(str(tree["error_message"]))
    return tree


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            yield node
            waiting += node.values()
        elif isinstance(node, list):
            waiting += node


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
