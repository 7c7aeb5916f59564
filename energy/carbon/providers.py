"""Live grid intensity, asked for only when a spec says so: an interface, one provider, and what to do when it fails.

A provider gives a series for a zone and a span of time or raises ProviderError. `series_or_declared` then falls back on
what was declared, and says so. The token comes from the environment; it is sent to the provider's own address alone,
and is in no message and no cache file.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import math
import os
import socket
import time
import urllib.error
import urllib.parse
import urllib.request
from email.message import Message
from pathlib import Path
from typing import IO, Any, Protocol

from energy.carbon.series import IntensitySeries, utc
from energy.carbon.series_file import make_series, records_in
from energy.factors import Factor

TOKEN = "ELECTRICITYMAPS_TOKEN"
BASE_URL = "https://api.electricitymaps.com"
LONGEST_S = 10 * 86400.0  # the API gives ten days of hourly values at a time
LARGEST_BYTES = 8_000_000
HOUR_S = 3600.0


class ProviderError(RuntimeError):
    """The provider gave no usable series; the message says why and what to do."""


class IntensityProvider(Protocol):
    """Where a series of grid intensities can be had."""

    name: str

    def series(self, zone: str, start_unix_s: float, end_unix_s: float) -> IntensitySeries:
        """Hourly g/kWh of a zone over a span (unix seconds); ProviderError when it cannot be had."""
        ...


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the token to another address."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> None:
        return None


class ElectricityMaps:
    """Electricity Maps, API v3: past hourly intensity of a zone ("FR", "US-CAL-CISO").

    token: else from ELECTRICITYMAPS_TOKEN; timeout_s: for each answer as a whole, however slowly it drips;
    cache_folder: where answers are kept (one file for each span), so that a record can be made again without asking;
    scope: lifecycle or direct
    """

    name = "Electricity Maps API v3"

    def __init__(
        self,
        token: str | None = None,
        *,
        base_url: str = BASE_URL,
        timeout_s: float = 10.0,
        cache_folder: str | Path | None = None,
        scope: str = "lifecycle",
    ) -> None:
        if scope not in ("lifecycle", "direct"):
            raise ValueError(f"scope must be lifecycle or direct, not {scope!r}")
        self._token = token if token is not None else os.environ.get(TOKEN, "")
        self.base_url = base_url.rstrip("/")
        self.timeout_s = timeout_s
        self.cache_folder = Path(cache_folder) if cache_folder is not None else None
        self.scope = scope

    def __repr__(self) -> str:
        return f"ElectricityMaps(base_url={self.base_url!r}, scope={self.scope!r})"

    @classmethod
    def source(cls, zone: str) -> str:
        """What a series of a zone says that it is from."""
        return f"{cls.name}, {zone}"

    def series(self, zone: str, start_unix_s: float, end_unix_s: float) -> IntensitySeries:
        """See IntensityProvider. Whole hours around the span are asked for, ten days at a time."""
        if not (math.isfinite(start_unix_s) and math.isfinite(end_unix_s) and start_unix_s < end_unix_s):
            raise ValueError(f"a span of time must end after it starts: {start_unix_s!r} to {end_unix_s!r}")
        start, end = math.floor(start_unix_s / HOUR_S) * HOUR_S, math.ceil(end_unix_s / HOUR_S) * HOUR_S
        records: list[dict[str, Any]] = []
        while start < end:
            upto = min(end, start + LONGEST_S)
            records += self._span(zone, start, upto)
            start = upto
        try:
            found = make_series(
                list(enumerate(_once(records), start=1)),
                {},
                "entry",
                self.source(zone),
                time_column="datetime",
                intensity_column="carbonIntensity",
                step_s=HOUR_S,
            )
        except ValueError as error:
            raise ProviderError(str(error)) from None
        estimated = sum(1 for record in records if record.get("isEstimated"))
        if not estimated:
            return found
        note = f"{estimated} of {len(records)} hours are the provider's estimates and may still change"
        return IntensitySeries(
            found.start_unix_s, found.end_unix_s, found.g_per_kwh, found.source, found.basis, found.geography,
            (*found.warnings, note),
        )  # fmt: skip

    def _span(self, zone: str, start: float, end: float) -> list[dict[str, Any]]:
        query = {"zone": zone, "start": utc(start), "end": utc(end), "emissionFactorType": self.scope,
                 "temporalGranularity": "hourly"}  # fmt: skip
        url = f"{self.base_url}/v3/carbon-intensity/past-range?{urllib.parse.urlencode(query)}"
        cached = self._cached(url)
        if cached is not None:
            return cached
        if not self._token:
            raise ProviderError(f"{self.name}: no token; set {TOKEN}, or declare a constant")
        try:
            document = json.loads(self._get(url))
            records = [row for _, row in records_in(document, self.name)[0]]
        except ValueError as error:
            raise ProviderError(f"{self.name}: the answer makes no sense ({error})") from None
        for record in records:
            if not isinstance(record.get("datetime"), str) or "carbonIntensity" not in record:
                raise ProviderError(f"{self.name}: an entry without datetime or carbonIntensity")
            told = record.get("emissionFactorType", self.scope)
            if told != self.scope:
                raise ProviderError(f"{self.name}: asked for {self.scope} factors, got {told}")
        self._keep(url, records)
        return records

    def _get(self, url: str) -> bytes:
        request = urllib.request.Request(url, headers={"auth-token": self._token, "Accept": "application/json"})
        opener = urllib.request.build_opener(_NoRedirect)
        deadline = time.monotonic() + self.timeout_s
        slow = ProviderError(f"{self.name}: no answer within {self.timeout_s:g} s")
        try:
            with opener.open(request, timeout=self.timeout_s) as answer:
                body = b""
                while chunk := answer.read1(65536):
                    body += chunk
                    if len(body) > LARGEST_BYTES:
                        raise ProviderError(f"{self.name}: the answer is larger than {LARGEST_BYTES / 1e6:g} MB")
                    if time.monotonic() > deadline:
                        raise slow
                return body
        except urllib.error.HTTPError as error:
            raise ProviderError(f"{self.name}: {_why(error.code, error.headers)}") from None
        except TimeoutError:
            raise slow from None
        except urllib.error.URLError as error:
            if isinstance(error.reason, socket.timeout | TimeoutError):
                raise slow from None
            raise ProviderError(f"{self.name}: cannot be reached ({error.reason})") from None
        except (OSError, http.client.HTTPException) as error:
            raise ProviderError(f"{self.name}: the connection broke ({type(error).__name__})") from None

    def _file(self, url: str) -> Path | None:
        if self.cache_folder is None:
            return None
        return self.cache_folder / f"electricitymaps-{hashlib.sha256(url.encode()).hexdigest()[:24]}.json"

    def _cached(self, url: str) -> list[dict[str, Any]] | None:
        path = self._file(url)
        try:
            document = json.loads(path.read_text(encoding="utf-8")) if path else None
        except (OSError, ValueError):
            return None  # no cache yet, or one that cannot be read: ask again
        if not isinstance(document, dict) or document.get("url") != url or not isinstance(document.get("data"), list):
            return None
        return list(document["data"])

    def _keep(self, url: str, records: list[dict[str, Any]]) -> None:
        """Keeps an answer that will not change any more: whole, and nothing in it estimated."""
        path = self._file(url)
        if path is None or not records or any(record.get("isEstimated") for record in records):
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{path.name}.{os.getpid()}")
        aside.write_text(json.dumps({"url": url, "data": records}, indent=1), encoding="utf-8")
        os.replace(aside, path)


def _once(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Spans may share the hour between them."""
    return list({record["datetime"]: record for record in records}.values())


def _why(code: int, headers: Message | None) -> str:
    if code in (401, 403):
        return f"the token was refused (HTTP {code}); check {TOKEN} and that it covers the zone"
    if code == 429:
        wait = headers.get("Retry-After") if headers is not None else None
        return "too many requests (HTTP 429)" + (f"; it asks to wait {wait} s" if wait else "; try again later")
    if code == 404:
        return "no such zone or span (HTTP 404)"
    return f"HTTP {code}"


def series_or_declared(
    provider: IntensityProvider, zone: str, start_unix_s: float, end_unix_s: float, declared: Factor | None
) -> tuple[IntensitySeries | None, Factor | None, list[str]]:
    """(series or None, the constant for what it leaves out or None, what must be said).

    Pass both on to `energy.carbon.series.carbon`. A provider that fails ends nothing: the declared constant then
    holds for the whole span, and without one the carbon is missing, not zero.
    """
    try:
        series = provider.series(zone, start_unix_s, end_unix_s)
    except ProviderError as error:
        if declared is None or declared.value is None:
            return None, None, [f"{error}; no constant was declared to fall back on: the carbon is missing, not zero"]
        return None, declared, [f"{error}; fell back on the declared {declared}"]
    return series, declared, list(series.warnings)
