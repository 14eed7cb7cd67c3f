"""The model card of a bundle: what it covers, what it was trained on, what was measured."""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import ModelCardData
from jinja2 import Environment

from pretrained_generators.audit import SCHEMA
from pretrained_generators.bundle import BundleConfig, record_files
from pretrained_generators.bundle_config import check_plain
from pretrained_generators.bundle_files import CARD
from pretrained_generators.card_results import METHODS, UNREADABLE, BundleResults, read_json, read_results
from zoo_builder.errors import BundleError

NO_CARD = (
    "a model card (README.md) tells results, and this bundle has none. Measure it: d2nwg-init demo --bundle FOLDER "
    "--out results.json; then write the card: d2nwg-init bundle card FOLDER --results results.json"
)
EARLIER_AUDIT = "Audited by an earlier test, which a copy of another length would have passed: nothing is claimed."
MARKUP = re.compile(
    r"""[<>&|`~#*\[\]\\]
    | (?<![^\W_])_ | _(?![^\W_])  # one between letters is no emphasis, and names of datasets have many
    | :(?=//) | (?<=\S)@(?=\S) | (?<=\bwww)\.  # of addresses, which are links without being marked
    | \A[-+=](?![\w.]) | \A\d{1,9}[.)](?!\S)  # of a list, or a line that makes the one above it a heading""",
    re.VERBOSE | re.IGNORECASE,
)

TEMPLATE = """# {{ config.name }}

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

Gains are points of accuracy over the base's, on support images, each under a head that is solved without it; the zoo's
own bodies were trained on these images. `reconstruction` is what the VAE keeps on zoo entries that it was not trained
on; `sampling` is what samples have, without selection, for entries that the generator learnt from, and
`sampling_gain_kept_back` for those that it did not.

## How it does on data that it never saw

Test accuracy (%) after fine-tuning steps, mean over {{ results.seeds }} seeds, on {{ results.machine }}; commit
{%- if results.commits | length > 1 %}s{% endif %}
{%- for commit in results.commits %} `{{ commit[:10] }}`{{ "." if loop.last else "," }}{% endfor %}

{% if results.development %}

Choices of method were made on {{ results.development | join(", ") }}: on the other datasets they may be worth less.

{% endif %}
In [results.json](results.json): how it was measured, every test accuracy and number of steps to a target, and all that
was measured of `initialize`.

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
    """Write `folder`/README.md, from what results.json and, if there is one, audit.json of the folder say, and record
    every file of the folder in its config.json. Without results there is no card, and one that was there is removed.

    Raises:
        BundleError: one of these two is not what this project writes, or the results are of other weights; and what
            `record_files` raises.
    """
    results, verdict = read_results(folder, config), _verdict(folder / "audit.json")
    if results is None:
        return record_files(config, folder, gone=(CARD,))
    template = Environment(trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, finalize=_as_text)
    text = template.from_string(TEMPLATE).render(
        config=config,
        entries=sum(t.entries for t in config.trained_on),
        results=results,
        methods={m: w for m, w in METHODS.items() if any(m in d.accuracy for d in results.datasets)},
        verdict=verdict,
        drawn=verdict not in (None, EARLIER_AUDIT) and (folder / "audit.svg").exists(),
    )
    card = f"---\n{_front_matter(config, results)}\n---\n\n{text}"
    return record_files(config, folder, {CARD: card.encode()})


def _verdict(audit: Path) -> str | None:
    if not audit.exists():
        return None
    try:
        report = read_json(audit)
        verdict = str(report["verdict"]["text"])
        if report.get("schema") != SCHEMA:
            verdict = EARLIER_AUDIT
        check_plain([verdict])
    except UNREADABLE as e:
        raise BundleError(f"{audit} cannot be read ({e!r}). Remove it, or audit again.") from e
    return verdict


def _as_text(value: object) -> str:
    """What a stranger may have written, as text that is neither HTML nor Markdown."""
    return MARKUP.sub(lambda found: f"{found[0][:-1]}&#{ord(found[0][-1])};", str(value).lstrip())


def _front_matter(config: BundleConfig, results: BundleResults) -> str:
    """The YAML that the Hub reads."""
    data = ModelCardData(
        library_name="d2nwg-init",
        license="apache-2.0" if config.commercial else "other",
        license_name=None if config.commercial else "research-only",
        tags=["d2nwg-init", "weight-generation", "timm", "image-classification"],
        model_name=config.name,
        eval_results=results.eval_results(),
    )
    return data.to_yaml()
