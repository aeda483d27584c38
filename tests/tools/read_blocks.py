"""Reads blocks with the engines users have, and prints what each of them saw as one JSON object.

    read_blocks.py STATEMENT.sql ROUTE USER FILE.parquet...

DuckDB runs the statement of `spanhouse blocks ls --sql`; pyarrow, Polars and ClickHouse (chdb) read the files. An engine that
is not installed is missing from the answer. Every engine also reads every column to the end, and looks up one user the way
it prunes best (statistics, Parquet bloom filters).
"""

import collections
import importlib.util
import json
import sys


def with_duckdb(statement, route, user, files):
    import duckdb

    db = duckdb.connect()
    spans = statement.strip().rstrip(";")
    one = db.execute(
        f"""SELECT count(*), sum(duration_ns)::VARCHAR, count(DISTINCT trace_id),
                   count(*) FILTER (WHERE "span.http.route" = $1), sum(len(events)), sum(len(links)),
                   sum(cardinality(attributes_rest)) FROM ({spans})""",
        [route],
    ).fetchone()
    names = ["spans", "duration_ns", "traces", "on_route", "events", "links", "rest"]
    seen = dict(zip(names, one))
    seen["duration_ns"] = int(seen["duration_ns"])
    column = '"span.http.status_code"::VARCHAR'
    rows = db.execute(f"SELECT {column}, count(*) FROM ({spans}) WHERE {column} IS NOT NULL GROUP BY 1").fetchall()
    seen["status_codes"] = {str(value): count for value, count in rows}
    rows = db.execute(
        f"""SELECT e."event.code"::VARCHAR, count(*) FROM (SELECT unnest(events) AS e FROM ({spans}))
            WHERE e."event.code" IS NOT NULL GROUP BY 1"""
    ).fetchall()
    seen["event_codes"] = {str(value): count for value, count in rows}
    by_user = f"""SELECT count(*) FROM ({spans}) WHERE "span.user.id" = $1"""
    seen["by_user"] = db.execute(by_user, [user]).fetchone()[0]
    # Reading everything finds what pruning of columns would hide.
    everything = db.execute(f"SELECT sum(hash(COLUMNS(*)) & 1) FROM ({spans})").fetchone()
    seen["columns"] = len(everything)
    return seen


def text(value):
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def of_tables(tables, route):
    """Counts over tables given as (rows, columns -> list of Python values)."""
    seen = collections.Counter()
    traces, codes, event_codes, columns = set(), collections.Counter(), collections.Counter(), set()
    for rows, table in tables:
        columns |= set(table)
        seen["spans"] += rows
        seen["duration_ns"] += sum(table["duration_ns"])
        traces |= set(table["trace_id"])
        seen["on_route"] += sum(value == route for value in table.get("span.http.route", []))
        codes.update(text(v) for v in table.get("span.http.status_code", []) if v is not None)
        seen["links"] += sum(len(links) for links in table["links"])
        seen["rest"] += sum(len(rest) for rest in table["attributes_rest"])
        for events in table["events"]:
            seen["events"] += len(events)
            event_codes.update(text(e["event.code"]) for e in events if e.get("event.code") is not None)
    return dict(
        seen, traces=len(traces), status_codes=dict(codes), event_codes=dict(event_codes), columns=len(columns)
    )


def with_pyarrow(_statement, route, user, files):
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    def table(file):
        data = pq.ParquetFile(file).read()
        data.validate(full=True)
        # Nanoseconds have no exact Python value; nothing here compares them.
        data = data.drop_columns(["start_time"])
        return data.num_rows, data.to_pydict()

    seen = of_tables((table(file) for file in files), route)
    wanted = pc.field("span.user.id") == user
    seen["by_user"] = sum(pq.read_table(file, columns=["span.user.id"], filters=wanted).num_rows for file in files)
    return seen


def with_polars(_statement, route, user, files):
    import polars

    def table(file):
        data = polars.read_parquet(file)
        return data.height, {name: data[name].to_list() for name in data.columns if name != "start_time"}

    seen = of_tables((table(file) for file in files), route)
    wanted = polars.col("span.user.id") == user
    seen["by_user"] = sum(polars.scan_parquet(file).filter(wanted).collect().height for file in files)
    return seen


def with_chdb(_statement, route, user, files):
    import chdb

    seen = collections.Counter()
    traces, codes, event_codes, columns = set(), collections.Counter(), collections.Counter(), set()

    def query(sql):
        # The server gives 64-bit integers as text in JSON.
        return json.loads(str(chdb.query(sql, "JSONCompact")))["data"]

    for file in files:
        source = "file('" + file.replace("\\", "\\\\").replace("'", "\\'") + "', Parquet)"
        mine = {row[0] for row in query(f"DESCRIBE TABLE {source}")}
        columns |= mine
        route_sql = route.replace("'", "\\'")
        has = lambda name: name in mine  # noqa: E731
        on_route = f"countIf(`span.http.route` = '{route_sql}')" if has("span.http.route") else "0"
        wanted = "`span.user.id` = '" + user.replace("'", "\\'") + "'"
        seen["by_user"] += int(query(f"SELECT count() FROM {source} WHERE {wanted}")[0][0])
        row = query(
            f"""SELECT count(), sum(duration_ns), {on_route}, sum(length(events)), sum(length(links)),
                       sum(length(attributes_rest)) FROM {source}"""
        )[0]
        for name, value in zip(["spans", "duration_ns", "on_route", "events", "links", "rest"], row):
            seen[name] += int(value)
        traces |= {row[0] for row in query(f"SELECT DISTINCT hex(trace_id) FROM {source}")}
        if has("span.http.status_code"):
            rows = query(
                f"""SELECT toString(`span.http.status_code`) AS c, count() FROM {source}
                    WHERE `span.http.status_code` IS NOT NULL GROUP BY c"""
            )
            codes.update({value: int(count) for value, count in rows})
        kind = query(f"SELECT toTypeName(events) FROM {source} LIMIT 1")[0][0]
        if "event.code" in kind:
            rows = query(
                f"""SELECT toString(c) AS t, count() FROM (SELECT arrayJoin(tupleElement(events, 'event.code')) AS c
                    FROM {source}) WHERE c IS NOT NULL GROUP BY t"""
            )
            event_codes.update({value: int(count) for value, count in rows})
        chdb.query(f"SELECT * FROM {source} FORMAT Null")
    return dict(
        seen, traces=len(traces), status_codes=dict(codes), event_codes=dict(event_codes), columns=len(columns)
    )


ENGINES = {"duckdb": with_duckdb, "pyarrow": with_pyarrow, "polars": with_polars, "chdb": with_chdb}


def main():
    statement, route, user, *files = sys.argv[1:]
    with open(statement, encoding="utf-8") as file:
        statement = file.read()
    seen = {}
    for name, read in ENGINES.items():
        if importlib.util.find_spec(name) is None:
            continue
        try:
            seen[name] = read(statement, route, user, files)
        except Exception as error:  # noqa: BLE001: any failure of an engine is an answer
            seen[name] = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(seen, default=str))


main()
