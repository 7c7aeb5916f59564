"""Every key of a spec is described, and the page of them is that of the code."""

from pathlib import Path

from orchestrator.spec.experiment import Experiment
from orchestrator.spec.keys_page import keys_page
from orchestrator.spec.section import Section, section_in

PAGE = Path(__file__).parents[3] / "docs" / "spec.md"


def test_the_page_is_that_of_the_code() -> None:
    assert PAGE.read_text(encoding="utf-8") == keys_page(), "hoofprint schema --markdown > docs/spec.md"


def test_every_key_says_what_it_means() -> None:
    sections: list[type[Section]] = [Experiment]
    silent = []
    for section in sections:
        for name, field in section.model_fields.items():
            inner = section_in(field.annotation)
            if inner is not None and inner not in sections:
                sections.append(inner)
            if field.description is None and inner is None:
                silent.append(f"{section.__name__}.{name}")
    assert silent == [] and len(sections) > 8


def test_a_key_says_what_it_takes_and_what_it_is_without() -> None:
    rows = {line.split("`")[1]: line for line in keys_page().splitlines() if line.startswith("| `")}
    assert rows["placement"].startswith("| `placement` | `pack`, `spread` | `pack` | Where the cluster has more room")
    assert rows["step_deadline"].startswith("| `step_deadline` | `auto`, number (ms, s, min, h, d) | `auto` | ")
    assert rows["peak_lr"].startswith("| `peak_lr` | number | **required** | Learning rate")
    assert rows["preflight"].startswith("| `preflight` | `off`, `warn`, `stop` | `off` | ")
