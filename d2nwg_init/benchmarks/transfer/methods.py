"""The rows of the benchmark: each makes a model to start from, of an arena. None but `oracle` looks at test images."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from d2nwg_init.benchmarks.fine_tuning import FineTuning, accuracy, train_steps
from d2nwg_init.benchmarks.transfer.arena import Arena
from d2nwg_init.benchmarks.transfer.cells import Cell
from d2nwg_init.benchmarks.transfer.heads import Head, logistic_head, nearest_class_mean_head
from d2nwg_init.candidates import Body, propose, set_body_and_solve
from d2nwg_init.hook import initialize
from d2nwg_init.select import select
from zoo_builder.backbones import extract_features, set_head
from zoo_builder.batchnorm import recalibrate_batchnorm
from zoo_builder.delta_library import DeltaLibrary
from zoo_builder.domain_images import stable_seed
from zoo_builder.errors import D2NWGError
from zoo_builder.model_stack import shifted

NUM_CANDIDATES = 8  # of every method that selects, as initialize() has by default
SIGMAS = (0.1, 0.3, 1.0)  # of noise_on_nearest
STRENGTHS = (0.5, 1.0, 1.5)  # tried for each row that adds one delta to the base
ORACLE_STRENGTHS = (0.25, 0.5, 0.75, 1.0, 1.5)
ORACLE_SHORTLIST = 8  # entries that are tried at every strength
PENALTIES = (0.01, 0.1, 1.0)  # tried for scikit-learn's logistic regression, as its C

Delta = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Made:
    model: nn.Module
    seconds: float  # to make it, from the loader on
    notes: dict[str, str | float]


@dataclass(frozen=True)
class Method:
    make: Callable[[Arena, Cell], tuple[nn.Module, dict[str, str | float]]]
    needs: str = ""  # "zoo" or "bundle"
    long: bool = False  # trained for 10 epochs too
    trained: bool = True  # else only step 0 is measured
    few_shot: bool = True  # measured at 1, 5 and 16 images a class too
    all_shots: bool = True  # measured with all train images
    strength: bool = False  # adds one delta to the base, whose strength is chosen
    conditions: tuple[str, ...] = ("right",)
    samples: int = 1


def make(arena: Arena, cell: Cell) -> Made:
    """The model that a cell's method starts from."""
    # Read before the clock runs: all methods share them.
    _ = arena.support, arena.test, arena.other and arena.other.support
    torch.manual_seed(cell.seed)
    began = time.perf_counter()
    model, notes = METHODS[cell.method].make(arena, cell)
    return Made(model, time.perf_counter() - began, notes)


def _plainly(build: Callable[[Arena], nn.Module]) -> Callable[[Arena, Cell], tuple[nn.Module, dict[str, str | float]]]:
    return lambda arena, _: (build(arena), {})


def _solved_full(arena: Arena, _: Cell) -> tuple[nn.Module, dict[str, str | float]]:
    model = arena.pretrained().to(memory_format=torch.channels_last)
    set_body_and_solve(model, {}, *arena.train)
    return model, {"images": float(len(arena.train[1]))}


def _sgd_equal_time(arena: Arena, cell: Cell) -> tuple[nn.Module, dict[str, str | float]]:
    """`solved`, then plain fine-tuning on the images read, for as long as the hook takes."""
    began = time.perf_counter()
    hook = "initialize" if arena.subject.bundle else "no_generator" if arena.subject.library else "initialize"
    METHODS[hook].make(arena, cell)
    allowed = time.perf_counter() - began
    began = time.perf_counter()
    model = arena.solved({})
    used = time.perf_counter() - began
    recipe = FineTuning(learning_rate=cell.learning_rate or FineTuning.learning_rate)
    steps = 0
    # At a constant rate: how many steps the time allows is not known before.
    for step, seconds in train_steps(model, arena.loader(len(arena.support)), recipe, None):
        steps = step
        if used + seconds >= allowed:
            break
    return model, {"steps": float(steps), "seconds_allowed": allowed}


def _combined(weigh: Callable[[DeltaLibrary, Arena], torch.Tensor]) -> Callable:
    """A row whose delta is a combination of the zoo's, by the embedding of the arena or, shuffled, of another one."""

    def build(arena: Arena, cell: Cell) -> tuple[nn.Module, dict[str, str | float]]:
        library = _library(arena)
        weights = weigh(library, _conditioned(arena, cell.condition))
        notes: dict[str, str | float] = {"entry": library.ids[int(weights.argmax())]}
        return arena.solved(library.combine(weights), cell.strength or 1.0), notes

    return build


