"""Find the published parts (test, dev, train, ...) of a benchmark's dataset: one file, a folder in any usual layout, or the hub."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from luthier.core.errors import DataError, InputError, did_you_mean
from luthier.data.columnar import hub_rows
from luthier.data.files import Row, bare_name, rows_of

HUB = "hub:"
SAME: Mapping[str, tuple[str, ...]] = {
    "validation": ("validation", "valid", "val", "dev"),
    "val": ("val", "validation", "valid"),
    "train": ("train", "training"),
    "questions": ("questions", "question"),
}
ENDINGS = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".pq", ".ndjson", ".gz")


def is_hub(data: str) -> bool:
    """Whether ``data`` names a dataset on the hub."""
    return data.startswith(HUB)


def is_file(data: str) -> bool:
    """Whether ``data`` is one file, which then is the part that is asked."""
    return not is_hub(data) and not Path(data).expanduser().is_dir()


def has_part(data: str, part: str, *, config: str = "", subjects: Sequence[str] = ()) -> bool:
    """Whether a folder holds a part; nothing is asked of the hub."""
    return not is_hub(data) and not is_file(data) and bool(_in_folder(Path(data).expanduser(), part, config, subjects))


def rows_of_part(
    data: str, part: str, *, config: str = "", subjects: Sequence[str] = ()
) -> Iterator[tuple[str, int, Row]]:
    """(file, line, row) of one part. ``config`` is the hub's configuration and, in a folder, a folder inside it.

    ``subjects`` are asked of the hub one by one, where each is a configuration of its own. A row of a file that is named after its
    subject gets that as ``subject``. Raises DataError when there is no such part, or several files could be it.
    """
    if is_hub(data):
        for name, subject in _hub_names(data, part, config, subjects):
            yield from ((name, line, _with_subject(row, subject)) for line, row in hub_rows(name))
        return
    path = Path(data).expanduser()
    found = [(path, "")] if is_file(data) else _in_folder(path, part, config, subjects)
    if not found:
        raise DataError(
            f"{path} has no {part} file; it holds: {', '.join(sorted(p.name for p in path.iterdir())[:12]) or 'nothing'}",
            hint=f"name it {part}.jsonl (or .json, .csv, .tsv, .parquet), or give the file itself",
        )
    for file, subject in found:
        yield from ((str(file), line, _with_subject(row, subject)) for line, row in rows_of(file))


def pick_subjects(wanted: Sequence[str], known: Sequence[str], name: str) -> tuple[str, ...]:
    """``wanted`` as they are, each checked against ``known``."""
    for subject in wanted:
        if subject not in known:
            raise InputError(f"{name} has no subject {subject!r}. {did_you_mean(subject, known)}")
    return tuple(wanted)


def _with_subject(row: Row, subject: str) -> Row:
    return {**row, "subject": subject} if subject and isinstance(row, Mapping) and not row.get("subject") else row


def _hub_names(data: str, part: str, config: str, subjects: Sequence[str]) -> list[tuple[str, str]]:
    address, colon, split = data.partition(":")[2].partition(":")
    part = split if colon else part
    if address.count("/") >= 2:
        return [(f"{HUB}{address}:{part}", "")]
    if subjects and not config:
        return [(f"{HUB}{address}/{subject}:{part}", subject) for subject in subjects]
    return [(f"{HUB}{address}{'/' if config else ''}{config}:{part}", "")]


def _in_folder(folder: Path, part: str, config: str, subjects: Sequence[str]) -> list[tuple[Path, str]]:
    """Files of a part with the subject that their place names (empty: the rows say it themselves).

    They lie in the configuration's own folder, in the folder itself, in one of the part's name (a table for each subject), or in a folder
    for each subject. Other folders are not looked into: they may hold another configuration.
    """
    places = [folder / config / "data", folder / config] if config else []
    for place in [*places, folder / "data", folder]:
        found = _matching(place, part)
        if found:
            return [(file, "") for file in found]
    for same in SAME.get(part, (part,)):
        inside = _data_files(folder / same) or _data_files(folder / "data" / same)
        if inside:
            return [(file, bare_name(file).removesuffix(f"_{same}")) for file in inside]
    return [(file, subject) for subject in subjects for file in _matching(folder / subject, part)]


def _data_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.is_file() and p.name.lower().endswith(ENDINGS))


def _matching(folder: Path, part: str) -> list[Path]:
    """The files of ``folder`` that are ``part``: named exactly so, in numbered pieces, or with the part as one word of the name."""
    files = _data_files(folder)
    for same in SAME.get(part, (part,)):
        exact = [f for f in files if bare_name(f).lower() == same]
        pieces = [f for f in files if re.fullmatch(rf"{same}-\d+-of-\d+", bare_name(f).lower())]
        word = [f for f in files if same in re.split(r"[-_. ]", bare_name(f).lower())]
        found = exact or pieces or word
        if len(found) > 1 and found is not pieces:
            names = ", ".join(f.name for f in found)
            raise DataError(
                f"{folder}: several files could be {part}: {names}", hint="give the one that is meant as data"
            )
        if found:
            return found
    return []
