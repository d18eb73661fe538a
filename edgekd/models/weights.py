"""Weights from and to files: safetensors, or pickles of which nothing but tensors is let through.

A file of weights from elsewhere can run any code when it is unpickled; here it cannot.
"""

from __future__ import annotations

import difflib
import pickle
import re
import struct
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from edgekd.errors import ConfigError
from edgekd.files import write_atomic
from edgekd.models.names import WEIGHTS_ONLY

if TYPE_CHECKING:
    from torch import Tensor, nn

_PICKLES = (".pt", ".pth", ".bin")
_EMA = ("ema", "model_ema", "state_dict_ema", "ema_state_dict", "params_ema")
_WRAPPINGS = ("state_dict", "model", "model_state_dict", "net", "network", "params", "weights", *_EMA)
_PREFIXES = ("module.", "_orig_mod.")
_COUNTER = "n_averaged"  # what torch's AveragedModel keeps beside `module.`
_BEGINNINGS = (b"PK\x03\x04", b"\x80")  # of what torch.save writes: a zip archive, or (of old) a pickle
_KINDS = "accepted are .safetensors, and state dicts in .pt, .pth or .bin files"
_SAFE_WAY = 'save the tensors alone: torch.save(model.state_dict(), "weights.pt"), or safetensors'
# What torch.load was seen to raise, or can raise, on bytes that are not what they claim to be.
_DAMAGED = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
)
_SHOWN = 3
_COMPARED = 200


def load_state(path: Path, notes: list[str] | None = None) -> dict[str, Tensor]:
    """The tensors of a .safetensors, .pt, .pth or .bin file by name, on the CPU.

    What training scripts wrap around a state dict (`state_dict`, `model`, `ema`, ..) is unpacked, and the prefixes that
    wrappers of a network leave (`module.`, `_orig_mod.`) are taken off; `notes` gets a line about each.

    Raises:
        ConfigError: the file is missing, damaged, of another kind, wants more than tensors, or holds no state dict.
    """
    if not path.is_file():
        kind = "is a folder" if path.is_dir() else "there is no such file"
        raise ConfigError(f"{path}: {kind}", hint="give `weights:` the path of a file, relative to the pipeline file")
    if path.suffix == ".safetensors":
        loaded = _load_safetensors(path)
    elif path.suffix in _PICKLES:
        loaded = _load_pickle(path)
    elif path.suffix in WEIGHTS_ONLY:
        raise ConfigError(f"{path}: {WEIGHTS_ONLY[path.suffix]}", hint=_SAFE_WAY)
    else:
        known = ", ".join((".safetensors", *_PICKLES))
        raise ConfigError(f"{path}: not a file of weights that edgekd reads ({known})", hint=_SAFE_WAY)
    notes = [] if notes is None else notes
    return without_prefixes(_checked(unwrapped(loaded, notes), path), notes)


