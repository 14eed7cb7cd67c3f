"""A bundle and its zoo -> rows: every gate, the memorisation tests, and gain kept against compression."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean

from d2nwg_init.benchmarks.generator.codecs import Codec, codecs
from d2nwg_init.benchmarks.generator.recall import recall_at_1
from d2nwg_init.benchmarks.results import Row, earlier_results, header, read_results
from d2nwg_init.benchmarks.transfer.tables import by_dataset, parts, selected
from pretrained_generators.audit import Sighting, judge
from pretrained_generators.bundle import Bundle
from pretrained_generators.training.audit_zoo import audit_zoo
from pretrained_generators.training.gates import Reproduce, gains_kept, sampling_gain_kept
from pretrained_generators.training.train import MEASURED_ENTRIES, MEASURED_SAMPLES
from pretrained_generators.training.zoo_data import target_delta
from zoo_builder.sources import read_sources
from zoo_builder.store import Zoo

ALL = "all"  # in place of a dataset's name: a mean over entries or datasets
SEED = 0
ORACLE_GAIN = 3.0  # points that a development set must have to win, to count for the condition


@dataclass(frozen=True)
class GeneratorRow(Row):
    """A row of generator.json: what this benchmark adds to the common keys."""

    codec: str | None = None  # of `gain_kept`: "vae", "svd", "pca" or "pca_chunks"
    compression: float | None = None  # of the codec
    match: str | None = None  # of `recall_at_1`: "entry", "dataset", "kept_back" or "base_gradient"


def run_generator_benchmark(bundle: Bundle, zoo: Zoo, data: Path | None, transfer: Path | None) -> list[GeneratorRow]:
    """Every gate, NaN for what was not measured: `recall_at_1` needs `data`, the zoo's datasets, and
    `condition_shuffled_drop` on development sets a `transfer` results file with rows of this very bundle.

    Raises:
        BundleError: the zoo is not the one that the bundle was trained on. DataError: `data` lacks a dataset, or has
            another of its name. D2NWGError: `transfer` does not hold results.
    """
    lists = dict.fromkeys(("runs", "comparisons", "rows"), list)
    report = read_results(transfer, lists, "Give that of bench transfer as --transfer.") if transfer else {"runs": []}
    generator = bundle.generator
    row = functools.partial(GeneratorRow, bundle.config.name, ALL, seed=SEED)
    own = functools.partial(row, "generator")
    found = audit_zoo(bundle, zoo, MEASURED_SAMPLES, SEED)
    learnt, kept_back = ([zoo.entry(i) for i in ids] for ids in (bundle.config.learnt, bundle.config.kept_back))
    ways = {c: _reproduction(c) for c in codecs(generator, [target_delta(e) for e in learnt])}
    kept = gains_kept("compression", generator, kept_back, ways)
    vae = next(c for c in kept if c.name == "vae")
    step = max(1, len(learnt) // MEASURED_ENTRIES)
    sampled, unseen_sampled = (
        sampling_gain_kept(generator, of, MEASURED_SAMPLES, SEED) for of in (learnt[::step], kept_back)
    )
    recall = {"entry": float("nan")}
    if data is not None:
        recall = recall_at_1(generator, learnt, kept_back, data, read_sources(zoo.path))
    verdict = judge(found)
    return [
        own(metric="reconstruction_gain_kept", value=kept[vae].share, unit="share"),
        own(metric="reconstruction_gain_original", value=kept[vae].original, unit="points"),
        own(metric="sampling_gain_kept", value=sampled.share, unit="share"),
        own(metric="sampling_gain_original", value=sampled.original, unit="points"),
        own(metric="sampling_gain_kept_back", value=unseen_sampled.share, unit="share"),
        own(metric="compression", value=vae.compression, unit="ratio"),
        *(own(metric="recall_at_1", value=value, unit="%", match=match) for match, value in recall.items()),
        own(metric="condition_shuffled_drop", value=shuffled_drop(report, bundle), unit="points", split="development"),
        own(metric="condition_shuffled_drop", value=_or_nan(verdict.condition_drop), unit="points", split="zoo"),
        own(metric="memorisation_z", value=verdict.distance_z, unit="standard deviations"),
        own(metric="memorisation_p", value=verdict.distance_p, unit="chance"),
        *_audit_means(row, found),
        *(
            row(c.name, metric="gain_kept", value=gain.share, unit="share", codec=c.name, compression=c.compression)
            for c, gain in kept.items()
        ),
    ]


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value


def _reproduction(codec: Codec) -> Reproduce:
    return lambda entry, *_: [codec.rebuild(target_delta(entry))]


def _audit_means(row: Callable[..., GeneratorRow], found: Sequence[Sighting]) -> Iterator[GeneratorRow]:
    """What the verdict rests on: means over the tasks that were held back, by the audit's methods."""
    for method in dict.fromkeys(s.method for s in found):
        mine = [s for s in found if s.method == method]
        distance, overlap = mean(s.distance for s in mine), mean(s.overlap for s in mine)
        yield row(method, metric="nearest_distance", value=distance, unit="own norm")
        yield row(method, metric="largest_overlap", value=overlap, unit="IoU of wrong answers")
        yield row(method, metric="left_out_accuracy", value=mean(s.accuracy for s in mine), unit="%")


def shuffled_drop(transfer: dict, bundle: Bundle) -> float:
    """Points that another dataset's condition costs `generated_mean` at step 0, in the mean over the development sets
    where `oracle` is ORACLE_GAIN or more above `solved`; NaN where these rows, of this bundle, are not there."""
    config = bundle.config
    for part in parts(transfer):
        same = any(r.get("weights_sha256") == config.weights_sha256 for r in part.runs if None in r["shots"])
        if (part.bundle, part.split) == (config.name, "development") and same:
            rows = selected(part.rows, "test_accuracy", step=0)
            asked = {r["seed"] for r in rows if r["method"] == "oracle"}  # it is slow, and may have fewer than others
            at, paired = by_dataset(rows), by_dataset([r for r in rows if r["seed"] in asked])
            oracle, solved = paired.get("oracle", {}), paired.get("solved", {})
            right, shuffled = at.get("generated_mean", {}), at.get("generated_mean, shuffled", {})
            sets = [d for d in oracle.keys() & solved.keys() if oracle[d] - solved[d] >= ORACLE_GAIN]
            drops = [right[d] - shuffled[d] for d in sets if d in right and d in shuffled]
            return mean(drops) if drops else float("nan")
    return float("nan")


def merged(file: Path, bundle: Bundle, zoo: Zoo, rows: Sequence[GeneratorRow]) -> dict:
    """The object of generator.json: that of `file`, in which the rows of this bundle are replaced. Each run keeps a
    header of its own."""
    name = bundle.config.name
    before = earlier_results(file, "runs", "rows")
    data = [{"name": n, "origin": s.origin, "sha256": s.sha256} for n, s in read_sources(zoo.path).items()]
    run = {"bundle": name, "weights_sha256": bundle.config.weights_sha256, **header("generator"), "data": data}
    runs = [*(r for r in before["runs"] if r["bundle"] != name), run]
    return {
        **header("generator"),
        "data": list({d["name"]: d for r in runs for d in r["data"]}.values()),
        "runs": runs,
        "rows": [*(r for r in before["rows"] if r["bundle"] != name), *map(_as_json, rows)],
    }


def _as_json(row: GeneratorRow) -> dict:
    """Without keys that say nothing; a value that was not measured is null."""
    values = {k: v for k, v in asdict(row).items() if v is not None}
    return values | {"value": None if row.value != row.value else round(row.value, 4)}
