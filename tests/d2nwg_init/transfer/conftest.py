from dataclasses import replace

import pytest

from d2nwg_init.benchmarks.transfer import regressor
from d2nwg_init.benchmarks.transfer.arena import Arena
from d2nwg_init.benchmarks.transfer.subject import SubjectSpec, open_subject, work_folder
from tests.pretrained_generators.small import random_generator, save_random_bundle
from tests.zoo_builder.synthetic import striped_dataset
from zoo_builder.backbones import load_body


@pytest.fixture(scope="session")
def spec(whole, tmp_path_factory):
    """The tiny zoo with a random bundle of the same base."""
    bundle = tmp_path_factory.mktemp("bundles") / "same-base"
    generator = random_generator()
    load_body(generator.base, whole.base(), "the zoo's base")
    save_random_bundle(bundle, generator=generator, base_sha256=whole.base_sha256)
    return SubjectSpec(str(whole.path), str(bundle), ("branch",), "trunk")


@pytest.fixture(scope="session")
def folder(spec, tmp_path_factory):
    return work_folder(spec, tmp_path_factory.mktemp("work"))


@pytest.fixture(scope="session")
def subject(spec, folder):
    """Its regressor is trained in few steps; whoever opens it in the same folder finds it there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(regressor, "STAGE", replace(regressor.STAGE, steps=40, batch_size=8, learning_rate=3e-3))
        return open_subject(spec, folder)


def new_arena(subject, dataset=None, shots=None, seed=0):
    other = Arena(subject, striped_dataset("other", seed=9), seed, shots)
    return Arena(subject, dataset or striped_dataset(), seed, shots, other)


@pytest.fixture
def arena(subject):
    return new_arena(subject)
