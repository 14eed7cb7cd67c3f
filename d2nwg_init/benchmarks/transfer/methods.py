"""The rows of the benchmark: each makes a model to start from, of an arena. None but `oracle` looks at test images."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from d2nwg_init.benchmarks.fine_tuning import FineTuning, accuracy, train_for
from d2nwg_init.benchmarks.peak_memory import peak_memory
from d2nwg_init.benchmarks.transfer.arena import NUM_SUPPORT, Arena
from d2nwg_init.benchmarks.transfer.cells import Cell
from d2nwg_init.benchmarks.transfer.heads import Head, logistic_head, nearest_class_mean_head
from d2nwg_init.candidates import STRENGTHS as GENERATED_STRENGTHS
from d2nwg_init.candidates import Body, become, propose, set_body_and_solve, set_parameters
from d2nwg_init.hook import initialize
from d2nwg_init.refine import Refinement, default_steps, refine
from d2nwg_init.select import compete, select
from d2nwg_init.unit_features import bring_features_to_unit_size
from zoo_builder.backbones import extract_features, set_head
from zoo_builder.batchnorm import recalibrate_batchnorm
from zoo_builder.delta_library import DeltaLibrary
from zoo_builder.domain_images import stable_seed
from zoo_builder.errors import D2NWGError
from zoo_builder.model_stack import shifted

NUM_CANDIDATES = 8  # of every method that selects, as initialize() has by default
SIGMAS = (0.1, 0.3, 1.0)  # of noise_on_nearest
STRENGTHS = (0.5, 1.0, 1.5, 2.0, 3.0)  # tried for each row that adds one delta to the base
ORACLE_STRENGTHS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)
ORACLE_IMAGES = 500  # of the images read, and of the test images, that entries are shortlisted on
ORACLE_SHORTLIST = 8  # entries that are tried at every strength
PENALTIES = (1e-3, 0.01, 0.1, 1.0)  # tried for scikit-learn's logistic regression, as its C

TIMED = "seconds_timed"  # note: spent to see how long the hook takes, and not counted

Delta = Mapping[str, torch.Tensor]
Built = tuple[nn.Module, dict[str, str | float]]  # a model, and what is worth noting


@dataclass(frozen=True)
class Made:
    model: nn.Module
    seconds: float  # to make it, from the loader on
    notes: dict[str, str | float]


@dataclass(frozen=True)
class Method:
    make: Callable[[Arena, Cell], Built]
    needs: str = ""  # "zoo" or "bundle"
    long: bool = False  # trained for 10 epochs too
    trained: bool = True  # else only step 0 is measured
    few_shot: bool = True  # measured at 1, 5 and 16 images a class too
    all_shots: bool = True  # measured with all train images
    strength: bool = False  # adds one delta to the base, whose strength is chosen
    conditions: tuple[str, ...] = ("right",)
    samples: int = 1
    seeds: int | None = None  # at most; None is no limit
    timed_by_hook: bool = False  # has the time that the hook takes, with the bundle if there is one
    trained_to_start: bool = False  # its rate is part of how its step 0 is made, and chosen by that

    @property
    def rated(self) -> bool:
        """Whether it has a learning rate, which is chosen."""
        return self.trained or self.trained_to_start

    @property
    def depends_on_bundle(self) -> bool:
        return self.needs == "bundle" or self.timed_by_hook


def make(arena: Arena, cell: Cell) -> Made:
    """The model that a cell's method starts from."""
    # Read before the clock runs: all methods share them.
    _ = arena.support, arena.test, arena.other and arena.other.support
    torch.manual_seed(cell.seed)
    with peak_memory() as peak:
        began = time.perf_counter()
        model, notes = METHODS[cell.method].make(arena, cell)
        seconds = time.perf_counter() - began - float(notes.get(TIMED, 0.0))
    return Made(model, seconds, notes | ({"peak_bytes": float(peak.bytes)} if peak.bytes else {}))


def _plainly(build: Callable[[Arena], nn.Module]) -> Callable[[Arena, Cell], Built]:
    return lambda arena, _: (build(arena), {})


def _solved_full(arena: Arena, _: Cell) -> Built:
    model = arena.pretrained().to(memory_format=torch.channels_last)
    set_body_and_solve(model, arena.plain_base(arena.train[0]), *arena.train)
    return model, {"images": float(len(arena.train[1]))}


def _refined(arena: Arena, cell: Cell) -> Built:
    model = arena.solved({})
    refinement = _refine(model, arena, cell)
    return model, {"kept": float(refinement is not None and refinement.kept)}


