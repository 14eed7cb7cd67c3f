"""d2nwg-init init: weights for a model and a dataset, as a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from d2nwg_init.cli.outputs import out_weights


def init(
    model: Annotated[str, typer.Argument(help="timm model name, or torchvision:NAME.")],
    data: Annotated[Path, typer.Option(help="Folder with one folder of images a class, or an .npz file.")],
    out: Annotated[
        Path,
        typer.Option(
            callback=out_weights,
            help="Folder to write for timm's local-dir:, with the report; or one file, NAME.safetensors.",
        ),
    ],
    bundle: Annotated[
        str,
        typer.Option(
            help="Embedded bundle name, a folder, or ORG/NAME of the Hub, pulled before; auto takes one that fits."
        ),
    ] = "auto",
    weights: Annotated[
        Path | None, typer.Option(help="Pretrained weights of the model (safetensors); its classifier is left out.")
    ] = None,
    size: Annotated[int, typer.Option(min=16, help="Side that images are resized to, in pixels.")] = 64,
    candidates: Annotated[int, typer.Option(min=1, help="Bodies to generate.")] = 8,
    images: Annotated[int, typer.Option(min=2, help="Training images to read, at most.")] = 1024,
    seed: Annotated[int, typer.Option(help="Seed of the model, the images drawn and what is generated.")] = 0,
) -> None:
    """Generate weights for a dataset.

    Load them with timm.create_model("local-dir:OUT", pretrained=True); or timm.create_model(MODEL, num_classes=K,
    checkpoint_path=...) with OUT/model.safetensors, or with the one file. A model of torchvision takes either by
    load_state_dict(safetensors.torch.load_file(...)).
    """
    import torch
    from rich.console import Console

    from d2nwg_init.arguments import SEEDS, whole_number
    from d2nwg_init.benchmarks.fine_tuning import train_loader
    from d2nwg_init.hook import initialize
    from zoo_builder.backbones import create_backbone
    from zoo_builder.checkpoint import write_atomically
    from zoo_builder.datasets import load_dataset
    from zoo_builder.datasets.read_images import stored_size
    from zoo_builder.errors import ModelError

    whole_number("seed", seed, *SEEDS)
    dataset = load_dataset(data, size=stored_size(size))
    torch.manual_seed(seed)
    network = create_backbone(model, weights, dataset.num_classes)
    config = getattr(network, "pretrained_cfg", None) or {}
    built_for = config["input_size"][-1] if config.get("fixed_input_size") else getattr(network, "image_size", size)
    if built_for != size:
        raise ModelError(f"{model} takes images of {built_for} pixels alone. Give --size {built_for}.")
    loader = train_loader(dataset, network, size=size, batch_size=128, seed=seed)
    report = initialize(network, loader, generator=bundle, num_candidates=candidates, num_support=images, seed=seed)
    if out.suffix == ".safetensors":
        write_atomically(out, network.state_dict(), {"report": report.to_json()})
    else:
        report.save(out)
    Console().print(report)
    typer.echo(f"Weights written to {out}. The {dataset.num_classes} classes: {', '.join(dataset.class_names[:10])}")
