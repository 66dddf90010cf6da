"""DuckDB as it runs queries over a lake: it reads what it is given, and can reach nothing else."""

from __future__ import annotations

import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from typing import Any, Self, TypeVar

import pyarrow as pa

from imbrace_lake.errors import InputError, SettingsError, StoreError
from imbrace_lake.printable import without_controls
from imbrace_lake.query.result import Rows
from imbrace_lake.query.views import View

T = TypeVar("T")

INSTALL = "queries need DuckDB: install imbrace-lake[query]"
READ_ONLY = "a lake is only read here: write a query, SELECT …"
_LOCKED = (
    "SET TimeZone = 'UTC'",
    # Which DuckDB writes to standard output, also into a pipe, if Python has no program file (`python -c`).
    "SET enable_progress_bar = false",
    "SET python_enable_replacements = false",
    "SET autoinstall_known_extensions = false",
    "SET autoload_known_extensions = false",
    "SET allow_community_extensions = false",
    "SET enable_external_access = false",
    "SET lock_configuration = true",
)


class Engine:
    """A DuckDB in memory with the sources and the views, for one query at a time.

    Args:
        sources: Objects with `__arrow_c_stream__`, or datasets, by name.
        own: The views, each after those that it uses.

    Raises:
        SettingsError: DuckDB is not installed.
    """

    def __init__(self, sources: Mapping[str, Any], own: Iterable[View]) -> None:
        # An interrupted import can end the process, or leave half of a module.
        _in_thread(_import_duckdb)
        import duckdb

        # For what does not fit into memory.
        self._spill = tempfile.mkdtemp(prefix="imbrace-lake-")
        self._connection = duckdb.connect()
        try:
            self._interruptibly(lambda: self._prepare(sources, own))
        except BaseException:
            self.close()
            raise

    def _prepare(self, sources: Mapping[str, Any], own: Iterable[View]) -> None:
        for name, source in sources.items():
            self._connection.register(name, source)
        for view in own:
            self._connection.execute(f"CREATE VIEW {view.name} AS {view.query}")
        self._connection.execute("SET temp_directory = ?", [self._spill])
        for statement in _LOCKED:
            self._connection.execute(statement)

    def __enter__(self) -> Self:
        """Return the engine."""
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Close the connection and delete its temporary files."""
        self.close()

    def query(self, sql: str, parameters: dict[str, Any] | list[Any], rows: int) -> Rows:
        """Return the result of one query, which is read as it is consumed.

        Args:
            sql: The query.
            parameters: The values of its parameters, by name or in their order.
            rows: About how many rows a batch has.

        Raises:
            InputError: The text is not one query that only reads, or the query fails.
            StoreError: An object cannot be read.
        """
        reader = self._interruptibly(lambda: self._begin(sql, parameters, rows))
        return Rows(reader.schema, self._batches(reader))

    def _begin(self, sql: str, parameters: dict[str, Any] | list[Any], rows: int) -> pa.RecordBatchReader:
        import duckdb

        kinds = duckdb.StatementType
        with _explained():
            statements = self._connection.extract_statements(sql)
            if not statements:
                raise InputError("there is no query: write SELECT …")
            if len(statements) > 1:
                raise InputError(f"there are {len(statements)} queries: write one, SELECT …")
            # A PIVOT has several statements.
            if statements[0].type not in (kinds.SELECT, kinds.EXPLAIN, kinds.MULTI):
                raise InputError(READ_ONLY)
            _check_parameters(statements[0].named_parameters, parameters)
            relation = self._connection.sql(statements[0].query, params=parameters)
            if relation is None:
                raise InputError(READ_ONLY)
            return relation.to_arrow_reader(rows)

    def _batches(self, reader: pa.RecordBatchReader) -> Iterator[pa.RecordBatch]:
        with _explained():
            while (batch := self._interruptibly(lambda: next(reader, None))) is not None:
                yield batch

    def _interruptibly(self, work: Callable[[], T]) -> T:
        """Call a function that Ctrl-C ends: the main thread does not notice it while DuckDB works there."""
        return _in_thread(work, self._connection.interrupt)

    def close(self) -> None:
        """Close the connection and delete its temporary files."""
        self._connection.close()
        shutil.rmtree(self._spill, ignore_errors=True)


def _check_parameters(named: Iterable[str], given: dict[str, Any] | list[Any]) -> None:
    """Reject values that do not belong to the parameters of a query.

    Args:
        named: The parameters of the query; the first `?` is 1.
        given: The values, by name or in their order.

    Raises:
        InputError: A parameter has no value, or a value has no parameter.
    """
    names = given if isinstance(given, dict) else map(str, range(1, len(given) + 1))
    # Names are equal for DuckDB whatever their case.
    wanted, known = {one.lower() for one in named}, {one.lower() for one in names}
    problems = {"has no value for": wanted - known, "has no": known - wanted}
    for problem, some in problems.items():
        if some:
            shown = ", ".join(f"${one}" for one in sorted(some))
            raise InputError(f"the query {problem} {shown}; ? is $1 for the first, $2 for the second")


def _in_thread(work: Callable[[], T], interrupt: Callable[[], None] = lambda: None) -> T:
    """Call a function in another thread if this is the main thread, and wait for its end, also after Ctrl-C.

    Args:
        work: The function.
        interrupt: Is called after Ctrl-C until the function ends.
    """
    if threading.current_thread() is not threading.main_thread():
        return work()
    outcome: Future[T] = Future()

    def call() -> None:
        try:
            outcome.set_result(work())
        except BaseException as exc:  # noqa: BLE001 - raised by `result`
            outcome.set_exception(exc)

    thread = threading.Thread(target=call, name="query", daemon=True)
    thread.start()
    try:
        return outcome.result()
    finally:
        # Several times, because DuckDB forgets one that comes before its next step.
        while not outcome.done():
            interrupt()
            thread.join(0.05)


def _import_duckdb() -> None:
    """Import DuckDB.

    Raises:
        SettingsError: It is not installed.
    """
    try:
        import duckdb  # noqa: F401
    except ImportError:
        raise SettingsError(INSTALL) from None


def names_in(sql: str) -> str:
    """Return the names of the tables and views of a query; the query itself if it can have them anywhere.

    So a column, an alias, a text or a comment with the name of a view is not a use of the view.

    Raises:
        SettingsError: DuckDB is not installed.
    """
    # DuckDB would take a Ctrl-C in the main thread as an error of the query.
    _in_thread(_import_duckdb)
    tree = _in_thread(lambda: _parsed(sql))
    # A PIVOT or an EXPLAIN is an error, too. `query` and `query_table` read what a text names.
    if '"error":false' in tree and not re.search('"function_name":"query(_table)?"', tree, re.IGNORECASE):
        # Not by a parser, because a long sum is nested too deep. Quotes in texts are escaped.
        return " ".join(re.findall(r'"table_name":"((?:[^"\\]|\\.)*)"', tree))
    return sql


def _parsed(sql: str) -> str:
    """Return the tree of a query as JSON, or an empty text or an error in JSON."""
    import duckdb

    with duckdb.connect() as connection, suppress(duckdb.Error):
        found = connection.execute("SELECT json_serialize_sql(?::VARCHAR)", [sql]).fetchall()
        return str(found[0][0])
    return ""


def is_complete(text: str) -> bool:
    """Whether a query ends with a semicolon that is not in a text or a comment.

    Raises:
        SettingsError: DuckDB is not installed.
    """
    _import_duckdb()
    import duckdb

    ends = [start for start, kind in duckdb.tokenize(text) if kind != duckdb.token_type.comment]
    return bool(ends) and text.encode()[ends[-1] :].lstrip()[:1] == b";"


@contextmanager
def _explained() -> Iterator[None]:
    """Turn errors of DuckDB and Arrow into a sentence."""
    import duckdb

    try:
        yield
    except (duckdb.IOException, FileNotFoundError) as exc:
        raise StoreError(
            f"an object of the lake cannot be read, or was replaced meanwhile: try again ({exc})"
        ) from exc
    except duckdb.PermissionException as exc:
        raise InputError("queries reach only the lake: no other files, no network, no extensions") from exc
    except (duckdb.Error, pa.ArrowException, OSError) as exc:
        if "reading the stream registered as" in str(exc):
            raise StoreError(
                f"an object of the lake cannot be read, or was replaced meanwhile: {exc}"
            ) from exc
        raise InputError(_sentence(str(exc))) from exc


def _sentence(error: str) -> str:
    """Return an error of DuckDB in one line."""
    # DuckDB names tables and functions with similar names, most of them its own, such as `pg_class`.
    if unknown := re.match("Catalog Error: (.+?) with name (.+?) does not exist", error, re.DOTALL):
        kind, name = unknown[1].lower(), " ".join(unknown[2].split())
        if kind == "table":
            return f"there is no table or view {name}: SHOW TABLES lists those of the lake"
        return f"there is no {kind} {name} in DuckDB"
    # It adds a line of the query, with a mark. An error about a value has the value.
    return without_controls(" ".join(re.sub(r"\n\s*\n.*", "", error.strip(), flags=re.DOTALL).split()))