def _refine(model: nn.Module, arena: Arena, cell: Cell) -> Refinement | None:
    """What the hook does to a body that was chosen."""
    careful = arena.subject.batchnorm == "absorbed"  # as initialize()
    steps = default_steps(len(arena.support), careful)
    refinement = refine(model, arena.support, steps, cell.seed, careful=careful)
    bring_features_to_unit_size(model, arena.support.images)
    return refinement


def _sgd_equal_time(arena: Arena, cell: Cell) -> Built:
    """`solved`, then plain fine-tuning on the images read, for as long as the hook takes."""
    began = time.perf_counter()
    hook = "initialize" if arena.subject.bundle else "no_generator" if arena.subject.library else "initialize"
    METHODS[hook].make(arena, cell)
    allowed = time.perf_counter() - began
    began = time.perf_counter()
    model = arena.solved_base()
    used = time.perf_counter() - began
    recipe = FineTuning(learning_rate=cell.learning_rate or FineTuning.learning_rate)
    steps = 0
    for step, _ in train_for(model, arena.support_loader(), recipe, max(allowed - used, 1e-3)):
        steps = step
    return model, {"steps": float(steps), TIMED: allowed}


def _combined(weigh: Callable[[DeltaLibrary, Arena], torch.Tensor]) -> Callable:
    """A row whose delta is a combination of the zoo's, by the embedding of the arena or, shuffled, of another one."""

    def build(arena: Arena, cell: Cell) -> Built:
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


def _universal(arena: Arena, cell: Cell) -> Built:
    assert arena.subject.universal is not None
    return arena.solved(arena.subject.universal, cell.strength or 1.0), {}


def _noise_on_nearest(arena: Arena, cell: Cell) -> Built:
    """The best, on left-out images, of as many noisy copies of the nearest entry as a generator has candidates."""
    library = _library(arena)
    nearest, base = library.combine(library.nearest(arena.embedding())), arena.fitted_base()
    generator = torch.Generator().manual_seed(stable_seed("noise", cell.seed))

    def noisy(i: int) -> Body:
        delta = {
            k: v + cell.sigma * v.square().mean().sqrt() * torch.randn(v.shape, generator=generator)  # type: ignore[operator]
            for k, v in nearest.items()
        }
        return Body("noisy", f"noisy_{i}", shifted(base, delta, cell.strength or 1.0))

    return _best_of(arena, (noisy(i) for i in range(NUM_CANDIDATES)))


def _best_of(arena: Arena, bodies: Iterator[Body]) -> Built:
    """The body, of `bodies` alone, with the smallest loss on left-out images."""
    model = arena.pretrained()
    tried = [c for c in propose(arena.pretrained(), arena.support, bodies) if c.kind not in ("as_passed", "own_body")]
    best = min((c for c in tried if c.usable), key=lambda c: c.losses.mean().item())
    become(model, best, arena.support)
    return model, {"chosen": best.name}


def _zoo_selected(arena: Arena, _: Cell) -> Built:
    """The hook's selection, whose candidates are what a zoo gives in place of what is generated."""
    library, base = _library(arena), arena.fitted_base()
    assert arena.subject.universal is not None

    def bodies() -> Iterator[Body]:
        embedding = arena.embedding()
        deltas = {
            "universal": arena.subject.universal or {},
            "nearest": library.combine(library.nearest(embedding)),
            "zoo_mean": library.combine(library.mean()),
            "similarity_mean": library.combine(library.by_similarity(embedding)),
        }
        for name, delta in deltas.items():
            for strength in sorted(GENERATED_STRENGTHS):  # where nothing can be judged, the weakest is taken
                yield Body("generated", f"{name}_{strength:g}", shifted(base, delta, strength))

    model = arena.pretrained()
    proposed = list(propose(arena.pretrained(), arena.support, bodies(), own_kind="base"))
    chosen = select(compete(proposed, arena.support.num_classes, own_is_untrained=False))
    become(model, chosen, arena.support)
    return model, {"chosen": chosen.name}


def _no_generator(arena: Arena, cell: Cell) -> Built:
    """The whole hook, refining included, without a generator."""
    model, notes = _zoo_selected(arena, cell)
    if notes["chosen"] != "as_passed":
        _refine(model, arena, cell)
    return model, notes


