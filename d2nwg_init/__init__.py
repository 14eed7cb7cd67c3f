"""Weights generated for your dataset: what `pretrained=True` could be.

report = d2nwg_init.initialize(model, train_loader)
"""

from importlib import import_module
from threading import RLock
from typing import TYPE_CHECKING

from zoo_builder.errors import BundleError, D2NWGError, DataError, ModelError, RecipeError, ZooError

if TYPE_CHECKING:
    from d2nwg_init.bridges.timm import create_model, pretrained, pretrained_cfg
    from d2nwg_init.bridges.torchvision import weights
    from d2nwg_init.hook import initialize
    from d2nwg_init.report import CandidateScore, InitReport
    from pretrained_generators.generator import Generator
    from pretrained_generators.generator_list import GeneratorInfo, list_generators

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

# Imported when they are asked for (PEP 562): torch and timm take seconds, which `d2nwg-init --help` does not need.
_HOMES = {
    "d2nwg_init.bridges.timm": ("create_model", "pretrained", "pretrained_cfg"),
    "d2nwg_init.bridges.torchvision": ("weights",),
    "d2nwg_init.hook": ("initialize",),
    "d2nwg_init.report": ("CandidateScore", "InitReport"),
    "pretrained_generators.generator": ("Generator",),
    "pretrained_generators.generator_list": ("GeneratorInfo", "list_generators"),
}
_ONE_AT_A_TIME = RLock()  # timm and torchvision, begun by two threads at once, wait for each other

if not TYPE_CHECKING:  # which would take any name for a public one

    def __getattr__(name: str) -> object:
        for home, names in _HOMES.items():
            if name in names:
                with _ONE_AT_A_TIME:
                    return globals().setdefault(name, getattr(import_module(home), name))
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
