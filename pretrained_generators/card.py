"""The model card of a bundle: what it covers, what it was trained on, what was measured."""

from __future__ import annotations

import json
from pathlib import Path

from pretrained_generators.bundle import BundleConfig
from zoo_builder.checkpoint import write_text_atomically

TEMPLATE = """---
library_name: d2nwg-init
license: other
license_name: research-only
tags: [weight-generation, timm, image-classification]
---

# {name}

Generates weights of `{model}` for an image dataset, from a few hundred of its training images.
Trained for images of {size}x{size} pixels. Use it with

```python
report = d2nwg_init.initialize(model, train_loader, generator="{name}")
```

## What it was trained on

A base checkpoint pretrained by this project on {pretrained_on} (SHA-256 `{base}`), and a zoo of {entries} models
fine-tuned from it, over

{datasets}

Some of these datasets are for research only or state no licence, and so are these weights.
Never trained on: {held_out}.

## What was measured in training

{measured}

Gains are points of accuracy of a solved head over the base's, on left-out support images. `reconstruction` is what
the VAE keeps on zoo entries that it was not trained on; `sampling` is what samples have, without selection, on zoo
datasets. How it does on datasets that it never saw is in the project's docs/results.

## Copying or generalising?

{audit}

## Limits

The zoo is small. On data unlike all of the above, generated weights may be worse than the base; `initialize` compares
them with the base and with the model as it was passed, and says what it chose.
"""


def write_card(config: BundleConfig, folder: Path) -> None:
    """Write `folder`/README.md, with the verdict of `folder`/audit.json if there is one."""
    audit = folder / "audit.json"
    verdict = json.loads(audit.read_text())["verdict"]["text"] if audit.exists() else "Not audited."
    generator = config.generator
    text = TEMPLATE.format(
        name=config.name,
        model=generator.backbone.model,
        size=generator.size,
        entries=sum(t.entries for t in config.trained_on),
        base=config.base_sha256,
        pretrained_on=config.base_pretrained_on,
        datasets="\n".join(f"- {t.name}: {t.entries} entries" for t in config.trained_on),
        held_out=", ".join(config.held_out),
        audit=f"{verdict}\n\n![audit](audit.svg)" if audit.exists() else verdict,
        measured="\n".join(f"- `{k}`: {v:.3g}" for k, v in config.measured.items()),
    )
    write_text_atomically(folder / "README.md", text)
