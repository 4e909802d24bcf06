"""Rows of any column names to examples; every row that cannot be one is named."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pmemx.core.domain import Example
from pmemx.core.errors import DataError
from pmemx.data.rows import Row, Table

ROLES = ("prompt", "response", "document", "group", "id", "form", "text")
"""What a column can be; `text` is plain general text in place of prompt and response."""
_SHOWN = 10


@dataclass(frozen=True)
class Placed:
    """An example and the place of its row."""

    example: Example
    place: str


def fail_on(findings: Sequence[str]) -> None:
    """Raise one DataError that lists the findings, the first ten in full; none is no error."""
    if findings:
        more = [f"... and {len(findings) - _SHOWN} more rows"] if len(findings) > _SHOWN else []
        raise DataError("\n  ".join([*findings[:_SHOWN], *more]))


def check_columns(columns: Mapping[str, str | None], setting: str) -> None:
    """Raise DataError for a role that does not exist, or for a required one that is taken away."""
    if unknown := [role for role in columns if role not in ROLES]:
        raise DataError(f"{setting} has {', '.join(unknown)}; a column can be {', '.join(ROLES)}")
    if absent := [role for role in ("prompt", "response") if columns.get(role, role) is None]:
        raise DataError(f"{setting}.{absent[0]} is null, but every example needs one; name its column")


def examples(
    table: Table, columns: Mapping[str, str | None], *, response_needed: bool, document_in_prompt: bool
) -> list[Placed]:
    """One example a row. columns: roles to column names, where a role that is left out has its own name.

    An example without a group gets one from its document, else from its prompt, so that rows about one document are
    never in two splits. response_needed=False lets responses be absent or empty.
    Raises DataError with the place of every bad row.
    """
    column = _names(columns)
    findings = list(table.findings)
    required = ["prompt", "response"] if response_needed else ["prompt"]
    if table.rows and (absent := [role for role in required if column(role) not in table.columns]):
        findings += [
            f"{table.name} has no column {column(role)!r}, but {', '.join(map(repr, table.columns))}; "
            f"set data.columns.{role}=<one of these>"
            for role in absent
        ]
        raise DataError("\n  ".join(findings))
    placed = []
    for row in table.rows:
        text = {role: _text(row, column(role), findings, required=role in required) for role in required}
        text |= {
            role: _text(row, column(role), findings, required=False)
            for role in ("response", "document")
            if role not in text
        }
        name = {role: _name(row, column(role), findings) for role in ("id", "group", "form")}
        prompt, document = text["prompt"], text["document"]
        group = name["group"] or short_digest(document or prompt)
        if document_in_prompt and document:
            prompt, document = f"{document}\n\n{prompt}", ""
        identity = name["id"] or f"{Path(table.name).stem}-{row.number}"
        placed.append(Placed(Example(identity, prompt, text["response"], document, group, name["form"]), row.place))
    fail_on(findings)
    return placed


def texts(table: Table, columns: Mapping[str, str | None]) -> list[tuple[Row, str, str]]:
    """Rows of plain text with their text and their group (or id, or the digest of the text).

    Raises DataError with the place of every bad row.
    """
    column = _names(columns)
    findings = list(table.findings)
    found = []
    for row in table.rows:
        text = _text(row, column("text"), findings, required=True)
        group = _name(row, column("group"), findings) or _name(row, column("id"), findings) or short_digest(text)
        found.append((row, text, group))
    fail_on(findings)
    return found


def has_text(table: Table, columns: Mapping[str, str | None]) -> bool:
    """True when rows are plain text: there is a text column and no column of prompts."""
    column = _names(columns)
    return column("text") in table.columns and column("prompt") not in table.columns


def short_digest(text: str) -> str:
    """16 hex digits that identify a text."""
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]


def _names(columns: Mapping[str, str | None]) -> Callable[[str], str | None]:
    return lambda role: columns.get(role, role)


def _text(row: Row, column: str | None, findings: list[str], *, required: bool) -> str:
    value = row.values.get(column) if column is not None else None
    if value is None and not required:
        return ""
    if not isinstance(value, str):
        has = f"{type(value).__name__} {str(value)[:40]!r}" if column in row.values else "missing"
        findings.append(f"{row.place}: {column!r} must be text, but is {has}; write a string or remove the row")
        return ""
    if required and not value.strip():
        findings.append(f"{row.place}: {column!r} is empty; fill it in or remove the row")
    try:
        value.encode()
    except UnicodeEncodeError:
        findings.append(f"{row.place}: {column!r} holds half a surrogate pair, which is no character; repair the row")
    return value


def _name(row: Row, column: str | None, findings: list[str]) -> str:
    value = row.values.get(column) if column is not None else None
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, bool | int):
        return str(value)
    findings.append(f"{row.place}: {column!r} must be text or a whole number, but is {type(value).__name__}; change it")
    return ""
