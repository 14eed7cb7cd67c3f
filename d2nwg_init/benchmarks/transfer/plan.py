"""Which cells a run is made of, and what is chosen on the development sets before it: learning rates and strengths."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from d2nwg_init.benchmarks.transfer.cells import Cell, Measured, Training
from d2nwg_init.benchmarks.transfer.methods import METHODS, PENALTIES, SIGMAS, STRENGTHS, Method
from zoo_builder.errors import RecipeError, nearest_names
from zoo_builder.files import write_text_atomically
from zoo_builder.recipe import parse_config

RATES = (3e-4, 1e-3, 3e-3, 1e-2)  # the grid of learning rates, for every row
HEADS = ("solved", "nearest_class_mean", "logistic")  # of which the best is `best_closed_form`
SHOTS = (1, 5, 16, None)  # train images of a class; None is all
CHOOSING_SEED = 1000  # no reported seed


@dataclass(frozen=True)
class Choice:
    """What the development sets say of one method."""

    learning_rate: float | None = None
    strength: float | None = None  # of the delta, with all train images; of a logistic head its C
    few_shot_strength: dict[str, float] = field(default_factory=dict)  # by shots


@dataclass(frozen=True)
class Choices:
    """Of one subject. Without them every row has the defaults, and says so."""

    methods: dict[str, Choice] = field(default_factory=dict)
    closed_form: dict[str, str] = field(default_factory=dict)  # the best head by shots, for `best_closed_form`

    def of(self, method: str) -> Choice:
        return self.methods.get(method, Choice())

    def strength(self, method: str, shots: int | None) -> float | None:
        choice = self.of(method)
        return choice.strength if shots is None else choice.few_shot_strength.get(str(shots))


def read_choices(
    file: Path,
    subject: str,
    of: str,
    methods: Collection[str],
    shots: Collection[int | None],
    trained: Collection[str] = (),
) -> tuple[Choices, list[str]]:
    """What was chosen for `subject`, which is nothing for another base, zoo or bundle than `of` tells; and those of
    `methods` that it lacks something of, for one of these shots, or a rate if they are `trained`. Heads that compete
    lack it together."""
    if not file.exists():
        return Choices(), list(methods)
    try:
        written = json.loads(file.read_text())
        run = written["runs"].get(subject, {})
        if run.get("of") != of:
            return Choices(), list(methods)
        rated, chosen = set(run["trained"]), [set(run["methods"].get(_named(s), ())) for s in shots]
        choices = parse_config(written["choices"][subject], Choices)
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise RecipeError(
            f"{file} does not hold the choices of a benchmark ({e!r}). Remove it, and they are made again."
        ) from e
    covered = (rated | (set(methods) - set(trained))).intersection(*chosen)
    if not covered.issuperset(set(HEADS) & set(methods)):
        covered -= set(HEADS)
    strong = [m for m in covered.intersection(methods) if METHODS[m].strength]
    covered -= {m for m in strong if None in [choices.strength(m, s) for s in shots]}
    return choices, [m for m in methods if m not in covered]


def write_choices(
    file: Path,
    subject: str,
    of: str,
    choices: Choices,
    methods: Collection[str],
    shots: Collection[int | None],
    trained: Collection[str],
    header: Mapping[str, object],
) -> Choices:
    """Into a file that may hold those of other subjects, and of this one for other methods and numbers of shots;
    returns all that is chosen for it now."""
    written = json.loads(file.read_text()) if file.exists() else {"runs": {}, "choices": {}}
    before = written["runs"].get(subject, {})
    if before.get("of") != of:
        before = {"methods": {}, "trained": []}
    else:
        choices = _joined(parse_config(written["choices"][subject], Choices), choices, None in shots)
    by_shots = {_named(s): list(dict.fromkeys([*before["methods"].get(_named(s), ()), *methods])) for s in shots}
    # A rate is of the strength that it was chosen with.
    rated = [m for m in before["trained"] if None not in shots or m not in methods]
    run = {"of": of, "methods": before["methods"] | by_shots, "trained": [*rated, *trained]}
    runs = {**written["runs"], subject: {**header, **run}}
    kept = {**written["choices"], subject: asdict(choices)}
    write_text_atomically(file, json.dumps({"schema": 1, "runs": runs, "choices": kept}, indent=1) + "\n")
    return choices


def _joined(before: Choices, now: Choices, all_images: bool) -> Choices:
    """What was chosen for some numbers of shots, and `now` for others, `all_images` among them or not."""
    methods = dict(before.methods)
    for name, choice in now.methods.items():
        few_shot = before.of(name).few_shot_strength | choice.few_shot_strength
        methods[name] = replace(choice if all_images else before.of(name), few_shot_strength=few_shot)
    return Choices(methods, before.closed_form | now.closed_form)


def _named(shots: int | None) -> str:
    return "all" if shots is None else str(shots)


def available(has_zoo: bool, has_bundle: bool) -> dict[str, Method]:
    """The methods that a subject has what is needed for."""
    there = {"": True, "zoo": has_zoo, "bundle": has_bundle}
    return {name: method for name, method in METHODS.items() if there[method.needs]}


def chosen_methods(names: Sequence[str], has_zoo: bool, has_bundle: bool) -> dict[str, Method]:
    """Those of `names`, all that are available if there are none.

    Raises:
        RecipeError: unknown, or without the zoo or bundle that it needs.
    """
    there = available(has_zoo, has_bundle)
    for name in names:
        if name not in METHODS:
            raise RecipeError(f"There is no method {name!r}; {nearest_names(name, METHODS)}")
        if name not in there:
            raise RecipeError(f"The method {name!r} needs a --{METHODS[name].needs}.")
    return {name: there[name] for name in (names or there)}


def plan_cells(
    methods: Mapping[str, Method],
    datasets: Sequence[str],
    shots: Sequence[int | None],
    seeds: Sequence[int],
    choices: Choices,
) -> list[Cell]:
    """All cells of a run. With few shots only step 0 is measured, of other conditions than the right one too."""
    cells = []
    for name, method in methods.items():
        rate = choices.of(name).learning_rate
        for dataset in datasets:
            for count in shots:
                if not (method.all_shots if count is None else method.few_shot):
                    continue
                for seed in seeds[: method.seeds]:
                    for condition in method.conditions:
                        trained = count is None and condition == "right"
                        length = _training(method) if trained else "none"
                        for variant in _variants(name, method):
                            cells.append(
                                Cell(
                                    dataset,
                                    count,
                                    seed,
                                    name,
                                    length,
                                    condition,
                                    strength=choices.strength(name, count),
                                    learning_rate=rate if length != "none" or method.trained_to_start else None,
                                    **variant,
                                )
                            )
    return cells


def _training(method: Method) -> Training:
    if not method.trained:
        return "none"
    return "long" if method.long else "short"


def _variants(name: str, method: Method) -> list[dict]:
    if name == "noise_on_nearest":
        return [{"sigma": sigma} for sigma in SIGMAS]
    if method.samples > 1:
        return [{"sample": i} for i in range(method.samples)]
    return [{}]


def strength_cells(methods: Mapping[str, Method], datasets: Sequence[str], shots: Sequence[int | None]) -> list[Cell]:
    """Step 0 at every strength (penalty, for the logistic head), and of the heads that compete with few shots."""
    return [
        Cell(dataset, count, CHOOSING_SEED, name, strength=strength, **_variants(name, method)[0])
        for name, method in methods.items()
        for dataset in datasets
        for count in shots
        if (method.all_shots if count is None else method.few_shot)
        for strength in _strengths(name, method, count)
    ]


def _strengths(name: str, method: Method, shots: int | None) -> tuple[float | None, ...]:
    if name == "logistic":
        return PENALTIES
    if method.strength:
        return STRENGTHS
    return (None,) if shots is not None and name in HEADS else ()


def rate_cells(methods: Mapping[str, Method], datasets: Sequence[str], choices: Choices) -> list[Cell]:
    """Every method that has a learning rate, at each."""
    return [
        Cell(
            dataset,
            None,
            CHOOSING_SEED,
            name,
            "none" if method.trained_to_start else "rates",
            strength=choices.strength(name, None),
            learning_rate=rate,
            **_variants(name, method)[0],
        )
        for name, method in methods.items()
        if method.rated
        for dataset in datasets
        for rate in RATES
    ]


def choose_strengths(measured: Mapping[Cell, Measured]) -> Choices:
    """For each method and number of shots the strength of the highest mean accuracy at step 0, over the datasets; for
    each number of shots the best of the closed-form heads."""
    means = _means(measured, lambda cell: (cell.method, cell.shots, cell.strength), ("step/0",))
    best: dict[tuple[str, int | None], tuple[float, float | None]] = {}
    for (method, shots, strength), value in means.items():
        best[method, shots] = max(best.get((method, shots), (-1.0, None)), (value, strength), key=lambda b: b[0])
    methods = {
        name: Choice(
            strength=best[name, None][1] if (name, None) in best else None,
            few_shot_strength={str(s): b[1] for (n, s), b in best.items() if n == name and s is not None and b[1]},
        )
        for name, _ in best
    }
    closed_form = {
        str(s): max(HEADS, key=lambda h: best[h, s][0])
        for s in dict.fromkeys(s for _, s in best if s is not None)
        if all((h, s) in best for h in HEADS)
    }
    return Choices(methods, closed_form)


def choose_rates(choices: Choices, measured: Mapping[Cell, Measured]) -> Choices:
    """The learning rate of the highest mean accuracy at steps 30 and 100 and after an epoch, over the datasets; at step
    0 of methods that are trained to start."""
    means: dict[tuple[str, float], float] = {}
    for training, at in (("rates", ("step/30", "step/100", "epoch/1")), ("none", ("step/0",))):
        some = {cell: found for cell, found in measured.items() if cell.training == training}
        means |= _means(some, lambda cell: (cell.method, cell.learning_rate), at)
    methods = dict(choices.methods)
    for name in dict.fromkeys(method for method, _ in means):
        _, rate = max((value, rate) for (method, rate), value in means.items() if method == name)
        before = choices.of(name)
        methods[name] = Choice(rate, before.strength, before.few_shot_strength)
    return Choices(methods, choices.closed_form)


def _means(measured: Mapping[Cell, Measured], key, at: Sequence[str]) -> dict:  # type: ignore[no-untyped-def]
    values: dict = {}
    for cell, found in measured.items():
        values.setdefault(key(cell), []).append(sum(found.accuracy(a) for a in at) / len(at))
    return {k: sum(v) / len(v) for k, v in values.items()}
