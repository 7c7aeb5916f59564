"""Takes the pictures of every screen from the stored sample of runs, and writes README.md beside them: `make gallery`.

Needs Chromium for the pages and a C compiler for the simulated GPUs. Every picture is what its command really shows.
"""

from __future__ import annotations

import json
import math
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS))

import terminal  # noqa: E402
import webpages  # noqa: E402
from make_sample import ROOT, SAMPLE, environment, workspace  # noqa: E402
from pictures import FIGURES, LIVE, PAGES, PLAN, RECORDED, REPORTS, SECTIONS, TERMINAL, Picture  # noqa: E402
from PIL import Image, ImageDraw, ImageFont  # noqa: E402

IMAGES = DOCS / "images"
MADE = DOCS / "images.partial"  # those there stay until all are made
MOST_BYTES = 200_000
H200 = ROOT / "tests" / "dashboards" / "sample_run"  # a real run on one H200
NOTES = {
    "cpu-*": "real runs of `sample/small.yaml` on two CPU cores without counters: all of their energy is modelled; "
    "`cpu-high-lr` and `cpu-low-lr` ran beside other work, which made them slower and dearer",
    "sim-4-gpus": "such a run beside four simulated GPUs, which pynvml reads from the stand-in in `tests/nvml_sim`",
    "llama-h200": "a real run on one NVIDIA H200, which lies in `tests/dashboards/sample_run`",
    "plan.json": f"`{PLAN}`",
    "sunny.csv`, `windy.csv": "made up by `gallery.py`",
}


def commanded(command: str, folder: Path, env: Mapping[str, str]) -> str:
    """Runs a command as it is typed; its stdout. RuntimeError with what it said where it fails."""
    done = subprocess.run(shlex.split(command), cwd=folder, env=env, capture_output=True, text=True, timeout=120)
    if done.returncode:
        raise RuntimeError(f"$ {command}\n{done.stdout}{done.stderr}")
    return done.stdout


def made_up_series(folder: Path) -> None:
    """Two grids that are nobody's, sunny.csv and windy.csv, for the day after the run that the picture is of."""
    run = json.loads((folder / "runs" / "cpu-high-lr" / "run.json").read_text(encoding="utf-8"))
    first = int(run["created_unix_s"]) // 3600 - 1
    grids = {
        "sunny": lambda hour: 320 - 230 * max(0.0, math.cos((hour % 24 - 12) * math.pi / 12)),
        "windy": lambda hour: 180 + 60 * math.sin((hour - first) / 5),
    }
    for name, intensity in grids.items():
        rows = [f"{3600 * hour},{intensity(hour):.0f}" for hour in range(first, first + 27)]
        text = "\n".join(["start_unix_s,intensity_g_per_kwh", *rows])
        (folder / f"{name}.csv").write_text(f"{text}\n", encoding="utf-8")


def draw_terminal(picture: Picture, shown: str) -> None:
    drawn = terminal.svg(picture.typed, shown, picture.columns, picture.name)
    (MADE / picture.file).write_text(drawn, encoding="utf-8")


def keep(picture: Picture, png: bytes) -> None:
    """The picture in at most 256 colours. ValueError where it is large even so."""
    packed = BytesIO()
    image = Image.open(BytesIO(png)).convert("RGB")
    if picture.simulated:
        image = labelled(image, "simulated GPUs")
    image.quantize(256, dither=Image.Dither.NONE).save(packed, "PNG", optimize=True)
    if packed.tell() > MOST_BYTES:
        raise ValueError(f"{picture.file}: {packed.tell():,} bytes, more than {MOST_BYTES:,}: show less of it")
    (MADE / picture.file).write_bytes(packed.getvalue())


