"""Reads an experiment from YAML and, when it is wrong, shows every fault at once where it stands in the file."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from energy.carbon.series_file import read_series
from orchestrator.spec.experiment import Experiment
from orchestrator.spec.faults import Mark, Source, in_words, placed, pointed
from orchestrator.spec.quantities import COUNT, quantity
from orchestrator.spec.section import Location
from orchestrator.spec.sense import TOLD_BY_ONE_OF

NODES = ("cluster", "nodes")  # on the command line only: nodes of `cluster.gpus_per_node` workers each
WORKERS = ("cluster", "workers")
_OCTAL = re.compile(r"[-+]?0[0-7_]+")


class BadInput(ValueError):
    """Something the user gave that cannot be used; the message says what to do. Exit code 2."""


NOTHING = "nothing was started"


class _Loader(yaml.SafeLoader):
    """YAML as it looks: keys and dates stay text, and so do the numbers that are not what they look like (`_traps`)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        self.flatten_mapping(node)
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):  # `on` and `1` would be no names
                key.tag = "tag:yaml.org,2002:str"
        return super().construct_mapping(node, deep)


def _number(loader: _Loader, node: yaml.ScalarNode) -> Any:
    if _is_trap(node):
        return node.value
    read = yaml.SafeLoader.construct_yaml_int if node.tag.endswith(":int") else yaml.SafeLoader.construct_yaml_float
    return read(loader, node)


_Loader.add_constructor("tag:yaml.org,2002:int", _number)
_Loader.add_constructor("tag:yaml.org,2002:float", _number)
_Loader.add_constructor("tag:yaml.org,2002:timestamp", lambda loader, node: node.value)


def load_experiment(
    path: Path, overrides: Sequence[str] = (), need_files: bool = False, text: str | None = None
) -> Experiment:
    """The checked experiment in `path`, with `--set a.b=c` overrides; BadInput lists every fault found.

    need_files: that a file or folder is not there, or that the grid's series cannot be read, is a fault too.
    text: the spec itself, where it lies in no file; `path` is then only what its faults call it.
    """
    source, data = _read(path, text)
    faults = [source.pointed(mark, message) for mark, message in _repeated_keys(source.node)]
    traps = {place: source.pointed(mark, f"{_key(place)}: {said}") for place, mark, said in _traps(source.node)}
    overridden: dict[Location, str] = {}
    for override in overrides:
        place, trap = _apply(data, override)
        told = tuple(map(str, place))
        overridden = {each: key for each, key in overridden.items() if each[: len(told)] != told} | {told: _key(place)}
        traps = {each: said for each, said in traps.items() if each[: len(place)] != place}
        if trap is not None:
            traps[place] = f"--set {override}: {trap}"
    if NODES not in traps:
        faults += _workers_of_nodes(data, overridden)
    _drop_what_was_replaced(data, overridden)
    try:
        experiment = Experiment.model_validate(data)
    except ValidationError as error:
        for fault in error.errors():
            location = tuple(fault["loc"])
            if not any(location[: len(place)] == place for place in traps):
                faults.append(placed(source, overridden, location, in_words(dict(fault)), fault["type"] == "missing"))
    faults += traps.values()
    if need_files:
        for location, said in _unfit_files(data):
            if location not in traps:
                faults.append(placed(source, overridden, location, said, False))
    if faults:
        raise _all(faults)
    return experiment


def _unfit_files(data: dict[str, Any]) -> Iterator[tuple[Location, str]]:
    """Files that the spec as written names and that cannot be used, whatever else is wrong with it."""
    sources = _below(data, "data", "sources")
    entries = enumerate(sources) if isinstance(sources, list) else ()
    named: list[tuple[Location, Any]] = [
        *((("data", "sources", i, "path"), _below(source, "path")) for i, source in entries),
        (("data", "tokenizer", "path"), _below(data, "data", "tokenizer", "path")),
        (("model", "init_from"), _below(data, "model", "init_from")),
        (("energy", "grid_series"), _below(data, "energy", "grid_series")),
    ]
    cache = _below(data, "data", "cache")
    if isinstance(cache, str) and Path(cache).exists() and not Path(cache).is_dir():
        yield ("data", "cache"), f"{cache} is a file, expected a folder, which is made where there is none"
    for location, given in named:
        if not isinstance(given, str):
            continue
        path = Path(given)
        if not path.exists():
            seen = "" if path.is_absolute() else f" (seen from {Path.cwd()})"
            if given.startswith("~"):
                seen = ": what ~ stands for is known to a shell only, so write it out"
            yield location, f"no such file or folder: {path}{seen}"
        elif location[-1] == "grid_series":
            try:
                read_series(path)
            except (OSError, ValueError) as error:
                yield location, f"the grid's series cannot be used: {error}"