def _conditioned(arena: Arena, condition: str) -> Arena:
    """Whose images the condition is made of; the head is always solved on the arena's own."""
    if condition == "right":
        return arena
    if arena.other is None:
        raise D2NWGError("A shuffled condition needs a second dataset in the split.")
    return arena.other


def _library(arena: Arena) -> DeltaLibrary:
    assert arena.subject.library is not None
    return arena.subject.library


def _universal(arena: Arena, cell: Cell) -> tuple[nn.Module, dict[str, str | float]]:
    assert arena.subject.universal is not None
    return arena.solved(arena.subject.universal, cell.strength or 1.0), {}


def _noise_on_nearest(arena: Arena, cell: Cell) -> tuple[nn.Module, dict[str, str | float]]:
    """The best, on left-out images, of as many noisy copies of the nearest entry as a generator has candidates."""
    library = _library(arena)
    nearest = library.combine(library.nearest(arena.embedding))
    generator = torch.Generator().manual_seed(stable_seed("noise", cell.seed))

    def noisy(i: int) -> Body:
        delta = {
            k: v + cell.sigma * v.square().mean().sqrt() * torch.randn(v.shape, generator=generator)  # type: ignore[operator]
            for k, v in nearest.items()
        }
        return Body("noisy", f"noisy_{i}", shifted(arena.subject.parameters(), delta))

    return _best_of(arena, (noisy(i) for i in range(NUM_CANDIDATES)))


def _best_of(arena: Arena, bodies: Iterator[Body]) -> tuple[nn.Module, dict[str, str | float]]:
    """The body, of `bodies` alone, with the smallest loss on left-out images."""
    model = arena.pretrained()
    tried = [c for c in propose(model, arena.support, bodies) if c.kind not in ("as_passed", "own_body")]
    best = min((c for c in tried if c.usable), key=lambda c: c.losses.mean().item())
    model.load_state_dict(best.state)
    return model, {"chosen": best.name}


def _no_generator(arena: Arena, _: Cell) -> tuple[nn.Module, dict[str, str | float]]:
    """The hook with its selection, whose candidates are what a zoo gives without a generator."""
    library, base = _library(arena), arena.subject.parameters()
    assert arena.subject.universal is not None

    def bodies() -> Iterator[Body]:
        yield Body("zoo", "universal", shifted(base, arena.subject.universal or {}))
        embedding = arena.subject.embed(arena.support.images, arena.support.labels)
        for name, weights in (
            ("nearest", library.nearest(embedding)),
            ("zoo_mean", library.mean()),
            ("similarity_mean", library.by_similarity(embedding)),
        ):
            yield Body("zoo", name, shifted(base, library.combine(weights)))

    model = arena.pretrained()
    chosen = select(list(propose(model, arena.support, bodies())))
    model.load_state_dict(chosen.state)
    return model, {"chosen": chosen.name}


def _oracle(arena: Arena, _: Cell) -> tuple[nn.Module, dict[str, str | float]]:
    """The entry and strength that are best on the test images: what the zoo holds for who knew them. Every entry is
    tried as it is; the best ones, the universal one too, at every strength."""
    library = _library(arena)
    accuracies: dict[tuple[str, float], float] = {}
    models: dict[tuple[str, float], nn.Module] = {}

    def attempt(name: str, delta: Delta, strength: float) -> None:
        model = arena.solved(delta, strength)
        accuracies[name, strength] = accuracy(model, *arena.test)
        models[name, strength] = model
        for key in sorted(models, key=lambda k: -accuracies[k])[1:]:  # only the best is kept
            del models[key]

    def entry(i: int) -> dict[str, torch.Tensor]:
        return library.combine(torch.nn.functional.one_hot(torch.tensor(i), len(library.ids)).float())

    attempt("base", {}, 0.0)
    for i, name in enumerate(library.ids):
        attempt(name, entry(i), 1.0)
    best = sorted((k for k in accuracies if k[0] != "base"), key=lambda k: -accuracies[k])[:ORACLE_SHORTLIST]
    for strength in ORACLE_STRENGTHS:
        for name, _strength in best:
            if strength != 1.0:
                attempt(name, entry(library.ids.index(name)), strength)
        attempt("universal", arena.subject.universal or {}, strength)
    name, strength = max(accuracies, key=lambda k: accuracies[k])
    return models[name, strength], {"entry": name, "strength": strength, "tried": float(len(accuracies))}


