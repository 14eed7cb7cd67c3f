"""`.eval_results/*.yaml`, in which the Hub lists what a model was measured on: for datasets of the Hub alone."""

from __future__ import annotations

import re
from collections import defaultdict

from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml
from huggingface_hub.utils import yaml_dump

from pretrained_generators.card_results import BundleResults

OURS = ".eval_results/d2nwg-init--"  # all that begin so are ours, to be replaced; others are of others
HUB_DATASET = re.compile(r"hf:(?P<id>[A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+)@(?P<commit>[0-9a-f]{40})")


def eval_result_files(results: BundleResults, source_url: str) -> dict[str, bytes]:
    """Path in a repository -> contents, a file for each dataset that was read from the Hub at a commit.

    Each tells the test accuracy (%) of `initialize` before any training; `source_url` is where all results are.
    """
    entries: defaultdict[str, list[EvalResultEntry]] = defaultdict(list)
    for d in results.datasets:
        match = HUB_DATASET.fullmatch(d.origin or "")
        value = d.before_training.get("initialize")
        if match is None or value is None or d.dataset.partition("?")[0] != d.origin:
            continue  # a file that says it came from there may hold another part of it
        entries[match["id"]].append(
            EvalResultEntry(
                dataset_id=match["id"],
                dataset_revision=match["commit"],
                task_id="image-classification",
                value=round(value, 2),
                date=results.date,
                source_url=source_url,
                source_name="results.json",
                notes="test accuracy (%) after d2nwg_init.initialize, before any training, on the test images that "
                f"d2nwg-init reads of {d.dataset}",
            )
        )
    return {
        f"{OURS}{dataset.replace('/', '--')}.yaml": yaml_dump(eval_result_entries_to_yaml(found)).encode()
        for dataset, found in entries.items()
    }
