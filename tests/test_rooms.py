"""Which room may import which, walked over the source: an arrow that the table does not allow fails."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = {"orchestrator", "model", "energy", "dashboards"}
FORBIDDEN = {
    "model": {"ray", "energy", "orchestrator", "dashboards"},
    "energy": {"torch", "ray", "model", "orchestrator", "dashboards"},
    "dashboards": {"torch", "ray", "model", "orchestrator"},
    "orchestrator": set(),
}


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_arrows(room: str) -> None:
    files = list((ROOT / room).rglob("*.py"))
    assert files
    for path in files:
        tops = {name.split(".")[0] for name in imported(path)}
        assert not tops & FORBIDDEN[room], f"{path.relative_to(ROOT)} imports {tops & FORBIDDEN[room]}"


def test_orchestrator_knows_only_what_the_dashboards_give_out() -> None:
    for path in (ROOT / "orchestrator").rglob("*.py"):
        names = {name for name in imported(path) if name.split(".")[0] == "dashboards"}
        assert names <= {f"dashboards.{part}" for part in ("report", "server", "figures", "comparison", "summaries")}, (
            path
        )


def test_the_loop_knows_neither_ray_nor_energy_nor_torch() -> None:
    tops = {name.split(".")[0] for name in imported(ROOT / "orchestrator" / "ranks" / "loop.py")}
    assert not tops & {"ray", "energy", "torch", "orchestrator"}
