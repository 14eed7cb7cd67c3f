"""The model card of a bundle: what it covers, what it was trained on, what was measured."""

from __future__ import annotations

import json
from pathlib import Path

from huggingface_hub import ModelCardData
from jinja2 import Environment

from pretrained_generators.bundle import BundleConfig, record_files
from pretrained_generators.card_results import METHODS, BundleResults, read_results
from zoo_builder.checkpoint import write_text_atomically
from zoo_builder.errors import BundleError

TEMPLATE = """---
{{ front }}
---

# {{ config.name }}

Generates weights of `{{ config.generator.backbone.model }}` for an image dataset, from a few hundred of its training
images. Trained for images of {{ config.generator.size }}x{{ config.generator.size }} pixels. Use it with

```python
generator = d2nwg_init.Generator.from_pretrained("ORG/NAME")  # where this bundle is, or its folder
report = d2nwg_init.initialize(model, train_loader, generator=generator)
```

{% if config.base_elsewhere %}
It does not hold the checkpoint that it generates deltas to, which may not be passed on: create `model` with that
checkpoint ({{ config.base_elsewhere.source }}; SHA-256 of its tensors `{{ config.base_elsewhere.sha256 }}`).

{% endif %}
## What it was trained on

A base checkpoint pretrained on {{ config.base_pretrained_on }} (licence: {{ config.base_licence }}; SHA-256
`{{ config.base_sha256 }}`), and a zoo of {{ entries }} models fine-tuned from it, over

| dataset | entries | licence |
|---|---|---|
{% for set in config.trained_on %}
| {{ set.name }} | {{ set.entries }} | {{ set.licence }} |
{% endfor %}

{% if config.commercial %}
All of these licences allow commercial use.
{% else %}
Some of these licences allow no commercial use, or none is known; these weights are for research only.
{% endif %}
Never trained on: {{ config.held_out | join(", ") }}.

## What was measured in training

{% for name, value in config.measured.items() %}
- `{{ name }}`: {{ "%.3g" | format(value) }}
{% endfor %}

Gains are points of accuracy of a solved head over the base's, on left-out support images. `reconstruction` is what
the VAE keeps on zoo entries that it was not trained on; `sampling` is what samples have, without selection, on zoo
datasets.

## How it does on data that it never saw

{% if results %}
Test accuracy (%) after fine-tuning steps, mean over {{ results.seeds }} seeds. Commit `{{ results.commit[:10] }}`,
{{ results.machine }}; all rows, and the command, in [results.json](results.json).

{% for set in results.datasets %}
| {{ set.dataset }} |{% for step in set.steps %} step {{ step }} |{% endfor %}

|---|{% for step in set.steps %}---|{% endfor %}

{% for method, values in set.accuracy.items() %}
| `{{ method }}` |{% for value in values %} {{ "%.1f" | format(value) }} |{% endfor %}

{% endfor %}

{% endfor %}
{% for method, words in methods.items() %}
`{{ method }}`: {{ words }}{{ "." if loop.last else "; " }}
{% endfor %}
{% for set in results.datasets if set.seconds %}
`initialize` took {{ "%.1f" | format(set.seconds) }} s on {{ set.dataset }}.
{% endfor %}
{% else %}
Not measured yet.
{% endif %}

## Copying or generalising?

{{ verdict or "Not audited." }}
{% if drawn %}

![audit](audit.svg)
{% endif %}

## Limits

The zoo is small. On data unlike all of the above, generated weights may be worse than the base; `initialize` compares
them with the base and with the model as it was passed, and says what it chose.
"""


def write_card(config: BundleConfig, folder: Path) -> BundleConfig:
    """Write `folder`/README.md, with what audit.json and results.json of the folder say if they are there, and record
    every file of the folder in its config.json.

    Raises:
        BundleError: one of these two is not what this project writes.
    """
    try:
        results, audit = read_results(folder), folder / "audit.json"
        verdict = json.loads(audit.read_text())["verdict"]["text"] if audit.exists() else None
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise BundleError(f"{folder}: audit.json or results.json cannot be read ({e!r}). Make it again.") from e
    template = Environment(trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True).from_string(TEMPLATE)
    text = template.render(
        front=_front_matter(config, results),
        config=config,
        entries=sum(t.entries for t in config.trained_on),
        results=results,
        methods={m: w for m, w in METHODS.items() if results and any(m in d.accuracy for d in results.datasets)},
        verdict=verdict,
        drawn=(folder / "audit.svg").exists(),
    )
    write_text_atomically(folder / "README.md", text)
    return record_files(config, folder)


def _front_matter(config: BundleConfig, results: BundleResults | None) -> str:
    """The YAML that the Hub reads."""
    data = ModelCardData(
        library_name="d2nwg-init",
        license="apache-2.0" if config.commercial else "other",
        license_name=None if config.commercial else "research-only",
        tags=["d2nwg-init", "weight-generation", "timm", "image-classification"],
        model_name=config.name if results else None,
        eval_results=results.eval_results() if results else None,
    )
    return data.to_yaml()
