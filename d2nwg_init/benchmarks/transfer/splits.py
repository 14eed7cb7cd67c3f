"""Which datasets measure what. Those of neither split may be in a zoo."""

from __future__ import annotations

from typing import Literal

Split = Literal["development", "held_out"]

SPLITS: dict[Split, tuple[str, ...]] = {
    # All choices are made on these.
    "development": ("kmnist", "fashion_mnist", "pacs_art_painting", "dtd_part", "natural_images", "chars74k"),
    # No choice is; every run is put on record.
    "held_out": (
        "cifar10", "kannada_digits", "notmnist", "pacs_cartoon", "trashnet",
        "flowers5", "blood_cells", "gtsrb", "sign_digits", "rsscn7",
    ),
}  # fmt: skip
