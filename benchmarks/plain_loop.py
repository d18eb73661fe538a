"""What edgekd's training is measured against: the loop that everyone writes, and torchdistill's, with their data.

Both are float32, NCHW, with the teacher live in every step; images are decoded and augmented by Pillow for every step,
in DataLoader workers. The plain loop does in every step what mdistiller's does: the student before the teacher, both
accuracies, meters and a line of text. Its order matters: glibc gives more memory back to the system when the teacher
runs beside the student's activations, and takes it again in the next step. torchdistill asks the teacher first.
"""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

from edgekd.distill.knowledge import kd
from edgekd.models.resolve import build

PAIRS = [("resnet32x4", "resnet8x4"), ("resnet56", "resnet20")]
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
CPU = torch.device("cpu")
Samples = list[tuple[bytes, int]]
Epoch = Callable[[], None]
_OPERATORS = (
    *("nms", "qnms", "roi_align", "_roi_align_backward", "qroi_align", "ps_roi_align", "_ps_roi_align_backward"),
    *("roi_pool", "_roi_pool_backward", "ps_roi_pool", "_ps_roi_pool_backward"),
)


def samples(folder: Path | None, count: int, split: str = "train") -> Samples:
    """Encoded images of 32x32 with labels: the first of a Parquet file with `img` and `label`, or noise."""
    if folder is not None:
        from pyarrow import parquet

        table = parquet.read_table(folder / f"{split}.parquet").slice(0, count)
        return [(row["img"]["bytes"], row["label"]) for row in table.to_pylist()]
    rng = np.random.default_rng(0)
    found = []
    for i in range(count):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(buffer, "JPEG", quality=90)
        found.append((buffer.getvalue(), i % 10))
    return found


