"""scikit-learn's handwritten digits, which come with the library: no file, no download."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd.data.sources import Split
from edgekd.errors import UnavailableError

if TYPE_CHECKING:
    from torch import Tensor

_TEST_SAMPLES = 797
_SPLIT_SEED = 0  # the test split is a part of the data set: no pipeline's seed moves it


class DigitsReader:
    """1000 training and 797 test images, float32 (N, 1, 8, 8) = pixels / 16, with the classes in proportion."""

    splits: tuple[Split, ...] = ("train", "test")
    input_names = ("image",)
    target_names = ("label",)

    def files(self, split: Split | None = None) -> dict[str, tuple[Path, ...]]:
        return {}

    def identity(self, split: Split | None = None) -> dict[str, Any]:
        return {"scikit-learn": _installed_version(), "test": _TEST_SAMPLES, "split": _SPLIT_SEED}

    def check(self) -> None:
        _installed_version()

    def rows(self, split: Split) -> int:
        return _TEST_SAMPLES if split == "test" else 1797 - _TEST_SAMPLES

    def targets(self, split: Split) -> dict[str, Tensor]:
        return {"label": self._loaded[split][1]}

    def inputs(self, split: Split, rows: Tensor) -> dict[str, Tensor]:
        return {"image": self._loaded[split][0][rows]}

    def names(self, target: str) -> tuple[str, ...] | None:
        return tuple("0123456789")

    @cached_property
    def _loaded(self) -> dict[Split, tuple[Tensor, Tensor]]:
        import numpy as np
        import torch
        from sklearn.datasets import load_digits

        from edgekd.data.splits import choose_rows

        digits = load_digits()
        images = torch.from_numpy((digits.images / 16).astype(np.float32))[:, None]
        labels = torch.from_numpy(digits.target.astype(np.int64))
        test = torch.zeros(len(labels), dtype=torch.bool)
        test[choose_rows(len(labels), _TEST_SAMPLES, labels, _SPLIT_SEED, "digits")] = True
        return {"train": (images[~test], labels[~test]), "test": (images[test], labels[test])}


def _installed_version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("scikit-learn")
    except PackageNotFoundError:
        raise UnavailableError("data.digits needs scikit-learn", hint="pip install scikit-learn") from None