def labelled(image: Image.Image, text: str) -> Image.Image:
    """The picture with a strip beneath that says what it is, so that it cannot be taken for more elsewhere."""
    found = Image.new("RGB", (image.width, image.height + 34), "#f0e442")
    found.paste(image, (0, 0))
    place = (image.width // 2, image.height + 17)
    ImageDraw.Draw(found).text(place, text, fill="#101418", anchor="mm", font=ImageFont.load_default(20))
    return found


def stored(picture: Picture) -> Path:
    """Where the sample has a screen that only a training makes."""
    return SAMPLE / "screens" / f"{picture.name}.{'png' if picture in LIVE else 'ansi'}"


def shown() -> dict[str, list[Picture]]:
    """The sections, without the screens that the sample does not have."""
    made = (*RECORDED, *LIVE)
    return {
        section: [picture for picture in pictures if picture not in made or stored(picture).exists()]
        for section, pictures in SECTIONS.items()
    }


def page_of() -> str:
    """README.md."""
    lines = [
        "# What it looks like",
        "",
        "`make gallery` makes each picture by the command under it, in a folder that has `experiments/` (with "
        "`small.yaml` of `sample/` in it), `faulty.yaml` of `sample/` and `runs/`. Those of a training that goes "
        "on were kept by `make_sample.py`. What the names stand for:",
        "",
    ]
    lines += [f"- `{name}`: {note}" for name, note in NOTES.items()]
    for section, pictures in shown().items():
        lines += ["", f"## {section}"]
        for picture in pictures:
            told = f"{picture.told} **Its GPUs are simulated.**" if picture.simulated else picture.told
            where = f", then `{picture.address}`" if picture.address else ""
            width = f' width="{min(picture.width, 820) if picture.file.endswith("png") else 720}"'
            lines += ["", told, "", f'<img src="images/{picture.file}" alt="{picture.told}"{width}>', ""]
            lines += [f"`{picture.command}`{where}"]
    return "\n".join(lines) + "\n"


def main() -> None:
    shutil.rmtree(MADE, ignore_errors=True)
    MADE.mkdir()
    with tempfile.TemporaryDirectory(prefix="hoofprint-docs-") as text:
        folder = workspace(Path(text) / "work")
        for run in [run for run in SAMPLE.iterdir() if (run / "run.json").exists()]:
            shutil.copytree(run, folder / "runs" / run.name)
        shutil.copytree(H200, folder / "runs" / "llama-h200")
        shutil.copy(SAMPLE / "faulty.yaml", folder)
        plain, simulated = environment(), environment(Path(text) / "nvml")
        commanded("hoofprint report runs/llama-h200", folder, plain)
        (folder / "plan.json").write_text(commanded(PLAN, folder, plain), encoding="utf-8")
        made_up_series(folder)
        for picture in (*RECORDED, *LIVE):
            if not stored(picture).exists():
                print(f"left out: {picture.name}, which the sample lacks: docs/make_sample.py makes it")
            elif picture in LIVE:
                keep(picture, stored(picture).read_bytes())
            else:
                draw_terminal(picture, stored(picture).read_text(encoding="utf-8"))
        for picture in TERMINAL:
            env = simulated if picture.simulated else plain
            screen, _ = terminal.record(shlex.split(picture.command), picture.columns, folder, env)
            draw_terminal(picture, screen.text())
        for picture in FIGURES:
            commanded(picture.command, folder, plain)
            keep(picture, (folder / picture.command.rpartition(" ")[2]).read_bytes())
        with webpages.opened() as chromium, webpages.dashboard(folder, plain) as address:
            for picture in REPORTS:
                commanded(picture.command, folder, plain)
                keep(picture, webpages.photograph(chromium, picture, (folder / picture.html).as_uri()))
            for picture in PAGES:
                keep(picture, webpages.photograph(chromium, picture, f"{address}{picture.address}"))
    shutil.rmtree(IMAGES, ignore_errors=True)
    MADE.rename(IMAGES)
    (DOCS / "README.md").write_text(page_of(), encoding="utf-8")
    size = sum(file.stat().st_size for file in IMAGES.iterdir())
    print(f"{len(list(IMAGES.iterdir()))} pictures, {size / 1e6:.1f} MB; {DOCS / 'README.md'}")


if __name__ == "__main__":
    main()
