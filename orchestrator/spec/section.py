"""A section of a spec: its keys are checked one by one, then what they say of each other, as far as they were read.

pydantic runs a section's validators only when every key of it was right, so that one wrong word would hide every fault
of sense. Here a rule is a function of the section that yields its faults; it says nothing when a key that it asks for
could not be read, and everything else is said in the same round.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated, Any, ClassVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ModelWrapValidatorHandler, TypeAdapter, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

Location = tuple[str | int, ...]  # a key below its parents
Fault = tuple[Location, str]  # where in the section, and what is wrong
Rule = Callable[[Any], Iterator[Fault]]

SENSE = "sense"  # pydantic's "type" of a fault that a rule found


class Unreadable(Exception):
    """A rule asked for a key that could not be read; its fault is told already."""


class Section(BaseModel):
    """Base of every section of a spec. An unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    rules: ClassVar[tuple[Rule, ...]] = ()

    @classmethod
    def resolved(cls, given: Any) -> Any:
        """The section with what it names instead of stating; what cannot be found stays for the key's own check."""
        return given

    @model_validator(mode="wrap")
    @classmethod
    def _all_faults_at_once(cls, given: Any, handler: ModelWrapValidatorHandler[Any]) -> Any:
        given = cls.resolved(given)
        section: Any
        lines: list[InitErrorDetails] = []
        try:
            section = handler(given)
        except ValidationError as error:
            lines = [_line(e["loc"], e["type"], e["msg"], e["input"], e.get("ctx")) for e in error.errors()]
            if not isinstance(given, dict):
                raise
            section = Readable(cls, given)
        lines += [_line(location, SENSE, said, given) for rule in cls.rules for location, said in _found(rule, section)]
        if lines:
            raise ValidationError.from_exception_data(cls.__name__, lines)
        return section


def _found(rule: Rule, section: Any) -> list[Fault]:
    try:
        return list(rule(section))
    except Unreadable:
        return []


def _line(
    location: Location, kind: Any, said: str, given: Any, context: dict[str, Any] | None = None
) -> InitErrorDetails:
    """A fault as pydantic carries it outwards, where the keys of the parents are put before its place."""
    return InitErrorDetails(
        type=PydanticCustomError(kind, "{said}", {**(context or {}), "said": said}), loc=location, input=given
    )


class Readable:
    """The keys of a faulty section that could be read, as attributes; Unreadable for the others."""

    def __init__(self, section: type[Section], given: dict[str, Any]):
        self._section = section
        for name, field in section.model_fields.items():
            try:
                if name in given:
                    setattr(self, name, _read(field.annotation, field.metadata, given[name]))
                elif not field.is_required():
                    setattr(self, name, field.get_default(call_default_factory=True))
            except ValidationError:
                continue  # its fault is among those of the whole section

    def __getattr__(self, name: str) -> Any:
        raise Unreadable(name)


def _read(annotation: Any, metadata: list[Any], given: Any) -> Any:
    """The value of one key; of sections, and lists of sections, at least what of them could be read."""
    try:
        return TypeAdapter(Annotated[annotation, *metadata] if metadata else annotation).validate_python(given)
    except ValidationError:
        section, several = section_in(annotation), get_origin(annotation) is list
        if section is None or not isinstance(given, list if several else dict):
            raise
        if not several:
            return Readable(section, section.resolved(given))
        if all(isinstance(each, dict) for each in given):
            return [_read(section, [], each) for each in given]
        raise


def section_in(annotation: Any) -> type[Section] | None:
    """The section that an annotation holds, alone, in a list or as an option; None for a plain value."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next((found for part in get_args(annotation) if (found := section_in(part)) is not None), None)