def _below(value: Any, *keys: str) -> Any:
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def dump_experiment(experiment: Experiment) -> str:
    """The resolved spec as YAML: what truly ran, every default spelt out."""
    return yaml.safe_dump(experiment.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _read(path: Path, text: str | None) -> tuple[Source, dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8") if text is None else text
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error.strerror}; {NOTHING}") from error
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: not UTF-8 text at byte {error.start}; {NOTHING}") from error
    try:
        node = yaml.compose(text, Loader=_Loader)
        data = yaml.load(text, Loader=_Loader)  # a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        said = "; ".join(part for part in (error.context, error.problem) if part)
        place = (mark.line, mark.column) if mark else (0, 0)
        raise BadInput(f"{pointed(path, text, place, f'not valid YAML: {said}')}\n\n{NOTHING}") from error
    except yaml.YAMLError as error:
        said = str(error).splitlines()[0]
        raise BadInput(f"{path}: not valid YAML: {said}\n{NOTHING}") from error
    except (ValueError, RecursionError) as error:  # `!!int x`; lists in one another, hundreds deep
        raise BadInput(f"{path}: not valid YAML: {error}\n{NOTHING}") from error
    if not isinstance(data, dict):
        raise BadInput(f"{path}: expected keys such as spec_version, name, model\n{NOTHING}")
    return Source(path, text, node), data


def _apply(data: dict[str, Any], override: str) -> tuple[Location, str | None]:
    """Sets the key of `override` in `data`; where that is, and what is wrong with a number that is a trap."""
    key, equals, text = override.partition("=")
    if not equals or not all(key.split(".")):
        raise BadInput(f"--set {override}: expected key=value, for example --set training.tokens=4M")
    try:
        value = yaml.load(text, Loader=_Loader)  # a SafeLoader
        trap = next((said for _, _, said in _traps(yaml.compose(text, Loader=_Loader))), None)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise BadInput(f"--set {override}: {text!r} is not valid YAML; quote it if it is text") from error
    place: list[str | int] = []
    target: Any = data
    *parents, last = key.split(".")
    for parent in parents:
        if isinstance(target, list):
            if not parent.isdigit() or int(parent) >= len(target):
                raise BadInput(f"--set {override}: {parent} is not an entry of the list (0..{len(target) - 1})")
            place.append(int(parent))
            target = target[int(parent)]
        elif isinstance(target, dict):
            if target.get(parent) is None:
                target[parent] = {}
            place.append(parent)
            target = target[parent]
        else:
            raise BadInput(f"--set {override}: {parent} lies below a plain value")
    if isinstance(target, list) and last.isdigit() and int(last) < len(target):
        target[int(last)] = value
        place.append(int(last))
    elif isinstance(target, dict):
        target[last] = value
        place.append(last)
    else:
        raise BadInput(f"--set {override}: there is no place called {last}")
    return tuple(place), trap


def _workers_of_nodes(data: dict[str, Any], overridden: dict[Location, str]) -> list[str]:
    """Turns `--set cluster.nodes=4` into the workers that these are; what is wrong with it."""
    if NODES not in overridden:
        return []
    nodes = data["cluster"].pop("nodes")
    if WORKERS in overridden:
        return ["--set cluster.nodes and --set cluster.workers both tell the workers: give one of them"]
    each = data["cluster"].get("gpus_per_node", Experiment.model_fields["cluster"].default.gpus_per_node)
    try:
        if (count := quantity(nodes, COUNT, "8")) % 1:
            raise ValueError(f"expected a whole number such as 8, got {nodes!r}")
        data["cluster"]["workers"] = round(count * quantity(each, COUNT, "8"))
    except ValueError as error:
        return [f"--set cluster.nodes: {error}"]
    overridden[WORKERS] = overridden.pop(NODES)
    return []


def _drop_what_was_replaced(data: dict[str, Any], overridden: dict[Location, str]) -> None:
    """What the command line tells in one of several ways replaces another way that the file has, with its source."""
    energy = data.get("energy")
    if not isinstance(energy, dict):
        return
    for ways in TOLD_BY_ONE_OF.values():
        told = [key for key in ways if ("energy", key) in overridden and energy.get(key) is not None]
        for key in ways if told else ():
            if ("energy", key) not in overridden:
                energy.pop(key, None)
                energy.pop(f"{key}_source", None)


def _is_trap(node: yaml.ScalarNode) -> bool:
    """YAML 1.1 counts 1:30 in sixties and 0100 in eights."""
    return ":" in node.value or (node.tag.endswith(":int") and _OCTAL.fullmatch(node.value) is not None)


def _nodes(root: yaml.Node | None) -> Iterator[tuple[Location, yaml.Node]]:
    """Every node with its place, in the file's order; once, whatever its aliases (one may stand within its anchor)."""
    left: list[tuple[Location, yaml.Node]] = [] if root is None else [((), root)]
    seen: set[int] = set()
    while left:
        location, node = left.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        yield location, node
        if isinstance(node, yaml.MappingNode):
            left += [((*location, str(key.value)), value) for key, value in reversed(node.value)]
        elif isinstance(node, yaml.SequenceNode):
            left += [((*location, index), value) for index, value in reversed([*enumerate(node.value)])]


def _traps(root: yaml.Node | None) -> Iterator[tuple[Location, Mark, str]]:
    """Numbers that YAML would take for others than most people read."""
    for location, node in _nodes(root):
        if not isinstance(node, yaml.ScalarNode) or not node.tag.endswith((":int", ":float")) or not _is_trap(node):
            continue
        text = node.value
        if ":" in text:
            said = f"{text} would be read in sixties, as YAML 1.1 does: write one number with its unit (90 s, 1.5 h)"
        else:
            said = f"{text} would be read in eights, as YAML 1.1 does: leave out the 0 in front"
        yield location, (node.start_mark.line, node.start_mark.column), f"{said}, or quote it where it is text"


def _repeated_keys(root: yaml.Node | None) -> Iterator[tuple[Mark, str]]:
    """YAML lets the second of two equal keys win without a word."""
    for _, node in _nodes(root):
        seen: dict[str, int] = {}
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            name = str(key.value)
            if name in seen:
                yield (
                    (key.start_mark.line, key.start_mark.column),
                    f"{name}: the key stands already in line {seen[name]}; keep one of them",
                )
            seen.setdefault(name, key.start_mark.line + 1)


def _key(location: Location) -> str:
    return ".".join(map(str, location))


def _all(faults: list[str]) -> BadInput:
    count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
    return BadInput("\n\n".join(faults) + f"\n\n{count}; {NOTHING}")
