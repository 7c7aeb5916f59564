"""What the run folder's module gives beside the folder."""

import pytest

from energy.runs import flat


@pytest.mark.parametrize(
    "value, told",
    [
        ({"a": {"b": 1, "c": [2, {"d": None}]}, "e": "f"}, {"a.b": 1, "a.c.0": 2, "a.c.1.d": None, "e": "f"}),
        ({"a": {}, "b": []}, {}),
        ([3], {"0": 3}),
    ],
)
def test_flat_has_every_leaf_by_its_place(value: object, told: dict[str, object]) -> None:
    assert flat(value) == told
