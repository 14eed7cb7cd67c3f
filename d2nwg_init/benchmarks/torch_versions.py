"""What bundles generate for a seed under this version of torch and another, which gets an environment of its own.

`python -m d2nwg_init.benchmarks.torch_versions FILE` is what runs in each of the two.
"""

from __future__ import annotations

import subprocess
import sys
import venv
from importlib.metadata import requires, version
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from d2nwg_init.benchmarks.results import Row
from pretrained_generators.bundle import embedded_bundles, load_bundle
from zoo_builder.checkpoint import read_tensors, write_atomically
from zoo_builder.errors import D2NWGError

ROOT = Path(__file__).parents[2]
TOLERANCE = 1e-4  # relative, over versions of torch; docs/bundle-format.md states it


def generated(bundle: str) -> dict[str, torch.Tensor]:
    """The condition of fixed images of four classes, and the delta that is sampled under it, by `BUNDLE/NAME`."""
    generator = load_bundle(bundle).generator
    size = generator.config.size
    images = torch.linspace(0, 200, 16 * 3 * size * size).sin().view(16, 3, size, size)
    condition = generator.embed(images, torch.arange(16) % 4, 4)
    [delta] = generator.sample_deltas(condition, 1, seed=0)
    return {f"{bundle}/{name}": t for name, t in {"condition": condition, **delta}.items()}


def compare_versions(other: str) -> list[Row]:
    """For each embedded bundle `tensors_differing` over two processes under this version of torch, and the largest
    `relative_difference` of a tensor (the norm of the difference over the norm) under `other`, of what is generated.

    Makes a virtual environment with `other`, which takes gigabytes, and removes it.

    Raises:
        D2NWGError: this is no source checkout, or pip has no such version for this Python.
    """
    if not (ROOT / "pyproject.toml").exists():
        raise D2NWGError(f"Two environments can share a source checkout alone, and {ROOT} is none.")
    with TemporaryDirectory() as work:
        here, again = (_generated_by(sys.executable, version("torch"), Path(work) / "here") for _ in range(2))
        venv.create(Path(work) / "venv", with_pip=True)
        python = Path(work) / "venv" / "bin" / "python"
        needs = [r for r in requires("d2nwg-init") or () if "extra ==" not in r]
        _run(python, "-m", "pip", "install", "--quiet", "--no-cache-dir", f"torch=={other}", *needs)
        there = _generated_by(python, other, Path(work) / "there")
    rows = []
    for bundle in embedded_bundles(whole=True):
        names = [name for name in here if name.startswith(f"{bundle}/")]
        differing = sum(not torch.equal(here[n], again[n]) for n in names)
        most = max(((there[n] - here[n]).norm() / here[n].norm()).item() for n in names)
        rows += [
            Row(bundle, "none", f"torch {version('torch')}", 0, "tensors_differing", float(differing), "1"),
            Row(bundle, "none", f"torch {other}", 0, "relative_difference", most, "1"),
        ]
    return rows


def _generated_by(python: str | Path, wanted: str, out: Path) -> dict[str, torch.Tensor]:
    _run(python, "-m", "d2nwg_init.benchmarks.torch_versions", out)
    tensors, about = read_tensors(out)
    if about["torch"] != wanted:
        raise D2NWGError(f"{python} has torch {about['torch']}, not {wanted}.")
    return tensors


def _run(*command: str | Path) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise D2NWGError(f"{' '.join(map(str, command))} failed: {done.stderr.strip()[-1000:]}")


if __name__ == "__main__":
    deltas = {k: v for bundle in embedded_bundles(whole=True) for k, v in generated(bundle).items()}
    write_atomically(Path(sys.argv[1]), deltas, {"torch": version("torch")})
