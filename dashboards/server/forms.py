"""Which POST is a form of one of our own pages that can be read, by its headers alone, and its fields."""

from __future__ import annotations

from email.message import Message
from urllib.parse import parse_qsl

LARGEST_FORM = 128_000  # bytes
MOST_FIELDS = 32
KIND = "application/x-www-form-urlencoded"


def why_refused(headers: Message) -> tuple[int, str] | None:
    """(HTTP status, why) of a request that is no such form; None where it is one."""
    if not _is_from_here(headers):
        return 403, "this form was not sent by a page of this dashboard"
    if headers.get("Content-Type", "").partition(";")[0].strip().lower() != KIND:
        return 415, f"expected a form ({KIND})"
    if "Transfer-Encoding" in headers or length_of(headers) < 0:
        return 411, "a form needs its length"
    if length_of(headers) > LARGEST_FORM:
        return 413, f"the form is larger than {LARGEST_FORM // 1000} kB: use the command line for this one"
    return None


def _is_from_here(headers: Message) -> bool:
    """Whether a page of this server sent the request, by what browsers say and no page can change."""
    site = headers.get("Sec-Fetch-Site")
    if site is not None:
        return bool(site == "same-origin")
    origin = headers.get("Origin", "")  # of plain HTTP from elsewhere browsers say no more than this
    return bool(origin) and origin.partition("://")[2].lower() == headers.get("Host", "").lower()


def length_of(headers: Message) -> int:
    """Of the body, in bytes; -1 where it is not told."""
    told = headers.get("Content-Length", "")
    return int(told) if told.isascii() and told.isdecimal() and len(told) < 16 else -1


def fields_of(body: bytes, length: int) -> list[tuple[str, str]]:
    """The fields in order. ValueError for what is not UTF-8, has too many of them, or broke off before its length."""
    if len(body) < length:
        raise ValueError("the form broke off")
    return parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=MOST_FIELDS, errors="strict")
