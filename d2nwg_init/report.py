"""What `initialize` did, and why: printed as a table, kept as JSON, shown as a page; and the way back."""

from __future__ import annotations

import dataclasses
import io
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from d2nwg_init.refine import Refinement
from d2nwg_init.report_page import render_page
from d2nwg_init.saved_model import save_model
from d2nwg_init.select import OWN
from d2nwg_init.undo import Undo
from pretrained_generators.nearest_datasets import FAR, Neighbour
from zoo_builder.errors import D2NWGError, ModelError
from zoo_builder.files import write_text_atomically

SCHEMA = 4  # of the JSON
SHOWN_NEIGHBOURS = 3


@dataclass(frozen=True)
class CandidateScore:
    name: str
    kind: str  # "as_passed", "own_body", "base", "probe" or "generated"
    loss: float  # mean cross-entropy on left-out images, in nats; NaN for a candidate that was discarded
    loss_error: float  # its standard error
    accuracy: float  # on left-out images, in percent

    @property
    def discarded(self) -> bool:
        """It gave predictions that are not finite."""
        return not math.isfinite(self.loss)


@dataclass(frozen=True)
class InitReport:
    chosen: str  # name of the candidate whose weights the model now has
    refinement: Refinement | None  # of the chosen weights; None: there was none, see `refining_steps`
    learning_rate: float | None  # to fine-tune with, AdamW's at its peak; None: none was measured
    candidates: tuple[CandidateScore, ...]
    bundle: str | None  # the generator's bundle; None: nothing was generated, see `reason`
    bundle_revision: str | None  # a commit, of one from the Hub
    bundle_sha256: str | None  # of its weights
    neighbours: tuple[Neighbour, ...]  # the bundle's datasets, the nearest to the images first; none: it is not known
    reason: str  # why this bundle, or why none
    head: str  # as it was asked for
    notes: tuple[str, ...]  # what else there is to know, a sentence each
    images_read: int
    image_shape: tuple[int, ...]  # channels, height, width
    num_classes: int
    classes_seen: int
    seconds: dict[str, float]  # by stage
    peak_bytes: dict[str, int]  # by how much each stage raised the most memory that the process ever held
    seed: int
    threads: int  # of the CPU that torch used; with another number sums are rounded otherwise
    versions: dict[str, str]
    undo: Undo | None = field(default=None, repr=False, compare=False)  # holds the model; no part of the JSON

    @property
    def from_bundle(self) -> bool:
        """The model's body is now the bundle's."""
        return any(c.name == self.chosen and c.kind not in OWN for c in self.candidates)

    def revert(self) -> None:
        """Give the model the state back that it was passed with. The training since then is lost with it.

        Raises:
            ModelError: this report has let go of the model, or the model has other parameters by now.
        """
        undo = self._with_model()
        now = undo.model.state_dict()
        for name in now.keys() | undo.state.keys():
            before, after = (getattr(state.get(name), "shape", None) for state in (undo.state, now))
            if before != after:
                raise ModelError(f"The model is another than was initialised: {name} was {before} and is {after}.")
        undo()

    def save(self, folder: str | Path) -> None:
        """Write the model, as it is now, and then this report: see `save_model`. timm loads it, head included, by
        create_model("local-dir:FOLDER", pretrained=True).

        Raises:
            ModelError: this report has let go of the model, or timm cannot describe it or would make another of
                the description, or its state holds more than tensors.
        """
        folder = Path(folder)
        save_model(self._with_model().model, folder, self.image_shape)
        write_text_atomically(folder / "report.json", self.to_json())
        write_text_atomically(folder / "report.html", self.to_html())

    def _with_model(self) -> Undo:
        if self.undo is None:
            raise ModelError("This report has let go of its model: only that of initialize() can revert and save.")
        return self.undo

    def to_json(self) -> str:
        """All fields and the schema's number; what is NaN here is null there, for JSON has no NaN."""
        values = dataclasses.asdict(dataclasses.replace(self, undo=None))
        del values["undo"]
        for score in values["candidates"]:
            score |= {k: None for k, v in score.items() if isinstance(v, float) and not math.isfinite(v)}
        return json.dumps({"schema": SCHEMA, **values}, indent=1)

    @classmethod
    def from_json(cls, text: str, undo: Undo | None = None) -> InitReport:
        """The report that `to_json` wrote.

        Raises:
            D2NWGError: another schema.
        """
        values = json.loads(text)
        if values.pop("schema", None) != SCHEMA:
            raise D2NWGError(f"This version reads reports of schema {SCHEMA} alone. Upgrade d2nwg-init.")
        scores: list[dict[str, Any]] = [
            {k: math.nan if v is None else v for k, v in score.items()} for score in values["candidates"]
        ]
        values["candidates"] = tuple(CandidateScore(**score) for score in scores)
        values["neighbours"] = tuple(Neighbour(**n) for n in values["neighbours"])
        values["refinement"] = values["refinement"] and Refinement(**values["refinement"])
        return cls(**values | {k: tuple(values[k]) for k in ("notes", "image_shape")}, undo=undo)

    def to_html(self) -> str:
        """One page, to be opened in a browser."""
        return render_page(self)

    def refined(self) -> str:
        """What refining did, a sentence; empty without it."""
        if self.refinement is None:
            return ""
        r = self.refinement
        outcome = f"{r.before:.3f} -> {r.after:.3f}" if r.kept else "did not fall, not kept"
        return f"{r.steps} refining steps, left-out loss of the images trained on {outcome}. "

    def nearness(self) -> str:
        """How far the images are from the bundle's datasets, a sentence or two; empty where that is not known."""
        if not self.neighbours:
            return ""
        distance = self.neighbours[0].distance
        shown = ", ".join(f"{n.name} {n.distance:.2f}" for n in self.neighbours[:SHOWN_NEIGHBOURS])
        far = f"The images are far from everything in the zoo: {distance:.2f} is above {FAR}. "
        near = f"Nearest datasets of the zoo: {shown} (1: as near as they are to one another). "
        return near + (far if distance > FAR else "")

    def advice(self) -> str:
        """How to fine-tune, a sentence; empty where nothing was measured."""
        if self.learning_rate is None:
            return ""
        return (
            f"Fine-tune at a learning rate of {self.learning_rate:g} (AdamW's, at its peak), or at a third of the rate "
            "that you use for a fresh head. "
        )

    def stage(self, name: str) -> str:
        """What a stage took, in a few words."""
        grown = f" and {self.peak_bytes[name] / 2**20:.0f} MiB" if self.peak_bytes.get(name) else ""
        return f"{name} {self.seconds[name]:.1f} s{grown}"

    def __rich__(self) -> Table:
        title = f"d2nwg-init: {self.chosen} (from {self.bundle if self.from_bundle else 'the model itself'})"
        stages = ", ".join(self.stage(name) for name in self.seconds)
        caption = (
            f"{self.images_read} images read, {self.classes_seen} of {self.num_classes} classes seen. "
            f"{self.refined()}{'. '.join((self.reason, *self.notes))}. {self.nearness()}{self.advice()}"
            f"{stages}; seed {self.seed}, CPU threads {self.threads}"
        )
        table = Table(title=escape(title), caption=escape(caption), caption_justify="left")
        table.add_column("candidate", overflow="fold")
        for heading in ("left-out loss", "+-", "left-out accuracy %", "chosen"):
            table.add_column(heading, justify="right")
        for c in self.candidates:
            mark = "<-" if c.name == self.chosen else ""
            figures = ("discarded", "", "")
            if not c.discarded:
                figures = (f"{c.loss:.3f}", f"{c.loss_error:.3f}", f"{c.accuracy:.1f}")
            table.add_row(escape(c.name), *figures, mark, style="bold" if mark else None)
        return table

    def __str__(self) -> str:
        """Plain text, in ASCII but for the user's own names, whatever it is printed on."""
        out = io.StringIO()
        console = Console(
            file=out, width=100, force_jupyter=False, force_terminal=False, color_system=None, emoji=False
        )
        table = self.__rich__()
        table.box = box.ASCII
        console.print(table)
        return out.getvalue().rstrip()
