"""The pictures of the gallery: what each shows, and the command that made what is on it."""

from __future__ import annotations

from dataclasses import dataclass

WIDE, NARROW = 1280, 390


@dataclass(frozen=True)
class Picture:
    """A file in images/ (without its ending), one line on it, and what is typed.

    columns: of the terminal. address: of a page of the dashboard. html: the command writes this file, which is the
    page. simulated: GPUs on it are simulated.
    """

    name: str
    told: str
    command: str
    columns: int = 80
    simulated: bool = False
    address: str = ""
    html: str = ""
    width: int = WIDE
    height: int = 900
    dark: bool = False

    @property
    def file(self) -> str:
        """With `-simulated` where that is so, and the ending of its kind."""
        drawn = not (self.address or self.html or self.command.endswith(".png"))
        return f"{self.name}{'-simulated' if self.simulated else ''}.{'svg' if drawn else 'png'}"

    @property
    def typed(self) -> str:
        """The command, as the picture of a terminal has it."""
        return f"{self.command}  # with simulated GPUs" if self.simulated else self.command


PLAN = (
    "hoofprint plan experiments/llama_65b.yaml --set 'energy.pue_range={low: 1.05, high: 1.25, source: sites}' --json"
)
REPORT = "hoofprint report runs/llama-h200 --format html -o report.html"
RUN = "hoofprint run experiments/small.yaml --name sim-4-gpus"
DASHBOARD = "hoofprint dashboard --runs runs"

# Screens that only a training makes: `make_sample.py` has kept them.
RECORDED = [
    Picture("run", "A run while it trains.", RUN, 96, True),
    Picture("run-ended", "How it ends.", RUN, 96, True),
    Picture("top", "A run in training, looked at from another terminal.", "hoofprint top sim-4-gpus", simulated=True),
]
LIVE = [
    Picture("page-live", "A run while it goes on.", DASHBOARD, address="/run/sim-4-gpus/", height=1200, simulated=True),
    Picture("page-cluster", "The nodes and GPUs of what runs now.", DASHBOARD, address="/cluster", simulated=True),
]
TERMINAL = [
    Picture("plan", "What a training will take, before anything starts, and where each figure comes from.",
            "hoofprint plan experiments/llama_65b.yaml"),
    Picture("sweep", "The same for a range of cluster sizes.",
            "hoofprint plan experiments/llama_7b.yaml --sweep cluster.nodes=8..128"),
    Picture("bad-spec", "A spec with faults: all of them at once, each with its place and what was expected.",
            "hoofprint run faulty.yaml"),
    Picture("doctor", "Which sensors work on this machine, and what is missing.", "hoofprint doctor", simulated=True),
    Picture("measure", "Any command, metered.", "hoofprint measure --name sim-sleep -- sleep 4", simulated=True),
    Picture("runs", "The runs of a folder, failed ones included, and what they took together.",
            "hoofprint runs --total"),
    Picture("compare", "Runs side by side, and what does not compare.",
            "hoofprint compare cpu-low-lr cpu-high-lr cpu-killed"),
    Picture("model-card", "A model card: the Hub's YAML in grams, and a paragraph; --write README.md puts it into one.",
            "hoofprint report runs/cpu-high-lr --format huggingface", 96),
    Picture("verify", "A record, recomputed from its ledgers.", "hoofprint verify runs/llama-h200"),
]  # fmt: skip
FIGURES = [
    Picture("power", "Power by device and the run's events, on one H200; hatched is modelled.",
            "hoofprint plot llama-h200 --figure power -o power.png"),
    Picture("phases", "Where the energy went.", "hoofprint plot llama-h200 --figure phases -o phases.png"),
    Picture("rates", "Tokens/s, MFU and energy per token over the run.",
            "hoofprint plot llama-h200 --figure rates -o rates.png"),
    Picture("gpu-heat", "Each GPU over time.", "hoofprint plot sim-4-gpus --figure gpu-heat -o gpu-heat.png",
            simulated=True),
    Picture("energy-spent", "Energy so far, and the budget that stopped the run.",
            "hoofprint plot cpu-budget --figure energy-spent -o energy-spent.png"),
    Picture("carbon-spent", "Carbon so far; what was planned lies far above.",
            "hoofprint plot cpu-high-lr --figure carbon-spent -o carbon-spent.png"),
    Picture("places", "Carbon by place and hour of the start, on two grids that are made up.",
            "hoofprint plot cpu-high-lr --figure places --series 'made-up, sunny=sunny.csv' "
            "--series 'made-up, windy=windy.csv' -o places.png"),
    Picture("loss", "What the energy bought.", "hoofprint plot cpu-high-lr --figure loss -o loss.png"),
    Picture("fan", "The plan's low to high over time, and what happened.",
            "hoofprint plot cpu-high-lr --figure fan -o fan.png"),
    Picture("tornado", "Which assumption moves the plan of LLaMA-65B most.",
            "hoofprint plot plan.json --figure tornado -o tornado.png"),
    Picture("pareto", "Loss against energy of several runs.",
            "hoofprint compare cpu-low-lr cpu-high-lr cpu-killed -o pareto.png"),
    Picture("llama-paper", "Table 15 of the LLaMA paper, recomputed, and the same energy on other grids.",
            "hoofprint plot --figure llama-paper -o llama-paper.png"),
]  # fmt: skip
REPORTS = [
    Picture("report", "The report of a run: one file, offline.", REPORT, html="report.html", width=960, height=1500),
    Picture("report-dark", "The same where dark is preferred.", REPORT, html="report.html", width=960,
            height=1100, dark=True),
    Picture("report-total", "The report of a project.", "hoofprint runs --total --format html -o total.html",
            html="total.html", width=960, height=1500),
    Picture("report-compare", "The report of a comparison.",
            "hoofprint compare cpu-low-lr cpu-high-lr cpu-killed --format html -o compare.html",
            html="compare.html", width=960, height=1500),
]  # fmt: skip
PAGES = [
    Picture("page-list", "The list: filter as you type, sort, pick, compare.", DASHBOARD, address="/"),
    Picture("page-list-dark", "The same in the dark.", DASHBOARD, address="/", dark=True),
    Picture("page-run", "A run: power, events, where the energy went.", DASHBOARD, address="/run/llama-h200/",
            height=1500),
    Picture("page-run-sim", "A run of four GPUs, in the dark.", DASHBOARD, address="/run/sim-4-gpus/", height=1500,
            dark=True, simulated=True),
    Picture("page-run-narrow", "The same on a telephone.", DASHBOARD, address="/run/sim-4-gpus/", width=NARROW,
            height=1100, simulated=True),
    Picture("page-compare", "Runs side by side.", DASHBOARD,
            address="/compare?run=cpu-low-lr&run=cpu-high-lr&run=cpu-killed", height=1500),
    Picture("page-total", "What a project took.", DASHBOARD, address="/total"),
    Picture("page-plan", "Try a spec and see its plan; nothing is started.", DASHBOARD,
            address="/plan?spec=llama_65b.yaml", height=1300),
]  # fmt: skip
SECTIONS = {
    "On the terminal": [TERMINAL[0], TERMINAL[1], TERMINAL[2], *RECORDED, *TERMINAL[3:]],
    "Figures": FIGURES,
    "Reports": REPORTS,
    "In the browser": [PAGES[0], PAGES[1], *LIVE, *PAGES[2:]],
}