def _oracle(arena: Arena, _: Cell) -> Built:
    """The entry and strength that are best on the test images: what the zoo holds for who knew them. Entries are
    shortlisted on a part of the images; the base, the universal delta and the shortlist are tried at every strength."""
    library, base = _library(arena), arena.fitted_base()
    images, labels = arena.support.images[:ORACLE_IMAGES], arena.support.labels[:ORACLE_IMAGES]
    test_images, test_labels = arena.test[0][:ORACLE_IMAGES], arena.test[1][:ORACLE_IMAGES]
    model = arena.pretrained().to(memory_format=torch.channels_last)

    def entry(name: str) -> Delta:
        return library.combine(F.one_hot(torch.tensor(library.ids.index(name)), len(library.ids)).float())

    first = {}
    for name in library.ids:
        set_body_and_solve(model, shifted(base, entry(name)), images, labels)
        first[name] = accuracy(model, test_images, test_labels)
    deltas = {name: entry(name) for name in sorted(first, key=lambda n: -first[n])[:ORACLE_SHORTLIST]}
    deltas["universal"] = arena.subject.universal or {}
    tried: dict[tuple[str, float], float] = {("base", 0.0): accuracy(arena.solved({}), *arena.test)}
    for name, delta in deltas.items():
        for strength in ORACLE_STRENGTHS:
            tried[name, strength] = accuracy(arena.solved(delta, strength), *arena.test)
    name, strength = max(tried, key=lambda k: tried[k])
    model = arena.solved(deltas.get(name, {}), strength)
    return model, {"entry": name, "strength": strength, "tried": float(len(first) + len(tried))}


def _generated(arena: Arena, cell: Cell) -> Built:
    """One sample, not selected. Its seed is not among those that initialize() chooses from."""
    seed = 1_000_000 + 1_000 * cell.seed + (cell.sample or 0)
    return arena.solved(_samples(arena, cell.condition, 1, seed)[0]), {}


def _generated_selected(arena: Arena, cell: Cell) -> Built:
    base = arena.fitted_base()
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


def _initialize(arena: Arena, cell: Cell) -> Built:
    model = arena.pretrained()
    report = initialize(
        model,
        arena.loader(),
        generator=arena.subject.bundle,
        num_support=NUM_SUPPORT,
        seed=cell.seed,
        progress=False,
    )
    return model, {"chosen": report.chosen}


def _with_head(head: Callable[[torch.Tensor, torch.Tensor, int, Cell], Head]) -> Callable:
    """The recalibrated base with a head from its features."""

    def build(arena: Arena, cell: Cell) -> Built:
        model, support = arena.pretrained().to(memory_format=torch.channels_last), arena.support
        set_parameters(model, arena.plain_base(support.images))
        recalibrate_batchnorm(model, support.images)
        features = extract_features(model, support.images)
        set_head(model, *head(features, support.labels, support.num_classes, cell), support.images)
        return model, {}

    return build


BOTH, ALL = ("right", "shuffled"), ("right", "shuffled", "null")
METHODS: dict[str, Method] = {
    "scratch": Method(_plainly(Arena.scratch), long=True, few_shot=False),
    "pretrained": Method(_plainly(Arena.pretrained), long=True, few_shot=False),
    "solved": Method(_plainly(Arena.solved_base), long=True),
    "rescaled": Method(_plainly(lambda arena: arena.solved({}))),
    "solved_full": Method(_solved_full, few_shot=False),
    "refined": Method(_refined),
    "nearest_class_mean": Method(
        _with_head(lambda x, y, k, _: nearest_class_mean_head(x, y, k)), trained=False, all_shots=False
    ),
    "logistic": Method(
        _with_head(lambda x, y, k, cell: logistic_head(x, y, k, cell.strength or 1.0)), trained=False, all_shots=False
    ),
    "universal": Method(_universal, "zoo", strength=True),
    "nearest": Method(_combined(lambda lib, a: lib.nearest(a.embedding())), "zoo", strength=True, conditions=BOTH),
    "zoo_mean": Method(_combined(lambda lib, a: lib.mean()), "zoo", strength=True),
    "similarity_mean": Method(
        _combined(lambda lib, a: lib.by_similarity(a.embedding())),
        "zoo",
        strength=True,
        conditions=BOTH,
    ),
    "least_squares": Method(
        _combined(lambda lib, a: lib.least_squares(a.embedding())),
        "zoo",
        strength=True,
        conditions=BOTH,
    ),
    "regressor": Method(_combined(lambda _, a: a.network_weights()), "zoo", strength=True, conditions=BOTH),
    "noise_on_nearest": Method(_noise_on_nearest, "zoo", trained=False, strength=True),
    "zoo_selected": Method(_zoo_selected, "zoo"),
    "no_generator": Method(_no_generator, "zoo"),
    "generated_mean": Method(_generated, "bundle", conditions=ALL, samples=2),
    "generated_selected": Method(_generated_selected, "bundle", conditions=ALL),
    "initialize": Method(_initialize, "bundle", long=True),
    "sgd_equal_time": Method(_sgd_equal_time, few_shot=False, timed_by_hook=True, trained_to_start=True),
    "oracle": Method(_oracle, "zoo", trained=False, few_shot=False, seeds=1),
}
