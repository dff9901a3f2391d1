"""Questions to databases: the whole pipeline with a scripted engine, the execution accuracy of a model, schema linking, and attacks.

    python benchmarks/text2sql.py --data DATA [--quick]
    python benchmarks/text2sql.py --data DATA --model smollm2-135m --questions 40 [--minutes 10]
    python benchmarks/text2sql.py --data DATA --attacks [--attack-texts ATTACKS.jsonl ...]

DATA holds ``test.jsonl`` and ``validation.jsonl`` (question, sql, database) and the SQLite files that they name. Gold rows are those that Python's
own sqlite3 gives for the gold query. The oracle answers each question with its gold query: what is not 100% is the pipeline's fault. A model is
asked with and without a grammar of the schema's names, and without repairs. Attacks go through a model that always writes hostile SQL, and to the
process that holds the database directly, past the check. Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import random
import shutil
import sqlite3
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import sqlglot
from sqlglot import exp

sys.path.insert(0, str(Path(__file__).parent))

from _hostile_sql import ASKS, BOMBS, FILES, WRITES

from luthier.apps.sql.ask import NoQueryError, ask
from luthier.apps.sql.compare import same_rows
from luthier.apps.sql.connect import Database, Limits, connect
from luthier.apps.sql.schema import Schema, link
from luthier.core.engine import GENERATE, EngineInfo, Generation, Sampling
from luthier.core.errors import LuthierError
from luthier.core.message import Prompt, last_user_text

ATTACK_LIMITS = Limits(timeout_s=1.0, rows=100, memory_mb=256)
PROMPTS = 500
BUDGETS = (1000, 2000, 4000)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, required=True, help="a folder with test.jsonl, validation.jsonl and the databases"
    )
    parser.add_argument(
        "--model", help="a model that writes queries; without one, the oracle and the linking are measured"
    )
    parser.add_argument("--engine", default="auto")
    parser.add_argument(
        "--questions", type=int, default=40, help="how many questions the model is asked, drawn by a seed"
    )
    parser.add_argument("--minutes", type=float, default=15.0, help="the most time for each way of asking the model")
    parser.add_argument("--attacks", action="store_true", help="run the attacks instead")
    parser.add_argument(
        "--attack-texts",
        type=Path,
        nargs="*",
        default=[],
        help="JSON lines with text and label: prompts that attack models",
    )
    parser.add_argument("--quick", action="store_true", help="a tenth of it")
    given = parser.parse_args()
    if given.attacks:
        figures, quality = attacks(given.data, given.attack_texts, PROMPTS // 10 if given.quick else PROMPTS)
    else:
        rows = read_rows(given.data)
        rows = random.Random(0).sample(rows, len(rows) // 10) if given.quick else rows
        if given.model:
            drawn = random.Random(1).sample(rows, min(given.questions, len(rows)))
            figures, quality = with_model(given.data, drawn, given.model, given.engine, given.minutes)
        else:
            figures, quality = oracle(given.data, rows)
    print(json.dumps({"benchmark": "text2sql", "ratios": {}, "figures": figures, "quality": quality}))


def read_rows(data: Path) -> list[dict[str, Any]]:
    """The questions of test and validation."""
    lines = [
        line
        for name in ("test", "validation")
        for line in (data / f"{name}.jsonl").read_text(encoding="utf-8").strip().split("\n")
    ]
    return [json.loads(line) for line in lines]


class Scripted:
    """An engine that answers what a function says."""

    def __init__(self, answer: Callable[[str], str], name: str) -> None:
        self._answer = answer
        self.info = EngineInfo(model=name, engine="scripted", capabilities=frozenset({GENERATE}))

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling, progress: Any = None) -> list[Generation]:
        """One answer a prompt."""
        return [Generation(self._answer(last_user_text(prompt)), (), (), "stop") for prompt in prompts]

    def stream(self, prompt: Prompt, sampling: Sampling) -> Iterator[Any]:
        """Not asked for."""
        raise NotImplementedError

    def score(self, requests: Any, progress: Any = None) -> list[Any]:
        """Not asked for."""
        raise NotImplementedError

    def embed(self, texts: Any, progress: Any = None) -> Any:
        """Not asked for."""
        raise NotImplementedError

    def close(self) -> None:
        """Nothing to close."""


def gold_rows(path: Path, sql: str) -> list[tuple[Any, ...]]:
    """The rows of a gold query, by Python's sqlite3 alone."""
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
    connection.text_factory = lambda data: data.decode("utf-8", "replace")
    try:
        return connection.execute(sql).fetchall()
    finally:
        connection.close()


def right(row: dict[str, Any], path: Path, rows: Sequence[Sequence[Any]]) -> bool:
    """Whether ``rows`` are those of the gold query; their order counts where it sorts."""
    return same_rows(rows, gold_rows(path, row["sql"]), ordered="order by" in row["sql"].lower())


