"""Weights from and to files: safetensors, or pickles of which nothing but tensors is let through.

A file of weights from elsewhere can run any code when it is unpickled; here it cannot.
"""

from __future__ import annotations

import difflib
import pickle
import re
import struct
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from edgekd.errors import ConfigError, first_line
from edgekd.files import write_atomic

if TYPE_CHECKING:
    from torch import Tensor, nn

_PICKLES = (".pt", ".pth", ".bin")
_WRAPPINGS = ("state_dict", "model", "model_state_dict", "net", "ema", "state_dict_ema")
_PREFIXES = ("module.", "_orig_mod.")
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


def load_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors, .pt, .pth or .bin file by name, on the CPU.

    What training scripts wrap around a state dict (`state_dict`, `model`, `ema`, ..) is unpacked, and the prefixes that
    wrappers of a network leave (`module.`, `_orig_mod.`) are taken off.

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
    else:
        known = ", ".join((".safetensors", *_PICKLES))
        raise ConfigError(f"{path}: not a file of weights that edgekd reads ({known})", hint=_SAFE_WAY)
    return _without_prefixes(_unwrapped(loaded, path))


def apply_state(model: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Put a state into a network, all of it and nothing else; `path` names the file in messages.

    The counters of batch normalization (`num_batches_tracked`) may be missing, as in files of old.

    Raises:
        ConfigError: keys are missing, unexpected or of another shape; the network is then unchanged.
    """
    expected = {name: value for name, value in model.state_dict().items() if hasattr(value, "shape")}
    missing = [n for n in expected if n not in state and not n.endswith("num_batches_tracked")]
    unexpected = [n for n in state if n not in expected]
    reshaped = [n for n in expected if n in state and expected[n].shape != state[n].shape]
    faults = []
    if missing:
        faults.append(f"{len(missing)} missing ({_listed([_with_nearest(n, unexpected) for n in missing])})")
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
    except (SafetensorError, OSError, KeyError) as error:
        reason = first_line(error)
        raise ConfigError(
            f"{path}: not a safetensors file, or damaged: {reason}", hint="save or copy it again"
        ) from None


def _load_pickle(path: Path) -> Any:
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about kinds of files that are refused anyway
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL (\w+(?:\.\w+)+)", str(error))
        what = "it holds more than tensors, or is damaged"
        if wanted:
            what = f"it wants to load {wanted.group(1)}, and loading code from a file of weights can run anything"
        raise ConfigError(f"{path}: refused, for {what}", hint=_SAFE_WAY) from None
    except _DAMAGED as error:
        # What PyTorch says of TorchScript ends in the advice to load without any safety: not passed on.
        torchscript = "TorchScript" in str(error)
        reason = f"not a file of weights, or damaged: {first_line(error)}"
        message = "a TorchScript archive, not a state dict" if torchscript else reason
        raise ConfigError(f"{path}: {message}", hint=_SAFE_WAY) from None


def _unwrapped(loaded: Any, path: Path) -> dict[str, Tensor]:
    import torch

    while isinstance(loaded, Mapping):
        inner = next((loaded[key] for key in _WRAPPINGS if isinstance(loaded.get(key), Mapping)), None)
        if inner is None:
            break
        loaded = inner
    if not isinstance(loaded, Mapping):
        raise ConfigError(f"{path}: holds a {type(loaded).__name__}, not a state dict", hint=_SAFE_WAY)
    others = [
        name for name, value in loaded.items() if not isinstance(value, torch.Tensor) or not isinstance(name, str)
    ]
    if others or not loaded:
        what = f"{len(others)} entries that are no tensors ({_listed(others)})" if others else "no tensors"
        raise ConfigError(f"{path}: holds {what}, not a state dict", hint=_SAFE_WAY)
    return cast("dict[str, Tensor]", dict(loaded))


def _without_prefixes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    while prefix := next((p for p in _PREFIXES if all(name.startswith(p) for name in state)), None):
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def _with_nearest(name: str, others: list[str]) -> str:
    near = difflib.get_close_matches(name, others, n=1, cutoff=0.6)
    return f"{name}, nearest is {near[0]}" if near else name


def _listed(names: list[Any]) -> str:
    more = f", and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(str(name) for name in names[:_SHOWN]) + more


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a single value"
