"""A small budget of `bench fuzz`, and that it sees what it is there to see."""

from random import Random

import pytest

from d2nwg_init.benchmarks import fuzz
from d2nwg_init.benchmarks.fuzz import damage_and_load, fuzz_bundle, fuzz_rows, tiny_bundle
from d2nwg_init.benchmarks.mutations import MUTATIONS, mutate
from pretrained_generators.bundle import load_bundle

INPUTS = 150


def files_of(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny") / "tiny"
    tiny_bundle(folder)
    return folder


@pytest.fixture(scope="module")
def outcomes(whole, tmp_path_factory):
    """Of a bundle with its base and of one without."""
    without = tmp_path_factory.mktemp("without")
    tiny_bundle(without, fuzz.BASE_SOURCE)
    base = load_bundle(whole).generator.base
    return [damage_and_load(files_of(whole), None, s) for s in range(INPUTS)] + [
        damage_and_load(files_of(without), base, s) for s in range(INPUTS, 2 * INPUTS)
    ]


def test_each_is_refused_or_works(outcomes):
    assert [o for o in outcomes if o.end == "crashed"] == []
    assert {o.end for o in outcomes} == {"refused", "loaded"}
    assert not any(o.too_much_memory for o in outcomes)


def test_every_stage_of_the_check_is_reached(outcomes):
    told = "\n".join(o.error for o in outcomes)
    for words in ("not a bundle's config", "SHA-256", "safetensors file", "its config says", "NaN or infinite",
                  "does not know", "is no parameter of", "cannot make"):  # fmt: skip
        assert words in told


def test_at_least_half_have_their_hashes_recomputed(outcomes):
    assert sum(o.rehashed for o in outcomes) >= len(outcomes) / 2


def test_rows_count_the_outcomes(outcomes):
    rows = {r.metric: r.value for r in fuzz_rows("tiny", outcomes)}
    assert rows["inputs"] == 2 * INPUTS == rows["refused"] + rows["loaded"]
    assert rows["crashes"] == 0
    assert rows["slowest_seconds"] == max(o.seconds for o in outcomes)


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: m.__name__)
def test_each_mutation_changes_something(whole, mutation):
    sound = files_of(whole)
    for seed in range(20):
        files = dict(sound)
        mutation(Random(seed), files)
        if files != sound:
            return
    pytest.fail("nothing was changed")


def test_mutations_can_be_combined(whole):
    sound = files_of(whole)
    assert sum(mutate(Random(seed), dict(sound)) for seed in range(1000)) >= 500


def test_what_is_no_bundle_error_is_a_crash(whole, monkeypatch):
    def broken(*_):
        raise ValueError("unforeseen")

    monkeypatch.setattr(fuzz, "load_bundle", broken)
    assert damage_and_load(files_of(whole), None, 0).end == "crashed"
    monkeypatch.setattr(fuzz, "load_bundle", load_bundle)
    monkeypatch.setattr(fuzz, "mutate", lambda *_: False)
    assert damage_and_load(files_of(whole), None, 0).end == "loaded"
    monkeypatch.setattr(fuzz, "_check_works", broken)
    assert damage_and_load(files_of(whole), None, 0).end == "crashed"


def test_outcomes_of_another_process_are_the_same(whole, outcomes):
    told = [(o.seed, o.rehashed, o.end) for o in fuzz_bundle(whole, range(5))]
    assert told == [(o.seed, o.rehashed, o.end) for o in outcomes[:5]]