def decoded(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


def network(name: str, seed: int) -> nn.Module:
    """A network for 10 classes of 32x32 images with seeded weights."""
    torch.manual_seed(seed)
    return build(name, {}, Path(), {"num_classes": 10, "in_channels": 3, "image_size": 32})


class Encoded(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Images decoded and augmented (crop from 4 pixels of padding, flip) by Pillow when they are asked for."""

    def __init__(self, rows: Samples) -> None:
        self.rows = rows
        self.mean, self.std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        data, label = self.rows[index]
        image = ImageOps.expand(decoded(data), 4)
        x, y = random.randrange(9), random.randrange(9)
        image = image.crop((x, y, x + 32, y + 32))
        if random.random() < 0.5:
            image = ImageOps.mirror(image)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float().div(255)
        return (pixels - self.mean) / self.std, label


class Meter:
    """A running mean."""

    def __init__(self) -> None:
        self.total, self.count = 0.0, 0

    def update(self, value: float, n: int) -> float:
        self.total, self.count = self.total + value * n, self.count + n
        return self.total / self.count


def loader_options(workers: int) -> dict[str, Any]:
    """Options of a DataLoader. Workers live on: a short epoch must not count their start more often than a long one."""
    return {"num_workers": workers, "persistent_workers": workers > 0}


def top(logits: Tensor, target: Tensor, k: int) -> Tensor:
    return logits.topk(k, 1).indices.eq(target[:, None]).sum() * (100.0 / len(target))


def plain(
    teacher: nn.Module,
    student: nn.Module,
    rows: Samples,
    *,
    batch: int,
    workers: int,
    device: torch.device = CPU,
    teacher_first: bool = False,
) -> Epoch:
    """One epoch of the loop that everyone writes."""
    loader = torch.utils.data.DataLoader(
        Encoded(rows),
        batch_size=batch,
        shuffle=True,
        drop_last=True,
        pin_memory=device.type == "cuda",
        **loader_options(workers),
    )
    teacher.to(device).eval()
    student.to(device)
    learns = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)

    @torch.no_grad()
    def ask(x: Tensor) -> Tensor:
        answer: Tensor = teacher(x)
        return answer

    def epoch() -> None:
        meters = {name: Meter() for name in ("loss", "top1", "top5")}
        student.train()
        for images, labels in loader:
            learns.zero_grad()
            x, y = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
            early = ask(x) if teacher_first else None
            logits = student(x)
            target = ask(x) if early is None else early
            loss = 0.1 * nn.functional.cross_entropy(logits, y) + 0.9 * kd(logits, target, temperature=4.0)
            loss.backward()  # type: ignore[no-untyped-call]
            learns.step()
            with torch.no_grad():
                found = {"loss": loss, "top1": top(logits, y, 1), "top5": top(logits, y, 5)}
            " | ".join(f"{name}: {meters[name].update(value.item(), len(y)):.3f}" for name, value in found.items())

    return epoch


def torchdistill(teacher: nn.Module, student: nn.Module, rows: Samples, *, batch: int, workers: int) -> Epoch:
    """One epoch of torchdistill's distillation box, driven as its example for image classification drives it.

    Raises:
        ImportError: torchdistill, or torchvision that it needs, is not installed or does not import.
    """
    transforms = _transforms()
    import torchvision.datasets  # type: ignore[import-not-found]  # noqa: F401  torchdistill expects it to be loaded
    from torchdistill.common.constant import def_logger  # type: ignore[import-not-found]
    from torchdistill.core.distillation import get_distillation_box  # type: ignore[import-not-found]
    from torchdistill.misc.log import MetricLogger, SmoothedValue  # type: ignore[import-not-found]

    def_logger.setLevel("WARNING")
    data = _Transformed(rows, transforms)
    order = {"class_or_func": torch.utils.data.RandomSampler}
    loader = {"kwargs": {"batch_size": batch, "drop_last": True, **loader_options(workers)}, "sampler": order}
    sides = {"student_module_path": ".", "teacher_module_path": "."}
    sides |= {"student_module_io": "output", "teacher_module_io": "output"}
    knowledge = {"key": "KDLoss", "kwargs": {**sides, "temperature": 4.0, "alpha": 0.1, "reduction": "batchmean"}}
    terms = {"sub_terms": {"kd": {"criterion": knowledge, "weight": 1.0}}}
    config = {
        "num_epochs": 1,
        "train_data_loader": {"dataset_id": "train", **loader},
        "val_data_loader": {},
        "teacher": {"forward_proc": "forward_batch_only", "requires_grad": False},
        "student": {"forward_proc": "forward_batch_only", "requires_grad": True},
        "optimizer": {"key": "SGD", "kwargs": {"lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4}},
        "criterion": {"key": "WeightedSumLoss", "kwargs": terms},
    }
    teacher.eval()
    box = get_distillation_box(teacher, student, {"train": data}, config, CPU, None, False, 1)

    def epoch() -> None:
        log = MetricLogger(delimiter="  ")
        log.add_meter("lr", SmoothedValue(window_size=1, fmt="{value}"))
        box.pre_epoch_process(epoch=0)
        for images, labels, more in log.log_every(box.train_data_loader, 100, "Epoch: [0]"):
            loss = box.forward_process(images.to(CPU), labels.to(CPU), more)
            box.post_forward_process(loss=loss)
            log.update(loss=loss.item(), lr=box.optimizer.param_groups[0]["lr"])
            if torch.isnan(loss) or torch.isinf(loss):
                raise ValueError(f"the loss is {loss}")

    return epoch


class _Transformed(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Images decoded by Pillow and augmented by torchvision, as torchdistill's files for CIFAR-10 configure it."""

    def __init__(self, rows: Samples, transforms: Any) -> None:
        self.rows = rows
        steps = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
        self.transform = transforms.Compose([*steps, transforms.Normalize(MEAN, STD)])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        data, label = self.rows[index]
        return self.transform(decoded(data)), label


def _transforms() -> Any:
    """torchvision's transforms.

    Its library is built for CUDA and does not load beside a torch without; then its Python part misses the names of
    some operators when it is imported. They are declared, and it imports. They look for boxes in images: nothing here
    calls them.
    """
    try:
        from torchvision import transforms
    except RuntimeError:
        library: Any = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
        for name in _OPERATORS:
            library.define(f"{name}(Tensor x) -> Tensor")
        _declared.append(library)
        from torchvision import transforms
    return transforms


_declared: list[torch.library.Library] = []  # what is declared lives as long as its library
