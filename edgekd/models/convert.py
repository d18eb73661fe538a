"""python -m edgekd.models.convert FILE NEW.safetensors: the tensors of any checkpoint, without running its code.

Unpickling calls whatever a file names. Here nothing but what rebuilds tensors is ever called: every other name in the
file stands for an empty box that keeps its contents, so that also whole pickled networks give up their tensors.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from edgekd.errors import ConfigError, EdgekdError

if TYPE_CHECKING:
    from torch import Tensor

_REBUILDS = {
    "torch._utils": {"_rebuild_tensor_v2", "_rebuild_tensor", "_rebuild_parameter"},
    "collections": {"OrderedDict"},
    "torch": {"Size"},
    "builtins": {"set", "frozenset"},
    "__builtin__": {"set", "frozenset"},
}


class _Box(dict[Any, Any]):
    """Stands for an object of a class that is not loaded; keeps its state, whatever is done to it."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        for part in state if isinstance(state, tuple) else (state,):
            self.update(part if isinstance(part, dict) else {})

    def append(self, item: Any) -> None:
        self[len(self)] = item

    def extend(self, items: Any) -> None:
        for item in items:
            self.append(item)

    def add(self, item: Any) -> None:
        self.append(item)


class _Unpickler(pickle.Unpickler):
    """Loads tensors and plain values; every other name becomes a box."""

    def find_class(self, module: str, name: str) -> Any:
        if name in _REBUILDS.get(module, ()):
            return super().find_class(module, name)
        if module == "torch" and name in _DTYPES:
            import torch

            return getattr(torch, name)
        return type(name if name.isidentifier() else "Box", (_Box,), {})


_DTYPES = {"float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"}


_DEEPEST = 100


def tensors_of(path: Path) -> dict[str, Tensor]:
    """Every tensor of a checkpoint by name; a pickled network's as its state dict has them.

    Raises:
        ConfigError: it is no PyTorch file, or holds no tensors.
    """
    import torch

    from edgekd.models.weights import broken, unwrapped

    module = SimpleNamespace(
        Unpickler=_Unpickler, load=lambda stream, **more: _Unpickler(stream, **more).load(), __name__="boxes"
    )
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=False, pickle_module=module)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file", hint="give the path of a checkpoint") from None
    except Exception as error:  # a damaged pickle raises anything
        raise broken(path) from error
    found = dict(_walk(unwrapped(loaded, []), "", ()))
    if not found:
        raise ConfigError(f"{path}: holds no tensors", hint="give a file that torch.save wrote")
    return found


def _walk(value: Any, name: str, above: tuple[int, ...]) -> list[tuple[str, Tensor]]:
    """Tensors by name in a value; `above` are the mappings that it lies in, for one may hold itself."""
    import torch

    if isinstance(value, torch.Tensor):
        return [(name, value.detach())]
    if not isinstance(value, Mapping) or id(value) in above:
        return []
    if len(above) >= _DEEPEST:
        raise ConfigError(f"it is nested more than {_DEEPEST} deep: {name[:80]} ..", hint="save the tensors alone")
    found = []
    # A pickled module keeps its tensors in these three; buffers that it would not save are left out.
    parts = [value.get(key) for key in ("_parameters", "_buffers", "_modules")]
    if all(isinstance(part, Mapping) for part in parts):
        skipped = {str(key) for key in _names(value.get("_non_persistent_buffers_set"))}
        inside = [(k, v) for part in parts if part for k, v in part.items() if str(k) not in skipped]
    else:
        inside = [(k, v) for k, v in value.items() if isinstance(k, str)]
    for key, inner in inside:
        found += _walk(inner, f"{name}.{key}" if name else str(key), (*above, id(value)))
    return found


def _names(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (set, frozenset)) else []


def main(words: list[str]) -> int:
    """The command: the checkpoint, and the file to write."""
    from edgekd.models.weights import save_state, without_prefixes

    if len(words) != 2 or not words[1].endswith(".safetensors"):
        print(
            "error: two files are needed\nhelp: python -m edgekd.models.convert FILE NEW.safetensors", file=sys.stderr
        )
        return 2
    try:
        state = without_prefixes(tensors_of(Path(words[0])), [])
        save_state(state, Path(words[1]))
    except EdgekdError as error:
        print(f"error: {error.message}\nhelp: {error.hint}", file=sys.stderr)
        return error.exit_code
    print(f"{words[1]}: {len(state)} tensors; nothing of {words[0]} was run")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
