import dataclasses
import io
import json
import re

import pytest
import torch
from rich.console import Console

from d2nwg_init import CandidateScore, InitReport, initialize
from d2nwg_init.refine import Refinement
from pretrained_generators.nearest_datasets import Neighbour

NAN = float("nan")


def report(**changes):
    scores = (
        CandidateScore("as_passed", "as_passed", 1.2345, 0.05, 33.3),
        CandidateScore("generated_0", "generated", 0.4321, 0.02, 91.7),
    )
    made = InitReport(
        chosen="generated_0",
        refinement=Refinement(15, 0.4321, 0.2345, True),
        learning_rate=1e-3,
        candidates=scores,
        bundle="some-bundle",
        bundle_revision=None,
        bundle_sha256="ab" * 32,
        neighbours=(Neighbour("birds", 0.5), Neighbour("bees", 1.5), Neighbour("cats", 2.0), Neighbour("dogs", 2.5)),
        reason="its parameters match this model's",
        head="auto",
        notes=("generated_7 was discarded",),
        images_read=512,
        image_shape=(3, 64, 64),
        num_classes=10,
        classes_seen=9,
        seconds={"reading": 1.25, "bundle": 0.5},
        peak_bytes={"reading": 3 << 20, "bundle": 0},
        seed=3,
        threads=2,
        versions={"torch": "2"},
    )
    return dataclasses.replace(made, **changes)


def strict(text):
    """As every other JSON reader than Python's: NaN is no JSON."""

    def refuse(constant):
        raise ValueError(constant)

    return json.loads(text, parse_constant=refuse)


def test_json_has_every_field_and_the_schema():
    values = strict(report().to_json())
    assert values.pop("schema") == 4
    expected = json.loads(json.dumps(dataclasses.asdict(report())))
    del expected["undo"]  # it holds the model
    assert values == expected


def test_json_of_a_real_run_has_the_documented_keys(model, loader, bundle):
    values = strict(initialize(model, loader, generator=bundle, num_candidates=1).to_json())
    assert values.keys() == {"schema"} | {f.name for f in dataclasses.fields(InitReport)} - {"undo"}
    assert values["threads"] == torch.get_num_threads()
    names = [c["name"] for c in values["candidates"]]
    assert names == ["as_passed", "own_body_as_is", "own_body", "base", "generated_0"]
    for candidate in values["candidates"]:
        assert candidate.keys() == {"name", "kind", "loss", "loss_error", "accuracy"}
        assert 0 <= candidate["accuracy"] <= 100
        assert candidate["loss"] > 0
    assert values["versions"].keys() == {"d2nwg-init", "torch", "timm"}


def test_json_of_a_discarded_candidate_is_json():
    broken = CandidateScore("generated_1", "generated", NAN, NAN, 0.0)
    values = strict(report(candidates=(*report().candidates, broken)).to_json())
    assert values["candidates"][2]["loss"] is None
    assert values["candidates"][1]["loss"] == 0.4321


def test_print_shows_what_was_tried_and_marks_the_chosen():
    text = str(report())
    table = [line for line in text.splitlines() if line.startswith("|")]
    (chosen,) = (line for line in table if "<-" in line)
    for words in ("generated_0", "0.432", "0.020", "91.7"):
        assert words in chosen
    for words in (
        "1.234",
        "33.3",
        "generated_7 was",
        "512 images",
        "9 of 10 classes",
        "its parameters match",
        "seed 3, CPU threads 2",
        "some-bundle",
        "at a learning rate of 0.001",
        "birds 0.50, bees 1.50, cats 2.00 (1:",
    ):
        assert words in " ".join(text.split())
    assert "far from" not in text


def test_the_report_says_with_a_number_that_images_are_far_from_the_zoo():
    text = " ".join(str(report(neighbours=(Neighbour("birds", 2.5),))).split())
    assert "far from everything in the zoo: 2.50 is above 1.7" in text
    assert "zoo" not in str(report(neighbours=()))


def test_json_comes_back_as_the_same_report():
    assert InitReport.from_json(report().to_json()) == report()


@pytest.mark.parametrize("name", ["[red]x", "[/]", "[link=http://x]y[/link]", "[bold]", "\\[red]z"])
def test_markup_in_names_is_printed_as_it_is(name):
    scores = (CandidateScore(name, "generated", 1.0, 0.1, 50.0),)
    text = str(
        report(
            neighbours=(Neighbour(name, 1.0),),
            bundle=name,
            reason=f"because of {name}!",
            chosen=name,
            candidates=scores,
        )
    )
    plain = " ".join(text.split())
    assert f"from {name})" in plain
    assert f"because of {name}!" in plain
    assert f"zoo: {name} 1.00" in plain
    assert f"| {name} " in plain


def test_rich_and_str_print_the_same_words():
    console = Console(file=io.StringIO(), width=100)
    console.print(report())
    rich, plain = (re.findall(r"[\w.%]+", text) for text in (console.file.getvalue(), str(report())))
    assert rich == plain


@pytest.mark.parametrize("environment", ["a notebook", "FORCE_COLOR", "TTY_COMPATIBLE"])
def test_str_is_plain_ascii_wherever_it_is_printed(environment, monkeypatch, capsys):
    expected = str(report())
    monkeypatch.setenv(environment, "1")
    monkeypatch.setattr("rich.console._is_jupyter", lambda: environment == "a notebook")
    text = str(report(candidates=(*report().candidates, CandidateScore(":bee:" * 30, "generated", 1.0, 0.1, 50.0))))
    assert text.isascii()
    assert text.replace("\n", "").isprintable()
    assert str(report()) == expected
    assert "generated_0" in expected
    assert capsys.readouterr() == ("", "")


def test_without_a_bundle_the_report_says_where_the_weights_are_from():
    assert "from the model itself" in str(report(bundle=None, bundle_sha256=None, chosen="own_body"))
