"""initialize(): the whole data flow, from a loader to the model's new weights."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import nn

from d2nwg_init.accepted_model import ApartFrom, check_model, check_precision, not_compiled, unwrapped, working_copy
from d2nwg_init.across_ranks import decided_by_the_first_rank
from d2nwg_init.arguments import SEEDS, Head, check_budget, check_device, check_head, check_is_model, whole_number
from d2nwg_init.bundles import find_bundle
from d2nwg_init.candidates import Candidate, batchnorm_as_it_is, become, propose, set_body
from d2nwg_init.images_fit import check_images_fit
from d2nwg_init.learning_rate import measured_learning_rate
from d2nwg_init.planned_bodies import PlannedBodies, is_past
from d2nwg_init.refine import BATCH, can_be_refined, default_steps, gradient_comes, refine, trainings
from d2nwg_init.report import CandidateScore, InitReport
from d2nwg_init.select import compete, select
from d2nwg_init.stages import Stages
from d2nwg_init.torch_defaults import torch_defaults
from d2nwg_init.undo import set_state, unchanged_on_error
from d2nwg_init.unit_features import bring_features_to_unit_size
from d2nwg_init.untrained import is_untrained
from pretrained_generators.bundle import Bundle
from pretrained_generators.generator import Generator
from pretrained_generators.nearest_datasets import nearest_datasets
from zoo_builder.batchnorm import batchnorm_layers
from zoo_builder.classifier import find_classifier
from zoo_builder.progress import Bar, progress_bar
from zoo_builder.random_state import unchanged_random_state
from zoo_builder.support_set import SupportSet, read_support_set
from zoo_builder.versions import versions

UNTRAINED = (
    "the body was never trained, and no bundle made up for it: give it pretrained weights (timm's pretrained=True, "
    "torchvision's weights='DEFAULT', --weights on the command line)"
)


@decided_by_the_first_rank
def initialize(
    model: nn.Module,
    train_loader: Iterable[Any],
    *,
    generator: str | Path | Bundle | Generator | None = "auto",
    scope: str | Sequence[str] = "auto",
    num_candidates: int = 8,
    num_support: int = 1024,
    budget: float | None = None,
    head: Head = "auto",
    select: bool = True,
    refining_steps: int | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> InitReport:
    """Give `model` the best of: weights generated for the data, a solved head on its own body, itself. In place.

    Args:
        model: an image classifier of timm or torchvision that ends in a linear layer, or a 1x1 convolution that is
            pooled; wrapped ones are looked into.
        train_loader: batches of (images float [N, C, H, W], labels int [N]), transformed as for training; or dicts, or
            soft targets [N, K], of which the largest counts.
        generator: "auto" takes an embedded bundle that fits, None generates nothing; or a generator, a
            bundle, its name or folder. One of the Hub must be in its client's cache; nothing is downloaded here.
        scope: the parameters that generated weights may replace: "auto" and "body", all but the classifier; "norm";
            "head", none of the body; or names of modules. The rest stays the model's own.
        num_candidates: bodies to generate.
        num_support: images to use, at most; batches are read whole.
        budget: seconds after which nothing further is begun. The model as it was passed and its own body always are.
        head: "auto", a head solved in closed form, or the model's own where it is as good; "solve", always solved;
            "keep", the model's own; "fresh", a random one, on the body that a solved head serves best. "generate" is
            for bundles that have a generator of heads; none has yet.
        select: False takes the first generated body, unseen, where there is one that gives finite predictions.
        refining_steps: of training on the images read, from what was chosen. None takes 18; of fewer than 128 images up
            to 40, in each of three trainings, whose weights are averaged; for the user's own pretrained body, and for
            those of a bundle whose base absorbs statistics, no more than see each image six times. Without a bundle it
            takes none for a body that was never trained.
        seed: of the generated weights, of the images that refining sees and of a fresh head. With the same images and
            number of CPU threads it gives the same bits on one machine.
        device: where to compute; by default where the model is. The model stays where it is.
        progress: a progress bar on stderr, if that is a terminal.

    Returns:
        What was tried and chosen; it can undo. Under torch.distributed the first rank decides by its own images, and
        all end with its weights. On any error, Ctrl-C included, the model is bit for bit as it was; the
        global random state, the loader's generator and every module's training mode are so in any case.

    Raises:
        DataError: the loader's batches cannot be used. ModelError: the model cannot. BundleError: the bundle cannot.
        RecipeError: an unknown `head`, `scope` or `device`, or a number of something that is none. D2NWGError: under
            torch.distributed, where the first rank failed, on the others.
    """
    began = time.perf_counter()
    check_is_model(model, train_loader)
    check_head(head)
    check_budget(budget)
    check_device(device)
    seed = whole_number("seed", seed, *SEEDS)
    num_candidates = whole_number("num_candidates", num_candidates)
    num_support = whole_number("num_support", num_support)
    if refining_steps is not None:
        refining_steps = whole_number("refining_steps", refining_steps)
    stages = Stages()
    deadline = None if budget is None else began + budget
    network = unwrapped(model)
    num_classes = check_model(network)
    with (
        torch.inference_mode(False),
        torch.enable_grad(),  # refining is a training, whatever the caller is at
        unchanged_on_error(network) as undo,
        unchanged_random_state(train_loader),
        ExitStack() as after_reading,
    ):
        with stages("reading"):
            support = read_support_set(train_loader, num_support, num_classes, seed)
            after_reading.enter_context(torch_defaults())  # the loader is the user's, and so are its defaults
            after_reading.enter_context(not_compiled(network))
            work = working_copy(network, device)  # all is tried in it
            with ApartFrom(network):
                check_images_fit(work, support, solve=head != "keep")
        with stages("bundle"):
            bundle, reason = find_bundle(network, generator)
            untrained = is_untrained(network)
            plan = PlannedBodies(network, bundle, scope, num_candidates, screen=select)
            neighbours = nearest_datasets(bundle.generator, plan.seen(support).images) if bundle and plan.size else ()
        alone = untrained and (not plan.size or is_past(deadline))  # a body that must do, and was never trained
        as_it_is = head != "keep" and not alone and batchnorm_as_it_is(work, len(support), plan.names)
        own = 3 if as_it_is else 2
        with stages("candidates"), progress_bar("initialize", plan.size + own, show=progress) as bar:
            bodies = plan.until(deadline, support, seed)
            own_kind = "base" if plan.own_is_base else "own_body"
            proposed = propose(work, support, bodies, head != "keep", plan.names, own_kind, alone)
            candidates = list(_advancing(proposed, bar))
        by_default = bundle is not None or not untrained
        asked = by_default if refining_steps is None else refining_steps > 0
        wanted = asked and bool(plan.names) and head != "keep"  # with its own head the model stays what it is
        refinable = wanted and _can_be_refined(work, support, plan)
        competing = _competing(candidates, head, refinable, support.num_classes, untrained)
        chosen = _choose(competing, by_loss=select)
        if untrained and chosen.kind == "own_body":
            plan.notes.append(UNTRAINED)
        scores, discarded = tuple(_score(c) for c in candidates), tuple(_discarded(candidates))
        del candidates, competing  # and the bodies that lost
        work.load_state_dict(network.state_dict())
        refining = refinable and chosen.kind != "as_passed"
        if refining and is_past(deadline):
            plan.notes.append("the budget ended before refining")
            refining = False
        refinement = None
        if refining:
            careful = not untrained if chosen.kind == "own_body" else plan.absorbing
            steps = default_steps(len(support), careful) if refining_steps is None else refining_steps
            with stages("refining"), progress_bar("refining", steps * trainings(len(support)), show=progress) as bar:
                set_body(work, chosen, support)
                refinement = refine(work, support, steps, seed, plan.names, bar.advance, careful)
        else:
            with stages("solving"):
                become(work, chosen, support, head != "keep")
        solved_head = head in ("auto", "solve")
        unseen = support.num_classes - support.classes_seen
        if solved_head and chosen.kind != "as_passed":
            if unseen:
                plan.notes.append(f"of {unseen} classes no image was read, and the head never predicts them")
            bring_features_to_unit_size(work, support.images, plan.names)
        state = network.state_dict()
        if chosen.kind != "as_passed":
            state = work.state_dict()
            check_precision(network, state)
        if head == "fresh":
            state.update(_fresh_head(network, seed))
        report = InitReport(
            chosen=chosen.name,
            refinement=refinement,
            learning_rate=measured_learning_rate(
                chosen.kind,
                solved_head,
                whole_body=scope in ("auto", "body", "all"),
                has_batchnorm=bool(batchnorm_layers(network)),
                absorbing=plan.absorbing,
                refined=refinement is not None and refinement.kept,
                pretrained=chosen.kind != "own_body" or not untrained,
            ),
            candidates=scores,
            bundle=bundle.config.name if bundle else None,
            bundle_revision=bundle.generator.revision if bundle else None,
            bundle_sha256=bundle.config.weights_sha256 if bundle else None,
            neighbours=neighbours,
            reason=reason,
            head=head,
            notes=(*support.notes, *plan.notes, *discarded),
            images_read=len(support),
            image_shape=tuple(support.images.shape[1:]),
            num_classes=support.num_classes,
            classes_seen=support.classes_seen,
            seconds=stages.seconds,
            peak_bytes=stages.peak_bytes,
            seed=seed,
            threads=torch.get_num_threads(),
            versions=versions(),
            undo=undo,
        )
        with stages("writing"):
            set_state(network, state)
    return report


def _advancing(candidates: Iterable[Candidate], bar: Bar) -> Iterator[Candidate]:
    for candidate in candidates:
        bar.advance()
        yield candidate


def _can_be_refined(model: nn.Module, support: SupportSet, plan: PlannedBodies) -> bool:
    """What speaks against it goes into the notes of the plan."""
    if not can_be_refined(support):
        plan.notes.append(f"not refined, which takes two images of a class in {BATCH}, in the mean")
        return False
    if not gradient_comes(model, support, plan.names):
        plan.notes.append("not refined: no gradient comes from the features to the body")
        return False
    return True


def _competing(
    candidates: Iterable[Candidate], head: Head, refinable: bool, num_classes: int, untrained: bool
) -> Sequence[Candidate]:
    """Of which one is chosen. BatchNorm that must stay as it is suits a head alone: refined bodies do better."""
    competing = [
        c
        for c in candidates
        if (head in ("auto", "keep") or c.kind != "as_passed") and (c.batchnorm != "as passed" or not refinable)
    ]
    return competing if head == "keep" else compete(competing, num_classes, untrained)


def _choose(candidates: Sequence[Candidate], by_loss: bool) -> Candidate:
    """The best by loss, or else the first that was generated."""
    generated = [c for c in candidates if c.kind == "generated" and c.usable]
    return generated[0] if generated and not by_loss else select(candidates)


def _fresh_head(model: nn.Module, seed: int) -> dict[str, torch.Tensor]:
    """The tensors of a random classifier, by all their names in the model, as torch begins such a layer."""
    classifier = find_classifier(model)
    layer = copy.deepcopy(classifier.layer).cpu()
    torch.default_generator.manual_seed(seed)  # the caller puts the random state back; that of no GPU is touched
    layer.reset_parameters()
    names = [name for name, m in model.named_modules(remove_duplicate=False) if m is classifier.layer]
    return {f"{name}.{k}": v for name in names for k, v in layer.state_dict().items()}


def _score(candidate: Candidate) -> CandidateScore:
    losses = candidate.losses
    error = (losses.std() / len(losses) ** 0.5).item()
    return CandidateScore(candidate.name, candidate.kind, losses.mean().item(), error, candidate.accuracy)


def _discarded(candidates: Iterable[Candidate]) -> Iterator[str]:
    for c in candidates:
        if not c.usable:
            yield f"{c.name} was discarded: its predictions are not finite"
