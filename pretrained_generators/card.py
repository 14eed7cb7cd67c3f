"""The model card of a bundle: what it covers, what it was trained on, what was measured."""

from __future__ import annotations

import json
from pathlib import Path

from jinja2 import Environment

from pretrained_generators.bundle import BundleConfig, record_files
from zoo_builder.checkpoint import write_text_atomically

TEMPLATE = """---
library_name: d2nwg-init
{% if config.commercial %}
license: apache-2.0
{% else %}
license: other
license_name: research-only
{% endif %}
tags: [d2nwg-init, weight-generation, timm, image-classification]
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
datasets. How it does on datasets that it never saw is in the project's docs/results.

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
    """Write `folder`/README.md, with the verdict of `folder`/audit.json if there is one, and record every file of the
    folder in its config.json."""
    audit = folder / "audit.json"
    template = Environment(trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True).from_string(TEMPLATE)
    text = template.render(
        config=config,
        entries=sum(t.entries for t in config.trained_on),
        verdict=json.loads(audit.read_text())["verdict"]["text"] if audit.exists() else None,
        drawn=(folder / "audit.svg").exists(),
    )
    write_text_atomically(folder / "README.md", text)
    return record_files(config, folder)
