"""What every source delivers: two splits of images with labels, in memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from zoo_builder.errors import DataError


@dataclass(frozen=True)
class ImageDataset:
    name: str
    x_train: np.ndarray  # uint8 [N, H, W, 3]
    y_train: np.ndarray  # int64 [N], 0 .. classes - 1
    x_test: np.ndarray  # uint8 [M, H, W, 3]
    y_test: np.ndarray  # int64 [M]
    class_names: tuple[str, ...]
    origin: str  # where the file or folder says it comes from
    sha256: str  # of the file, or of the folder's file names and bytes
    licence: str = "unknown"  # of the images
    skipped: tuple[str, ...] = ()  # images that could not be read, by their names in the source

    def __post_init__(self) -> None:
        for part, x, y in (("train", self.x_train, self.y_train), ("test", self.x_test, self.y_test)):
            if x.dtype != np.uint8 or x.ndim != 4 or x.shape[-1] != 3:
                raise DataError(
                    f"Dataset {self.name!r}: {part} images must be uint8 [N, H, W, 3], got {x.dtype} {list(x.shape)}."
                )
            if len(x) != len(y):
                raise DataError(f"Dataset {self.name!r}: {len(x)} {part} images but {len(y)} labels.")
            if len(y) and (y.min() < 0 or y.max() >= self.num_classes):
                raise DataError(
                    f"Dataset {self.name!r}: {part} labels must lie in 0..{self.num_classes - 1}, "
                    f"got {y.min()}..{y.max()}."
                )
        if not len(self.x_train):
            raise DataError(f"Dataset {self.name!r} has no training image.")
        if self.num_classes < 2:
            raise DataError(f"Dataset {self.name!r} has {self.num_classes} class; at least 2 are needed.")

    @property
    def num_classes(self) -> int:
        return len(self.class_names)


def resize_images(images: np.ndarray, size: int) -> torch.Tensor:
    """uint8 [N, H, W, 3] -> uint8 [N, 3, size, size], antialiased bilinear."""
    out = torch.empty(len(images), 3, size, size, dtype=torch.uint8)
    for start in range(0, len(images), 1024):
        part = torch.from_numpy(images[start : start + 1024]).permute(0, 3, 1, 2)
        if part.shape[-2:] != (size, size):
            part = F.interpolate(part.float(), size=(size, size), mode="bilinear", antialias=True, align_corners=False)
            part = part.round_().clamp_(0, 255)
        out[start : start + 1024] = part
    return out


def normalize_images(images: torch.Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
    """uint8 [N, 3, H, W] -> float32, channels last, (x / 255 - mean) / std per channel."""
    mean_, std_ = (torch.tensor(v, device=images.device).view(1, 3, 1, 1) * 255 for v in (mean, std))
    return images.float().sub_(mean_).div_(std_).contiguous(memory_format=torch.channels_last)


def spread_evenly(count: int, most: int) -> torch.Tensor:
    """Indices of `most` of `count` images, or of all if there are fewer, from all parts of the set."""
    return torch.linspace(0, count - 1, min(most, count), dtype=torch.float64).round().long()


def standardize_channels(images: torch.Tensor) -> torch.Tensor:
    """Mean 0 and deviation 1 for each channel over all images and pixels of [N, C, H, W]."""
    mean, std = channel_statistics(images)
    return (images - mean) / std


def channel_statistics(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean [1, C, 1, 1] and deviation [C, 1, 1] of each channel over all images and pixels of [N, C, H, W]."""
    std = torch.stack([channel.std() for channel in images.unbind(1)])  # five times as quick as over three dimensions
    return images.mean((0, 2, 3), keepdim=True), std.clamp_min(1e-6)[:, None, None]