def apply_state(model: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Put a state into a network, all of it and nothing else; `path` names the file in messages.

    The counters of batch normalization (`num_batches_tracked`) may be missing, as in files of old. A first name that
    all keys share, and the network has not, is that of a module around it (`model.`, `backbone.`): it is taken off.

    Raises:
        ConfigError: keys are missing, unexpected or of another shape, or a value is not finite; the network is then
            unchanged.
    """
    state = _without_first(state, model.state_dict().keys())
    expected = {name: value for name, value in model.state_dict().items() if hasattr(value, "shape")}
    missing = [n for n in expected if n not in state and not n.endswith("num_batches_tracked")]
    unexpected = [n for n in state if n not in expected]
    reshaped = [n for n in expected if n in state and expected[n].shape != state[n].shape]
    faults = []
    if missing:
        faults.append(f"{len(missing)} missing ({_listed(_nearest_first(missing, unexpected))})")
    if unexpected:
        faults.append(f"{len(unexpected)} unexpected ({_listed(unexpected)})")
    if reshaped:
        shapes = [f"{n} is {_shape(state[n])} in the file, {_shape(expected[n])} in the network" for n in reshaped]
        faults.append(f"{len(reshaped)} of another shape ({_listed(shapes)})")
    if faults:
        hint = "give the model and the args (num_classes, widths, ..) that the weights were trained with"
        if missing and unexpected and not reshaped:
            hint = "give the model that the weights were trained with, or rename the keys of the file to its names"
        raise ConfigError(f"{path} does not fit the network: {'; '.join(faults)}", hint=hint)
    spoiled = [name for name in expected if name in state and not bool(state[name].isfinite().all())]
    if spoiled:
        what = f"{len(spoiled)} tensors hold values that are not finite ({_listed(spoiled)})"
        raise ConfigError(f"{path}: {what}", hint="the training diverged; take a checkpoint from before that")
    model.load_state_dict(dict(state), strict=True)


def save_state(model_or_state: nn.Module | Mapping[str, Tensor], path: Path) -> None:
    """Write a network's state, or a state, as safetensors: whole or not at all; the same values give the same bytes.

    Raises:
        ConfigError: the state holds something other than tensors (the extra state of a module).
    """
    import torch
    from safetensors.torch import save

    state = model_or_state.state_dict() if isinstance(model_or_state, torch.nn.Module) else model_or_state
    tensors: dict[str, Tensor] = {}
    stored: set[int] = set()
    for name, value in state.items():
        if not isinstance(value, torch.Tensor):
            message = f"the network's state {name!r} is a {type(value).__name__}, not a tensor"
            raise ConfigError(message, hint="keep it in a buffer (register_buffer), or out of the state")
        tensor = value.detach().cpu().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        tensors[name] = tensor.clone() if storage in stored else tensor
        stored.add(storage)
    # Bytes first: a full disk is then an OSError with the name of the file, and no error of the library's own.
    write_atomic(path, save(tensors, metadata={"format": "pt"}))


def _load_safetensors(path: Path) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(str(path), device="cpu")
    except (SafetensorError, OSError, KeyError):
        raise broken(path) from None


def _load_pickle(path: Path) -> Any:
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about kinds of files that are refused anyway
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL (\w+(?:\.\w+)+)", str(error))
        if wanted is None and not _start(path).startswith(_BEGINNINGS):
            raise broken(path) from None
        what = "it holds more than tensors, or is damaged"
        if wanted:
            what = f"it wants to load {wanted.group(1)}, and loading code from a file of weights can run anything"
        convert = f"python -m edgekd.models.convert {path} {path.with_suffix('.safetensors')}"
        hint = f"take its tensors alone, without running it: {convert}; or {_SAFE_WAY}"
        raise ConfigError(f"{path}: refused, for {what}", hint=hint) from None
    except _DAMAGED as error:
        # What PyTorch says of TorchScript ends in the advice to load without any safety: not passed on.
        if "TorchScript" in str(error):
            raise ConfigError(f"{path}: a TorchScript archive, not a state dict", hint=_SAFE_WAY) from None
        raise broken(path) from None


def broken(path: Path) -> ConfigError:
    """What is wrong with a file that its library cannot read, told by its bytes: libraries speak of their insides."""
    start = _start(path)
    if start.startswith(b"version https://git-lfs"):
        return ConfigError(f"{path}: is a pointer of Git LFS, not the weights", hint="fetch them: git lfs pull")
    whole = f"copy or save it again, whole; {_KINDS}"
    if not start:
        return ConfigError(f"{path}: is empty", hint=whole)
    safe = path.suffix == ".safetensors" and start[8:9] in (b"{", b"")
    if safe or (path.suffix != ".safetensors" and start.startswith(_BEGINNINGS)):
        return ConfigError(f"{path}: is cut short or damaged", hint=whole)
    return ConfigError(f"{path}: is no file of weights", hint=f"{_KINDS}; {_SAFE_WAY}")


def _start(path: Path) -> bytes:
    """The first bytes of a file: safetensors have the length of a JSON header there, then the header.

    Raises:
        ConfigError: the file cannot be read at all (it is a folder, or nobody may).
    """
    try:
        with path.open("rb") as stream:
            return stream.read(32)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}", hint="check the file and its rights") from None


def unwrapped(loaded: Any, notes: list[str]) -> Any:
    """What training scripts wrap around a state dict, taken off; anything else as it is."""
    seen: set[int] = set()
    while isinstance(loaded, Mapping) and id(loaded) not in seen:  # a mapping may hold itself
        seen.add(id(loaded))
        found = [key for key in _WRAPPINGS if isinstance(loaded.get(key), Mapping)]
        if not found:
            break
        notes.append(f"its {found[0]!r} is taken")
        averaged = [key for key in found[1:] if key in _EMA]
        if averaged:
            notes.append(f"its averaged weights {averaged[0]!r} are not; save these alone to take them")
        loaded = loaded[found[0]]
    return loaded


def without_prefixes(state: dict[str, Tensor], notes: list[str]) -> dict[str, Tensor]:
    """A state without the prefixes that wrappers of a network leave."""
    inside = [name for name in state if name != _COUNTER]
    if _COUNTER in state and inside and all(name.startswith("module.") for name in inside):
        state = {name: state[name] for name in inside}
    while prefix := next((p for p in _PREFIXES if all(name.startswith(p) for name in state)), None):
        notes.append(f"the prefix {prefix!r} of its keys is taken off")
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def _checked(loaded: Any, path: Path) -> dict[str, Tensor]:
    import torch

    if not isinstance(loaded, Mapping):
        raise ConfigError(f"{path}: holds a {type(loaded).__name__}, not a state dict", hint=_SAFE_WAY)
    others = [
        name for name, value in loaded.items() if not isinstance(value, torch.Tensor) or not isinstance(name, str)
    ]
    if others or not loaded:
        what = f"{len(others)} entries that are no tensors ({_listed(others)})" if others else "no tensors"
        raise ConfigError(f"{path}: holds {what}, not a state dict", hint=_SAFE_WAY)
    return cast("dict[str, Tensor]", dict(loaded))


def _without_first(state: Mapping[str, Tensor], expected: Collection[str]) -> Mapping[str, Tensor]:
    """The state without a first name that all its keys share, where only then they are those of the network."""
    first = {name.partition(".")[0] for name in state}
    if len(first) != 1 or any(name in state for name in expected):
        return state
    inner = {name.partition(".")[2]: value for name, value in state.items()}
    fits = all(name in inner for name in expected if not name.endswith("num_batches_tracked"))
    return inner if fits and all(name in expected for name in inner) else state


def _nearest_first(missing: list[str], others: list[str]) -> list[str]:
    """Missing keys, those first that an unexpected one is near to, with that one."""
    near: list[str] = []
    rest: list[str] = []
    for name in missing[:_COMPARED]:
        found = difflib.get_close_matches(name, others[:_COMPARED], n=1, cutoff=0.6)
        (near if found else rest).append(f"{name}, nearest is {found[0]}" if found else name)
    return [*near, *rest, *missing[_COMPARED:]]


def _listed(names: list[Any]) -> str:
    more = f", and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(str(name) for name in names[:_SHOWN]) + more


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a single value"
