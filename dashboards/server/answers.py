"""What an address answers with: a page, a JSON document, a table as CSV."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from dashboards.server.web import REPORT_POLICY, Response


def html(page: str, status: int = 200) -> Response:
    return Response(status, page.encode("utf-8", "replace"))


def as_report(page: str, name: str) -> Response:
    """A page that is a file of its own, to be taken along."""
    return Response(200, page.encode("utf-8", "replace"), "text/html; charset=utf-8", name, REPORT_POLICY)


def as_json(document: Any, name: str = "") -> Response:
    body = json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Response(200, body.encode("utf-8", "replace"), "application/json", name)


def as_csv(name: str, rows: Iterable[Mapping[str, Any]]) -> Response:
    rows = list(rows)
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]) if rows else ["nothing"], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: _cell(value) for key, value in row.items()})
    return Response(200, buffer.getvalue().encode("utf-8", "replace"), "text/csv; charset=utf-8", name)


def plain_name(name: str) -> str:
    """A file name that every system takes."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._") or "run"


def _cell(value: Any) -> Any:
    """Text that a spreadsheet would take for a formula gets a mark before it."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value
