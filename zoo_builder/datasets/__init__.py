"""A name or a path -> images, labels and where they come from."""

from zoo_builder.datasets.image_dataset import ImageDataset
from zoo_builder.datasets.registry import dataset_names, load_dataset, plugin_names

__all__ = ["ImageDataset", "dataset_names", "load_dataset", "plugin_names"]