def _generated(arena: Arena, cell: Cell) -> tuple[nn.Module, dict[str, str | float]]:
    """One sample, not selected. Its seed is not among those that initialize() chooses from."""
    seed = 1_000_000 + 1_000 * cell.seed + (cell.sample or 0)
    return arena.solved(_samples(arena, cell.condition, 1, seed)[0]), {}


def _generated_selected(arena: Arena, cell: Cell) -> tuple[nn.Module, dict[str, str | float]]:
    base = arena.subject.parameters()
    deltas = _samples(arena, cell.condition, NUM_CANDIDATES, cell.seed)
    return _best_of(
        arena, (Body("generated", f"generated_{i}", shifted(base, delta)) for i, delta in enumerate(deltas))
    )


def _samples(arena: Arena, condition: str, count: int, seed: int) -> list[dict[str, torch.Tensor]]:
    assert arena.subject.bundle is not None
    generator = arena.subject.bundle.generator
    embedding = None
    if condition != "null":
        shown = _conditioned(arena, condition).support
        embedding = generator.embed(shown.images, shown.labels, shown.num_classes)
    return generator.sample_deltas(embedding, count, seed)


def _initialize(arena: Arena, cell: Cell) -> tuple[nn.Module, dict[str, str | float]]:
    model = arena.pretrained()
    report = initialize(model, arena.loader(), generator=arena.subject.bundle, seed=cell.seed)
    return model, {"chosen": report.chosen}


def _with_head(head: Callable[[torch.Tensor, torch.Tensor, int, Cell], Head]) -> Callable:
    """The recalibrated base with a head from its features."""

    def build(arena: Arena, cell: Cell) -> tuple[nn.Module, dict[str, str | float]]:
        model, support = arena.pretrained().to(memory_format=torch.channels_last), arena.support
        recalibrate_batchnorm(model, support.images)
        features = extract_features(model, support.images)
        set_head(model, *head(features, support.labels, support.num_classes, cell), support.images)
        return model, {}

    return build


METHODS: dict[str, Method] = {
    "scratch": Method(_plainly(Arena.scratch), long=True, few_shot=False),
    "pretrained": Method(_plainly(Arena.pretrained), long=True, few_shot=False),
    "solved": Method(_plainly(lambda arena: arena.solved({})), long=True),
    "solved_full": Method(_solved_full, few_shot=False),
    "nearest_class_mean": Method(
        _with_head(lambda x, y, k, _: nearest_class_mean_head(x, y, k)), trained=False, all_shots=False
    ),
    "logistic": Method(
        _with_head(lambda x, y, k, cell: logistic_head(x, y, k, cell.strength or 1.0)), trained=False, all_shots=False
    ),
    "universal": Method(_universal, "zoo", strength=True),
    "nearest": Method(
        _combined(lambda lib, a: lib.nearest(a.embedding)), "zoo", strength=True, conditions=("right", "shuffled")
    ),
    "zoo_mean": Method(_combined(lambda lib, a: lib.mean()), "zoo", strength=True),
    "similarity_mean": Method(
        _combined(lambda lib, a: lib.by_similarity(a.embedding)), "zoo", strength=True, conditions=("right", "shuffled")
    ),
    "least_squares": Method(
        _combined(lambda lib, a: lib.least_squares(a.embedding)), "zoo", strength=True, conditions=("right", "shuffled")
    ),
    "regressor": Method(
        _combined(lambda _, a: a.network_weights), "zoo", strength=True, conditions=("right", "shuffled")
    ),
    "noise_on_nearest": Method(_noise_on_nearest, "zoo", trained=False),
    "no_generator": Method(_no_generator, "zoo"),
    "generated_mean": Method(_generated, "bundle", conditions=("right", "shuffled", "null"), samples=2),
    "generated_selected": Method(_generated_selected, "bundle", conditions=("right", "shuffled", "null")),
    "initialize": Method(_initialize, long=True),
    "sgd_equal_time": Method(_sgd_equal_time, few_shot=False),
    "oracle": Method(_oracle, "zoo", trained=False, few_shot=False),
}
