"""A zoo recipe -> the list of fine-tuning tasks, each fully determined by its fields."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from zoo_builder.domains import DOMAINS
from zoo_builder.errors import RecipeError, nearest_names


@dataclass(frozen=True)
class Training:
    steps: int
    learning_rate: float = 0.02  # peak of one cycle; SGD, momentum 0.9
    batch_size: int = 128  # images; half of them are the support of an episode
    classes: int = 10  # classes in an episode at most


@dataclass(frozen=True)
class Group:
    """Related datasets. A trunk is trained over all of them; each dataset then branches off in several domains."""

    name: str
    datasets: tuple[str, ...]
    domains: tuple[str, ...] = ("plain",)
    own_share: float = 0.5  # of a branch's episodes that come from its own dataset; the rest are the group's
    class_subset: int | None = None  # a branch on a dataset with more classes draws this many
    seeds: int = 1
    trunk_domains: tuple[str, ...] | None = None  # those of the branches, where not given
    learning_rate: float | None = None  # in place of the recipe's, trunk and branches; gentle where the base is good


@dataclass(frozen=True)
class ZooRecipe:
    trunk: Training
    branch: Training
    groups: tuple[Group, ...]
    held_out: tuple[str, ...]  # names that no task may touch
    finetune: Training | None = None  # plain fine-tuning of each dataset too, the paper's kind of entry
    size: int = 64  # pixels
    support: int = 512  # images kept with an entry and used to solve the head of its score
    seed: int = 0


@dataclass(frozen=True)
class FineTuneTask:
    kind: str  # "trunk", "branch" (both episodic) or "finetune"
    group: str
    dataset: str  # what a branch belongs to and is scored on; of a trunk, the first of the group
    related: tuple[str, ...]  # the other datasets of its episodes
    domains: tuple[str, ...]  # of a trunk: one drawn for each episode; else exactly one
    training: Training
    own_share: float
    class_subset: int | None
    size: int
    support: int
    seed: int
    start: str | None = None  # the id of the trunk that a branch goes on from; None is the base

    @property
    def id(self) -> str:
        """A readable name with a digest of all fields: another setting is another entry."""
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:8]
        where = self.group if self.kind == "trunk" else f"{self.dataset}-{self.domains[0]}"
        return f"{self.kind}-{where}-{self.seed}-{digest}"


def plan_tasks(recipe: ZooRecipe) -> list[FineTuneTask]:
    """All tasks of a recipe, trunks first.

    Raises:
        RecipeError: a held-out dataset in a group, an unknown domain, an empty group, a name given twice.
    """
    _check_unique("groups", [group.name for group in recipe.groups])
    trunks: list[FineTuneTask] = []
    others: list[FineTuneTask] = []
    for group in recipe.groups:
        _check_group(group, recipe.held_out)
        trunk = FineTuneTask(
            kind="trunk",
            group=group.name,
            dataset=group.datasets[0],
            related=group.datasets[1:],
            domains=group.trunk_domains or group.domains,
            training=_with_rate(recipe.trunk, group),
            own_share=group.own_share,
            class_subset=None,
            size=recipe.size,
            support=recipe.support,
            seed=recipe.seed,
        )
        trunks.append(trunk)
        for dataset in group.datasets:
            own = replace(trunk, dataset=dataset, class_subset=group.class_subset)
            related = tuple(d for d in group.datasets if d != dataset)
            branch = replace(
                own, kind="branch", related=related, training=_with_rate(recipe.branch, group), start=trunk.id
            )
            for seed in range(recipe.seed, recipe.seed + group.seeds):
                others += [replace(branch, seed=seed, domains=(domain,)) for domain in group.domains]
            if recipe.finetune is not None:
                others.append(replace(own, kind="finetune", related=(), domains=("plain",), training=recipe.finetune))
    return trunks + others


def _check_unique(where: str, names: Sequence[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise RecipeError(f"{where}: {twice} given more than once.")


def _with_rate(training: Training, group: Group) -> Training:
    return training if group.learning_rate is None else replace(training, learning_rate=group.learning_rate)


def _check_group(group: Group, held_out: tuple[str, ...]) -> None:
    if not group.datasets or not group.domains:
        raise RecipeError(f"group {group.name!r} needs at least one dataset and one domain.")
    forbidden = sorted(set(group.datasets) & set(held_out))
    if forbidden:
        raise RecipeError(
            f"group {group.name!r} uses {forbidden}, which the recipe holds out. A held-out dataset measures the "
            "result and must not train it: remove it from the group, or from held_out."
        )
    _check_unique(f"group {group.name!r}", group.datasets)
    for domain in (*group.domains, *(group.trunk_domains or ())):
        if domain not in DOMAINS:
            raise RecipeError(f"group {group.name!r}: unknown domain {domain!r}; {nearest_names(domain, DOMAINS)}")
