from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from d2nwg_init.benchmarks import fine_tuning
from d2nwg_init.cli import app
from tests.pretrained_generators.small import labelled_images, save_random_bundle


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def succeed(*arguments):
    result = run(*arguments)
    assert result.exit_code == 0, result.output + repr(result.exception)
    return result.stdout


def fail(*arguments):
    """The message of a command that must end with exit code 1 and without a traceback, on one line."""
    result = run(*arguments)
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    assert "Traceback" not in result.output
    message = " ".join(result.stderr.split())
    assert message.startswith("Error (")
    return message


def write_image_folder(path, classes=("ant", "bee", "cat"), count=45):
    """`path`/class/N.png, a bright band at a place of its own for each class."""
    images, labels = labelled_images(count, len(classes))
    pixels = (images * 40 + 100).clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    for i, (image, label) in enumerate(zip(pixels, labels.tolist(), strict=True)):
        folder = path / classes[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.ascontiguousarray(image)).save(folder / f"{i}.png")
    return path


@dataclass(frozen=True)
class ShortFineTuning(fine_tuning.FineTuning):
    steps: tuple[int, ...] = (0, 1, 2)


@pytest.fixture
def short_fine_tuning(monkeypatch):
    monkeypatch.setattr(fine_tuning, "FineTuning", ShortFineTuning)


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    return write_image_folder(tmp_path_factory.mktemp("images") / "insects")


@pytest.fixture(scope="session")
def bundle_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("bundles") / "tiny-random"
    save_random_bundle(path)
    return path