# ---- the oracle, and linking


def oracle(data: Path, rows: list[dict[str, Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Execution accuracy with gold queries, time a question, and what linking keeps of gold tables and columns."""
    opened: dict[str, Database] = {}
    correct, times, opening = 0, [], []
    kept: dict[int, list[tuple[float, float]]] = {budget: [] for budget in BUDGETS}
    for row in rows:
        path = data / row["database"]
        if row["database"] not in opened:
            for other in opened.values():
                other.close()
            start = time.perf_counter()
            opened = {row["database"]: connect(path)}
            opening.append(time.perf_counter() - start)
        database = opened[row["database"]]
        engine = Scripted(lambda text, row=row: f"Here it is:\n```sql\n{row['sql']};\n```", "oracle")
        start = time.perf_counter()
        answer = ask(row["question"], database, engine, limits=Limits(rows=100_000), words=False)
        times.append(time.perf_counter() - start)
        correct += right(row, path, answer.result.rows)
        for budget in BUDGETS:
            shown = link(database.schema(), row["question"], most_characters=budget)
            kept[budget].append(recall(row["sql"], database.schema(), shown))
    for database in opened.values():
        database.close()
    figures = {
        "questions": len(rows),
        "p50_ms": round(1000 * statistics.median(times), 2),
        "p99_ms": round(1000 * sorted(times)[int(0.99 * len(times))], 2),
        "open_p50_ms": round(1000 * statistics.median(opening), 1),
    }
    quality: dict[str, Any] = {"oracle_execution_accuracy": round(correct / len(rows), 4)}
    for budget, pairs in kept.items():
        quality[f"linking_{budget}_characters"] = {
            "table_recall": round(statistics.mean(pair[0] for pair in pairs), 4),
            "column_recall": round(statistics.mean(pair[1] for pair in pairs), 4),
        }
    print(json.dumps(quality, indent=1), json.dumps(figures), flush=True)
    return figures, quality


def recall(sql: str, whole: Schema, shown: Schema) -> tuple[float, float]:
    """The parts of a gold query's tables, and of its columns, that are in ``shown``."""
    query = sqlglot.parse_one(sql, read="sqlite")
    tables = {each.name.lower() for each in query.find_all(exp.Table) if whole.table(each.name)}
    names = {column.name.lower() for name in tables if (table := whole.table(name)) for column in table.columns}
    columns = {each.name.lower() for each in query.find_all(exp.Column)} & names
    there = {table.name.lower() for table in shown.tables}
    shown_columns = {column.name.lower() for table in shown.tables for column in table.columns}
    return len(tables & there) / len(tables), len(columns & shown_columns) / len(columns) if columns else 1.0


# ---- a model


def with_model(
    data: Path, rows: list[dict[str, Any]], name: str, engine_name: str, minutes: float
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Execution accuracy of a model in three ways, each on as many of the same questions as its time allows."""
    from luthier.strategies._load import load

    engine = load(name, engine=engine_name, raw=True)
    ways: dict[str, dict[str, Any]] = {
        "free, two repairs": {"constrained": False, "repairs": 2},
        "free, no repairs": {"constrained": False, "repairs": 0},
    }
    if "grammar" in engine.info.parameters:
        ways = {
            "constrained, two repairs": {"constrained": True, "repairs": 2},
            "constrained, no repairs": {"constrained": True, "repairs": 0},
        } | ways
    quality: dict[str, Any] = {}
    try:
        for label, options in ways.items():
            said = _asked(data, rows, engine, options, time.monotonic() + 60 * minutes)
            quality[label] = said
            print(label, json.dumps(said), flush=True)
    finally:
        engine.close()
    return {"model": name, "engine": engine.info.engine}, quality


def _asked(
    data: Path, rows: list[dict[str, Any]], engine: Any, options: dict[str, Any], deadline: float
) -> dict[str, Any]:
    correct = ran = repaired = asked = 0
    start = time.monotonic()
    for row in rows:
        if time.monotonic() > deadline:
            break
        asked += 1
        path = data / row["database"]
        try:
            answer = ask(
                row["question"], path, engine, limits=Limits(timeout_s=5, rows=100_000), words=False, **options
            )
        except NoQueryError:
            continue
        ran += 1
        repaired += len(answer.attempts) > 1
        correct += right(row, path, answer.result.rows)
    return {
        "questions": asked,
        "execution_accuracy": round(correct / max(asked, 1), 4),
        "ran": round(ran / max(asked, 1), 4),
        "repaired": repaired,
        "seconds_a_question": round((time.monotonic() - start) / max(asked, 1), 2),
    }


# ---- attacks


def attacks(data: Path, texts: Sequence[Path], count: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Hostile SQL through the whole pipeline and past the check, on copies of a database: bytes changed, worst time, worst memory."""
    prompts = attack_prompts(texts, count)
    figures: dict[str, Any] = {"prompts": len(prompts), "statements": len(WRITES + FILES + BOMBS)}
    quality: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        made = copies(data, Path(folder))
        for kind, path in made.items():
            out = Path(folder) / f"out-{kind}"
            out.mkdir()
            before = digest(path)
            said, changed = attack(path, prompts, out)
            quality[kind] = {
                "bytes_changed": int(digest(path) != before),
                "files_written": sum(1 for _ in out.rglob("*")),
                "read_outside": changed,
            }
            figures[kind] = said
            print(kind, json.dumps({**quality[kind], **said}), flush=True)
    return figures, quality


def attack_prompts(texts: Sequence[Path], count: int) -> list[str]:
    """Our own, then those of the files that are labelled as attacks, until there are ``count``."""
    found = list(ASKS)
    for path in texts:
        for line in path.read_text(encoding="utf-8").strip().split("\n"):
            row = json.loads(line)
            if row.get("label") in ("injection", "jailbreak"):
                found.append(row["text"])
    while len(found) < count:
        found += [f"{one} {other}" for one in ASKS for other in ASKS]
    return found[:count]


def copies(data: Path, folder: Path) -> dict[str, Path]:
    """A database of the data as SQLite and as DuckDB, and one of its tables as CSV."""
    import duckdb

    source = data / read_rows(data)[0]["database"]
    light = folder / "shop.sqlite"
    shutil.copyfile(source, light)
    light.chmod(0o644)
    duck = duckdb.connect(str(folder / "shop.duckdb"))
    with sqlite3.connect(light) as connection:
        names = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for name in names:
            cursor = connection.execute(f'SELECT * FROM "{name}"')
            columns = ", ".join(f'"{each[0]}" VARCHAR' for each in cursor.description)
            duck.execute(f'CREATE TABLE "{name}" ({columns})')
            for row in cursor.fetchall():
                duck.execute(f'INSERT INTO "{name}" VALUES ({", ".join("?" * len(row))})', list(map(str, row)))
    duck.execute(f"COPY \"{names[0]}\" TO '{folder}/rows.csv'")
    duck.close()
    return {"sqlite": light, "duckdb": folder / "shop.duckdb", "csv": folder / "rows.csv"}


def attack(path: Path, prompts: list[str], out: Path) -> tuple[dict[str, Any], int]:
    """All prompts through the pipeline, then all statements past the check; the worst of both, and how often a file's text came back."""
    seconds: dict[str, float] = {"checked": 0.0, "unchecked": 0.0}
    refused = ran = outside = 0
    with connect(path, ATTACK_LIMITS) as database, Memory(database) as memory:
        table = f'"{database.schema().tables[0].name}"'
        statements = [each.replace("{table}", table).replace("{folder}", str(out)) for each in WRITES + FILES + BOMBS]
        turn = iter(range(10**9))
        engine = Scripted(lambda text: statements[next(turn) % len(statements)], "hostile")
        for prompt in prompts:
            start = time.monotonic()
            try:
                answer = ask(prompt, database, engine, repairs=0, words=False)
                ran += 1
                outside += "root:" in str(answer.result.rows)
            except LuthierError:
                refused += 1
            seconds["checked"] = max(seconds["checked"], time.monotonic() - start)
        for sql in statements:
            start = time.monotonic()
            with contextlib.suppress(LuthierError):
                outside += "root:" in str(database.run(sql, ATTACK_LIMITS).rows)
            seconds["unchecked"] = max(seconds["unchecked"], time.monotonic() - start)
        assert database.run(f"SELECT count(*) FROM {table}").rows
    said = {
        "refused": refused,
        "ran_and_read_only": ran,
        "limit_s": ATTACK_LIMITS.timeout_s,
        "worst_s_checked": round(seconds["checked"], 2),
        "worst_s_unchecked": round(seconds["unchecked"], 2),
        "limit_mb": ATTACK_LIMITS.memory_mb,
        "idle_mb": memory.idle >> 20,
        "worst_mb": memory.most >> 20,
    }
    return said, outside


class Memory:
    """Watches the process that holds a database: the most that it had in memory."""

    def __init__(self, database: Database) -> None:
        self._database, self._done = database, threading.Event()
        self.idle = self.most = self._now()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _now(self) -> int:
        pid = self._database.pid
        try:
            return int(psutil.Process(pid).memory_info().rss) if pid is not None else 0
        except psutil.Error:
            return 0

    def _watch(self) -> None:
        while not self._done.wait(0.01):
            self.most = max(self.most, self._now())

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()


def digest(path: Path) -> str:
    """sha256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    main()
