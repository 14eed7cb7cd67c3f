"""Weights generated for your dataset: what `pretrained=True` could be.

report = d2nwg_init.initialize(model, train_loader)
"""

from d2nwg_init.bridges.timm import create_model, pretrained, pretrained_cfg
from d2nwg_init.bridges.torchvision import weights
from d2nwg_init.hook import initialize
from d2nwg_init.report import CandidateScore, InitReport
from pretrained_generators.generator import Generator
from pretrained_generators.generator_list import GeneratorInfo, list_generators
from zoo_builder.errors import BundleError, D2NWGError, DataError, ModelError, RecipeError, ZooError

__all__ = [
    "BundleError",
    "CandidateScore",
    "D2NWGError",
    "DataError",
    "Generator",
    "GeneratorInfo",
    "InitReport",
    "ModelError",
    "RecipeError",
    "ZooError",
    "create_model",
    "initialize",
    "list_generators",
    "pretrained",
    "pretrained_cfg",
    "weights",
]
