"""Pages for people as files: HTML and Markdown as they are, PDF by the print of a browser that is installed."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import click

FORMS = ("html", "markdown", "pdf")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "microsoft-edge")
PDF_S = 120.0
# Nothing is asked of the network, by the page or by the browser for itself. The page is ours and has no script: the
# browser's sandbox, which containers and root cannot have, would hold nothing back.
QUIET = (
    "--headless", "--disable-gpu", "--no-sandbox", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--host-resolver-rules=MAP * ~NOTFOUND", "--no-pdf-header-footer",
)  # fmt: skip


def find_browser() -> str:
    """The program that prints. UsageError with the command that installs one where there is none."""
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        raise click.UsageError(
            "a PDF is printed by Chromium, and none is on the PATH: install it (Debian, Ubuntu: apt install chromium; "
            "macOS: brew install --cask chromium), or take --format html and print that in any browser"
        )
    return found


def require_place(form: str | None, output: Path | None) -> None:
    """UsageError for what could not be written in the end: no folder or a closed one, or no browser for a PDF."""
    if output is not None:
        folder = output.absolute().parent
        if not folder.is_dir():
            raise click.UsageError(f"-o {output}: there is no folder {folder}")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise click.UsageError(f"-o {output}: nothing may be written into {folder}; choose another place")
    if form == "pdf":
        find_browser()


def write_page(page: str, form: str, output: Path) -> None:
    """A whole page in one of FORMS, given as HTML or Markdown; what lies at `output` stays until the new is whole."""
    from energy.runs import replace_file

    if form != "pdf":
        replace_file(output, page)
        return
    with tempfile.TemporaryDirectory(prefix="hoofprint-print-") as folder:
        file = Path(folder) / f"{output.stem}.html"
        file.write_text(page, encoding="utf-8")
        replace_file(output, printed(file))


def printed(page: Path) -> bytes:
    """The PDF of an HTML file: A4, without the browser's own header and footer. ClickException where it fails."""
    with tempfile.TemporaryDirectory(prefix="hoofprint-print-") as folder:
        output = Path(folder) / "page.pdf"
        profile = Path(folder) / "profile"  # of its own: one that is in use would take the order and print nothing
        command = [find_browser(), *QUIET, f"--user-data-dir={profile}", f"--print-to-pdf={output}",
                   page.absolute().as_uri()]  # fmt: skip
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=PDF_S)
        except subprocess.TimeoutExpired:
            raise click.ClickException(f"{command[0]} did not print {page} within {PDF_S:.0f} s") from None
        if done.returncode or not output.exists():
            lines = done.stderr.strip().splitlines()
            raise click.ClickException(
                f"{command[0]} could not print {page}: {lines[-1] if lines else 'it said nothing'}"
            )
        return output.read_bytes()
