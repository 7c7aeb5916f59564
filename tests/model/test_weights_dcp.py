"""A checkpoint's `.metadata` is a pickle, and a folder may come from anywhere: nothing in it runs."""

from pathlib import Path

import pytest
from weights_fakes import CONFIGS, InMemory, assert_same_bits, build, silent

from model.weights.dcp import CheckpointWeights, write_checkpoint

DCP = "torch.distributed.checkpoint"


def calling(module: str, name: str, *arguments: str) -> bytes:
    """A pickle of protocol 4, from which on a name may have dots, that calls a function with texts."""

    def text(value: str) -> bytes:
        return b"\x8c" + bytes([len(value.encode())]) + value.encode()

    return b"\x80\x04" + text(module) + text(name) + b"\x93(" + b"".join(map(text, arguments)) + b"tR."


@pytest.mark.parametrize(
    ("module", "name", "arguments"),
    [
        (f"{DCP}.filesystem", "io.FileIO", ("PROOF", "w")),
        (f"{DCP}.filesystem", "os.system", ("touch PROOF",)),
        (f"{DCP}.filesystem", "torch.ctypes.CDLL", ("PROOF",)),
        (f"{DCP}.metadata", "torch.ctypes.CDLL", ("PROOF",)),
        (f"{DCP}.filesystem", "FileSystemWriter", ("PROOF",)),
        ("torch", "serialization.os.system", ("touch PROOF",)),
        ("posix", "system", ("touch PROOF",)),
        ("builtins", "getattr", ("a", "b")),
    ],
)
def test_a_name_that_torch_does_not_write_is_refused_and_never_called(
    module: str, name: str, arguments: tuple[str, ...], tmp_path: Path
) -> None:
    proof = tmp_path / "it-ran"
    write_checkpoint(tmp_path / "out", InMemory(build(CONFIGS["plain"])), silent)
    given = [each.replace("PROOF", str(proof)) for each in arguments]
    (tmp_path / "out" / ".metadata").write_bytes(calling(module, name, *given))
    with pytest.raises(ValueError, match=f"/out: its .metadata is broken: refused: it would call {module}.{name}"):
        CheckpointWeights(tmp_path / "out", CONFIGS["plain"])
    assert not proof.exists()


@pytest.mark.parametrize("kept", [0, 10, 200, -1])
def test_metadata_that_is_cut_short_is_named(kept: int, tmp_path: Path) -> None:
    model = build(CONFIGS["plain"])
    write_checkpoint(tmp_path / "out", InMemory(model), silent)
    assert_same_bits(CheckpointWeights(tmp_path / "out", model.config), InMemory(model))
    file = tmp_path / "out" / ".metadata"
    for broken in (file.read_bytes()[:kept], b"\x80\x04}."):
        file.write_bytes(broken)
        with pytest.raises(ValueError, match="/out: its .metadata is broken"):
            CheckpointWeights(tmp_path / "out", model.config)
