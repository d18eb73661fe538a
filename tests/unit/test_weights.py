"""Weights from files: nothing but tensors gets in, and what does not fit is said before anything runs."""

import os
import pickle
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from edgekd.errors import ConfigError
from edgekd.models.convert import tensors_of
from edgekd.models.weights import apply_state, load_state, save_state


def small() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


class Runs:
    """Unpickled, it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".safetensors"])
def test_what_was_saved_is_loaded(tmp_path, suffix):
    net, path = small(), tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_state(net, path)
    else:
        torch.save(net.state_dict(), path)
    assert_same(load_state(path), net.state_dict())


@pytest.mark.parametrize("wrapping", ["state_dict", "model", "model_state_dict", "ema", "state_dict_ema"])
def test_wrapped_state_is_unpacked_and_prefixes_taken_off(tmp_path, wrapping):
    net = small()
    wrapped = {"epoch": 3, wrapping: {f"_orig_mod.module.{k}": v for k, v in net.state_dict().items()}}
    torch.save(wrapped, tmp_path / "w.pt")
    assert_same(load_state(tmp_path / "w.pt"), net.state_dict())


def test_prefix_that_only_some_keys_have_stays(tmp_path):
    torch.save({"module.a": torch.zeros(1), "b": torch.zeros(1)}, tmp_path / "w.pt")
    assert load_state(tmp_path / "w.pt").keys() == {"module.a", "b"}


@pytest.mark.parametrize("legacy", [False, True])
def test_malicious_pickle_runs_nothing_and_is_refused(tmp_path, legacy):
    path, proof = tmp_path / "weights.pt", tmp_path / "proof"
    if legacy:
        path.write_bytes(pickle.dumps({"a": Runs(proof)}, protocol=2))
    else:
        torch.save({"a": torch.zeros(1), "b": Runs(proof)}, path)
    with pytest.raises(ConfigError, match="refused") as caught:
        load_state(path)
    assert not proof.exists()
    assert "mkdir" in caught.value.message
    assert "torch.save(model.state_dict()" in caught.value.hint
    assert f"python -m edgekd.models.convert {path} {path.with_suffix('.safetensors')}" in caught.value.hint
    assert "\n" not in caught.value.message


def test_newer_pickle_runs_nothing_either(tmp_path):
    path, proof = tmp_path / "weights.pt", tmp_path / "proof"
    path.write_bytes(pickle.dumps({"a": Runs(proof)}, protocol=5))
    with pytest.raises(ConfigError, match="refused, for it holds more than tensors, or is damaged"):
        load_state(path)
    assert not proof.exists()


def test_torchscript_is_refused_without_unsafe_advice(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        torch.jit.script(nn.Linear(1, 1)).save(tmp_path / "net.pt")
    with pytest.raises(ConfigError, match=r"a TorchScript archive, not a state dict$") as caught:
        load_state(tmp_path / "net.pt")
    assert "weights_only" not in caught.value.message


def test_whole_pickled_network_is_refused_with_the_safe_way(tmp_path):
    torch.save(small(), tmp_path / "net.pt")
    with pytest.raises(ConfigError, match="refused") as caught:
        load_state(tmp_path / "net.pt")
    assert "safetensors" in caught.value.hint


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04", b"\x80\x02}q\x00.", b"\xff" * 100])
def test_file_that_is_no_weights_is_refused(tmp_path, suffix, content):
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_state(path)
    assert str(path) in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("cut", [10, 200, 1000])
def test_cut_off_file_is_refused(tmp_path, cut):
    torch.save(small().state_dict(), tmp_path / "w.pt")
    whole = (tmp_path / "w.pt").read_bytes()
    (tmp_path / "w.pt").write_bytes(whole[:cut])
    with pytest.raises(ConfigError, match="damaged"):
        load_state(tmp_path / "w.pt")


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:00"


@pytest.mark.parametrize(
    ("content", "said", "way"),
    [
        (b"", "is empty", "copy or save it again, whole; accepted are .safetensors"),
        (LFS, "is a pointer of Git LFS, not the weights", "git lfs pull"),
        (b"<html>not found", "is no file of weights", "accepted are .safetensors"),
    ],
)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_broken_file_is_told_in_words_and_not_by_the_insides_of_a_library(tmp_path, content, said, way, suffix):
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_state(path)
    assert caught.value.message == f"{path}: {said}"
    assert way in caught.value.hint


def test_cut_off_safetensors_and_pickles_are_cut_short_in_every_command(tmp_path):
    save_state({"a": torch.zeros(100)}, tmp_path / "w.safetensors")
    torch.save({"a": torch.zeros(100)}, tmp_path / "w.pt", _use_new_zipfile_serialization=False)
    for name in ("w.safetensors", "w.pt"):
        whole = (tmp_path / name).read_bytes()
        for keep in (12, len(whole) - 40):
            (tmp_path / name).write_bytes(whole[:keep])
            with pytest.raises(ConfigError, match=r": is cut short or damaged$"):
                load_state(tmp_path / name)
    with pytest.raises(ConfigError, match=r": is cut short or damaged$"):
        tensors_of(tmp_path / "w.pt")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_file_that_nobody_may_read_is_told_in_words(tmp_path, monkeypatch, suffix):
    def denied(*args, **more):
        raise PermissionError(13, "Permission denied")

    (tmp_path / f"w{suffix}").write_bytes(b"weights")
    monkeypatch.setattr(torch, "load", denied)
    monkeypatch.setattr("safetensors.torch.load_file", denied)
    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(ConfigError, match=r": cannot be read: Permission denied$"):
        load_state(tmp_path / f"w{suffix}")


@pytest.mark.parametrize("value", [[torch.zeros(1)], {}, {"epoch": 3}, {"a": {"b": torch.zeros(1)}}])
def test_file_without_a_state_dict_is_refused(tmp_path, value):
    torch.save(value, tmp_path / "w.pt")
    with pytest.raises(ConfigError, match="not a state dict"):
        load_state(tmp_path / "w.pt")


def test_missing_file_folder_and_unknown_kind_are_refused(tmp_path):
    (tmp_path / "w.onnx").touch()
    for path, said in [("none.pt", "no such file"), (".", "is a folder"), ("w.onnx", "not a file of weights")]:
        with pytest.raises(ConfigError, match=said):
            load_state(tmp_path / path)


def test_state_that_fits_is_applied_whole():
    source, target = small(), small()
    apply_state(target, source.state_dict(), Path("w.pt"))
    assert_same(target.state_dict(), source.state_dict())


def test_counters_of_batch_normalization_may_be_missing():
    state = {k: v for k, v in small().state_dict().items() if not k.endswith("num_batches_tracked")}
    apply_state(small(), state, Path("w.pt"))


def test_state_that_does_not_fit_is_counted_and_named_in_one_line():
    net = small()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    state = dict(small().state_dict())
    state["3.weights"] = state.pop("3.weight")
    state["0.weight"] = torch.zeros(8, 3, 3, 3)
    with pytest.raises(ConfigError) as caught:
        apply_state(net, state, Path("w.pt"))
    assert caught.value.message == (
        "w.pt does not fit the network: 1 missing (3.weight, nearest is 3.weights); 1 unexpected (3.weights); "
        "1 of another shape (0.weight is 8x3x3x3 in the file, 4x3x3x3 in the network)"
    )
    assert caught.value.exit_code == 2
    assert "args" in caught.value.hint
    assert_same(net.state_dict(), before)


def test_only_the_first_few_keys_are_named():
    with pytest.raises(ConfigError, match=r"8 missing \(0.weight, 0.bias, 1.weight, and 5 more\)$"):
        apply_state(small(), {}, Path("w.pt"))


def test_saved_bytes_depend_on_values_alone(tmp_path):
    net = small().to(memory_format=torch.channels_last)
    save_state(net, tmp_path / "a.safetensors")
    save_state(dict(reversed(net.state_dict().items())), tmp_path / "b" / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b" / "b.safetensors").read_bytes()
    assert [p.name for p in (tmp_path / "b").iterdir()] == ["b.safetensors"]


def test_shared_tensors_are_saved_under_each_name(tmp_path):
    tied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    tied[1].weight = tied[0].weight
    whole = torch.arange(6.0)
    save_state(tied, tmp_path / "tied.safetensors")
    save_state({"low": whole[:3], "high": whole[3:], "odd": whole[::2]}, tmp_path / "views.safetensors")
    assert_same(load_state(tmp_path / "tied.safetensors"), tied.state_dict())
    assert load_state(tmp_path / "views.safetensors")["high"].tolist() == [3.0, 4.0, 5.0]


def test_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "w.safetensors"
    save_state(small(), path)
    before = path.read_bytes()
    monkeypatch.setattr("safetensors.torch.save", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save_state(small(), path)
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_state_with_more_than_tensors_is_not_saved(tmp_path):
    class Extra(nn.Module):
        def get_extra_state(self):
            return {"a": 1}

    with pytest.raises(ConfigError, match="_extra_state"):
        save_state(Extra(), tmp_path / "w.safetensors")
    assert not list(tmp_path.iterdir())


def test_what_was_unpacked_is_noted(tmp_path):
    state = {f"module.{name}": value for name, value in small().state_dict().items()}
    torch.save({"state_dict": state, "ema": state, "epoch": 3}, tmp_path / "w.pt")
    notes = []
    assert_same(load_state(tmp_path / "w.pt", notes), {n.removeprefix("module."): v for n, v in state.items()})
    assert notes[0] == "its 'state_dict' is taken"
    assert notes[1].startswith("its averaged weights 'ema' are not")
    assert notes[2] == "the prefix 'module.' of its keys is taken off"


def test_an_averaged_model_of_torch_is_unpacked(tmp_path):
    net = small()
    averaged = torch.optim.swa_utils.AveragedModel(net)
    torch.save(averaged.state_dict(), tmp_path / "w.pt")
    assert_same(load_state(tmp_path / "w.pt"), net.state_dict())


def test_the_name_of_a_module_around_the_network_is_taken_off(tmp_path):
    net, other = small(), small()
    apply_state(other, {f"backbone.{name}": value for name, value in net.state_dict().items()}, tmp_path / "w.pt")
    assert_same(other.state_dict(), net.state_dict())
    with pytest.raises(ConfigError, match="missing"):
        apply_state(other, {f"backbone.{n}": v for n, v in net.state_dict().items() if n != "0.bias"}, tmp_path / "w")


def test_missing_keys_that_have_a_near_one_come_first(tmp_path):
    net = nn.ModuleDict({name: nn.Linear(1, 1, bias=False) for name in ("zebra", "qqq", "classifier")})
    state = {"zebra.weight": torch.zeros(1, 1), "clasifier.weight": torch.zeros(1, 1)}
    with pytest.raises(ConfigError) as caught:
        apply_state(net, state, tmp_path / "w.pt")
    assert "2 missing (classifier.weight, nearest is clasifier.weight, qqq.weight)" in caught.value.message


def test_an_exported_program_is_refused_with_the_reason(tmp_path):
    (tmp_path / "w.pt2").write_bytes(b"PK")
    with pytest.raises(ConfigError, match="refused: its loader has a known hole"):
        load_state(tmp_path / "w.pt2")


def test_a_mapping_that_holds_itself_is_no_state_dict(tmp_path):
    loop = {"a": torch.ones(2)}
    loop["model"] = loop
    torch.save(loop, tmp_path / "w.pt")
    with pytest.raises(ConfigError, match=r"1 entries that are no tensors .model., not a state dict"):
        load_state(tmp_path / "w.pt")
