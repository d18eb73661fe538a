"""Tensors out of any checkpoint: nothing in the file runs, whatever it says."""

from __future__ import annotations

import argparse
import os
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import nn

from edgekd.errors import ConfigError
from edgekd.models.convert import main, tensors_of
from edgekd.models.weights import load_state


class Runs:
    """Unpickled, it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> object:
        return os.mkdir, (str(self.folder),)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.register_buffer("table", torch.arange(3), persistent=False)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_malicious_checkpoint_runs_nothing_and_still_gives_its_tensors(zipped: bool, tmp_path: Path) -> None:
    path, proof = tmp_path / "w.pt", tmp_path / "proof"
    state = {"a": torch.ones(2), "b.c": torch.zeros(1)}
    torch.save({"state_dict": state, "x": Runs(proof)}, path, _use_new_zipfile_serialization=zipped)
    found = tensors_of(path)
    assert not proof.exists()
    assert {name: value.tolist() for name, value in found.items()} == {"a": [1.0, 1.0], "b.c": [0.0]}


def test_a_whole_pickled_network_gives_the_tensors_of_its_state_dict(tmp_path: Path) -> None:
    network = Net()
    torch.save(network, tmp_path / "net.pt")
    found = tensors_of(tmp_path / "net.pt")
    assert found.keys() == network.state_dict().keys()
    assert all(torch.equal(found[name], value) for name, value in network.state_dict().items())


def test_the_command_writes_what_load_state_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = Net()
    state = OrderedDict((f"module.{name}", value) for name, value in network.state_dict().items())
    torch.save(
        {"model": state, "args": argparse.Namespace(lr=0.1), "optimizer": {"m": torch.ones(9)}}, tmp_path / "c.pt"
    )
    assert main([str(tmp_path / "c.pt"), str(tmp_path / "w.safetensors")]) == 0
    loaded = load_state(tmp_path / "w.safetensors")
    assert loaded.keys() == network.state_dict().keys()
    assert all(torch.equal(loaded[name], value) for name, value in network.state_dict().items())
    assert "nothing of" in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04", b"\x80\x02}q\x00."])
def test_what_is_no_checkpoint_is_said_in_two_lines(
    content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c.pt").write_bytes(content)
    assert main([str(tmp_path / "c.pt"), str(tmp_path / "w.safetensors")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in lines] == ["error", "help"]


def test_a_folder_in_place_of_a_checkpoint_is_said_in_two_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path), str(tmp_path / "w.safetensors")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"error: {tmp_path}: cannot be read: Is a directory", "help: check the file and its rights"]


def test_two_files_are_needed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["one.pt"]) == 2
    assert "NEW.safetensors" in capsys.readouterr().err


def test_what_holds_itself_or_is_nested_without_end_is_walked_once_or_refused(tmp_path: Path) -> None:
    shared = {"w": torch.ones(2)}
    loop: dict[str, object] = {"x": shared, "y": shared}
    loop["model"] = loop["z"] = loop
    torch.save(loop, tmp_path / "loop.pt")
    assert sorted(tensors_of(tmp_path / "loop.pt")) == ["x.w", "y.w"]
    deep: dict[str, object] = {"w": torch.ones(2)}
    for _ in range(101):
        deep = {"d": deep}
    torch.save(deep, tmp_path / "deep.pt")
    with pytest.raises(ConfigError, match="nested more than 100 deep"):
        tensors_of(tmp_path / "deep.pt")
