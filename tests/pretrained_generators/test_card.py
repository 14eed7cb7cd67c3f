"""What a stranger wrote into a bundle's results, audit or config cannot break a card, nor speak through it."""

import json
import shutil
from dataclasses import replace

import pytest
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from pretrained_generators import card_results
from pretrained_generators.audit import SCHEMA
from pretrained_generators.bundle import TrainedOn, bundle_folder, embedded_bundles, load_bundle, load_config
from pretrained_generators.card import write_card
from pretrained_generators.card_results import MAX_BYTES, keep_results
from tests.pretrained_generators.small import random_generator, results_file, save_random_bundle, write_measured_card
from zoo_builder.errors import BundleError

HOSTILE = (
    "a|b <script>alert(1)</script> <img src=x onerror=y> [x](http://evil) ![y](http://evil) `c` ~~~ ``` # *d* \\| &lt;",
    "~~~ all that follows is code",
    "# A heading",
    "--- {{ 7 * 7 }} {% raw %}",
    "_d_ __e__ f__ _g; a_b_c",
    *("- a list", "+ a list", "1. a list", "12) a list", "---", "==="),
)
MARKDOWN = MarkdownIt("commonmark").enable("table")


@pytest.fixture
def path(tmp_path):
    save_random_bundle(tmp_path / "bundle")
    return tmp_path / "bundle"


def tags(text):
    """Of everything in it that is rendered: tag, and where it leads."""
    tokens = MARKDOWN.parse(text)
    inner = [child for token in tokens for child in token.children or ()]
    return [(t.type, t.tag, t.attrs.get("href") or t.attrs.get("src")) for t in tokens + inner if t.type != "text"]


def change(file, how):
    report = json.loads(file.read_text())
    how(report)
    file.write_text(json.dumps(report))


@pytest.mark.parametrize("words", HOSTILE)
def test_words_of_a_stranger_are_text_and_nothing_else(path, tmp_path, words):
    def audited(folder, verdict):
        (folder / "audit.json").write_text(json.dumps({"schema": SCHEMA, "verdict": {"text": verdict}}))

    plain, hostile = path, tmp_path / "hostile"
    about = {"trained_on": (TrainedOn(words, 4, words),), "held_out": (words,), "base_pretrained_on": words}
    save_random_bundle(hostile, name=words, base_licence=words, **about, measured={words: 1.0})
    audited(plain, "No copying found.")
    audited(hostile, words)
    write_measured_card(plain)
    write_measured_card(hostile, dataset="other")

    def rename(report):
        report["commit"] = words
        report["machine"]["gpu"] = words
        for row in report["rows"]:
            row["dataset"] = words

    change(hostile / "results.json", rename)
    write_card(load_config(hostile), hostile)
    cards = [ModelCard.load(folder / "README.md") for folder in (hostile, plain)]
    assert tags(cards[0].text) == tags(cards[1].text)
    shown = "".join(t.content for t in MARKDOWN.parse(cards[0].text) for t in t.children or () if t.type == "text")
    assert words in shown
    assert {r.dataset_name for r in cards[0].data.eval_results} == {words}
    assert cards[0].data.model_name == words
    load_bundle(hostile)


def test_addresses_of_a_stranger_are_not_written_as_such(tmp_path):
    words = "https://evil.example WWW.evil.example someone@evil.example"
    save_random_bundle(tmp_path / "bundle", name=words, base_pretrained_on=words, held_out=(words,))
    write_measured_card(tmp_path / "bundle")
    text = ModelCard.load(tmp_path / "bundle/README.md").text
    assert text.count("evil.example") == 9
    assert not any(address in text for address in ("://", "WWW.", "@evil"))


def run_of(report, **values):
    """One of many runs, of all rows of the report, as `bench transfer` tells it."""
    methods = list(dict.fromkeys(row["method"] for row in report["rows"]))
    about = {"bundle": "tiny-random", "split": None, "shots": [None], "methods": methods, "data": [{"name": "insects"}]}
    return {k: v for k, v in report.items() if k not in ("rows", "data", "runs")} | about | values


def in_rows(**values):
    return lambda report: [row.update(values) for row in report["rows"]]


STRANGE = {
    "two lines": in_rows(dataset="a\n---\n# b"),
    "an escape sequence": in_rows(dataset="\x1b[2J"),
    "half a character": in_rows(dataset="\ud800"),
    "a name without end": in_rows(dataset="x" * 2000),
    "a machine of two lines": lambda r: r["machine"].update(gpu="a\n~~~"),
    "a step that is none": in_rows(step="<b>"),
    "a value that is none": in_rows(value="<b>"),
    "not a number": in_rows(value=float("nan")),
    "infinite": in_rows(value=float("inf")),
    "beyond all numbers": in_rows(value=10**400),
    "a seed that is a list": in_rows(seed=[[]]),
    "a method that is a list": in_rows(method=[]),
    "no date": lambda r: r.update(date="<b>"),
    "a date that is a number": lambda r: r.update(date=3),
    "data that are none": lambda r: r.update(data=[3]),
    "nothing of initialize": in_rows(method="solved"),
    "no accuracy": in_rows(metric="seconds_initialise"),
    "few images alone": in_rows(shots=1),
    "no rows": lambda r: r.update(rows=[]),
    "rows that are none": lambda r: r.update(rows={"a": 1}),
    "runs that are none": lambda r: r.update(runs=[3]),
    "no run of its rows": lambda r: r.update(runs=[]),
    "a run at a commit of two lines": lambda r: r.update(runs=[run_of(r, commit="a\n~~~")]),
}


@pytest.mark.parametrize("case", STRANGE)
def test_results_that_are_none_make_no_card(path, case):
    write_measured_card(path)
    (path / "README.md").unlink()
    change(path / "results.json", STRANGE[case])
    with pytest.raises(BundleError, match=r"results\.json cannot be read"):
        write_card(load_config(path), path)
    assert not (path / "README.md").exists()


@pytest.mark.parametrize("name", ["results.json", "audit.json"])
@pytest.mark.parametrize("text", ["[" * 100_000, " " * (MAX_BYTES + 1), "\ud800", "1" * 5000])
def test_what_no_json_reader_should_be_given_is_refused(path, name, text):
    write_measured_card(path)
    (path / name).write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(BundleError, match=rf"{name} cannot be read"):
        write_card(load_config(path), path)


def test_verdict_of_two_lines_is_refused(path):
    write_measured_card(path)
    (path / "audit.json").write_text(json.dumps({"schema": SCHEMA, "verdict": {"text": "a\n~~~"}}))
    with pytest.raises(BundleError, match=r"audit\.json cannot be read"):
        write_card(load_config(path), path)


def test_the_verdict_of_an_earlier_audit_is_not_told(path):
    write_measured_card(path)
    (path / "audit.svg").write_text("<svg/>")
    for schema in (None, 2, SCHEMA):
        (path / "audit.json").write_text(json.dumps({"schema": schema, "verdict": {"text": "No copying found."}}))
        write_card(load_config(path), path)
        card = (path / "README.md").read_text()
        assert ("No copying found" in card, "audit.svg" in card) == (schema == SCHEMA, schema == SCHEMA)


def test_a_card_tells_on_which_datasets_choices_were_made(path, tmp_path):
    file = results_file(tmp_path / "transfer.json", load_config(path))
    for split in ("development", "held_out"):
        change(file, in_rows(split=split))
        keep_results(file, load_config(path), path)
        write_card(load_config(path), path)
        assert ("Choices of method were made on insects" in (path / "README.md").read_text()) == (
            split == "development"
        )


def test_nothing_is_kept_of_a_results_file_that_makes_no_card(path, tmp_path):
    file = results_file(tmp_path / "demo.json", load_config(path))
    change(file, in_rows(shots=1))
    with pytest.raises(BundleError, match="no row of `initialize`"):
        keep_results(file, load_config(path), path)
    assert not (path / "results.json").exists()


def test_what_the_base_was_pretrained_on_is_no_data_that_it_never_saw(path, tmp_path):
    config = replace(load_config(path), base_pretrained_on="unknown, insects")
    with pytest.raises(BundleError, match="on a dataset that it was not trained on"):
        keep_results(results_file(tmp_path / "demo.json", config), config, path)


def told(**values):
    return lambda report: report.update(values)


def runs(*of):
    return lambda r: r.update(runs=[run_of(r, bundle=b, weights_sha256=w or r["weights_sha256"]) for b, w in of])


OTHERS = "0" * 64
OF_OTHERS = {
    "a bundle of the same name": (told(weights_sha256=OTHERS), "are of the weights '0000"),
    "an earlier version": (lambda r: [r.pop(k) for k in ("weights_sha256", "trained_with")], "do not tell of which"),
    "one run of many": (runs(("tiny-random", None), ("tiny-random", OTHERS)), "are of the weights '0000"),
    "no run of it": (runs(("another", None)), "no run that its rows are of"),
}


@pytest.mark.parametrize("case", OF_OTHERS)
def test_results_of_other_weights_are_not_kept(path, tmp_path, case):
    how, words = OF_OTHERS[case]
    file = results_file(tmp_path / "demo.json", load_config(path))
    change(file, how)
    with pytest.raises(BundleError, match=words):
        keep_results(file, load_config(path), path)
    assert not (path / "results.json").exists()


def test_runs_of_other_bundles_are_no_matter(path, tmp_path):
    file = results_file(tmp_path / "demo.json", load_config(path))
    change(file, runs(("another", OTHERS), ("tiny-random", None)))
    keep_results(file, load_config(path), path)
    assert json.loads((path / "results.json").read_text())["weights_sha256"] == load_config(path).weights_sha256


def test_a_card_names_the_commits_of_its_own_rows_among_those_of_many_runs(path, tmp_path):
    def many(report):
        few = next(r for r in report["rows"] if r["method"] == "initialize") | {"shots": 1}
        report["rows"] += [few, {**few, "shots": None, "dataset": "stripes"}]  # which the bundle was trained on
        report["runs"] = [
            run_of(report, commit="1" * 40, date="2026-01-01", methods=["solved", "generated_mean"]),
            run_of(report, commit="2" * 40, date="2026-01-03", methods=["initialize"], commits=["2" * 40, "3" * 40]),
            run_of(report, commit="4" * 40, date="2026-01-02", methods=["initialize"], shots=[1]),
            run_of(report, commit="5" * 40, date="2026-01-04", data=[{"name": "stripes"}]),
            run_of(report, commit="6" * 40, date="2026-01-05", bundle="another"),
        ]
        report |= {"commit": "6" * 40, "date": "2026-01-05", "command": "of another bundle"}

    file = results_file(tmp_path / "transfer.json", load_config(path))
    change(file, many)
    keep_results(file, load_config(path), path)
    write_card(load_config(path), path)
    kept = json.loads((path / "results.json").read_text())
    assert [run["commit"][0] for run in kept["runs"]] == ["1", "2", "4"]
    assert (kept["commit"], kept["date"]) == ("2" * 40, "2026-01-03")
    assert kept["command"] != "of another bundle"
    assert "; commits `1111111111`, `2222222222`, `3333333333`." in (path / "README.md").read_text()
    change(path / "results.json", lambda r: r.pop("runs"))  # as earlier versions kept it
    write_card(load_config(path), path)
    assert "; commit `2222222222`." in (path / "README.md").read_text()


def test_a_bundle_without_its_base_takes_the_results_of_its_training_alone(tmp_path):
    generator = random_generator()
    generator.base.half().float()
    whole = save_random_bundle(tmp_path / "whole", generator=generator, trained_with="1" * 64)
    file = results_file(tmp_path / "demo.json", whole)
    for training in ("1" * 64, "2" * 64):
        about = {"generator": generator, "base_source": "here", "trained_with": training}
        without = save_random_bundle(tmp_path / training, **about)
        if training == whole.trained_with:
            keep_results(file, without, tmp_path / training)
            assert write_card(without, tmp_path / training).has_card
        else:
            with pytest.raises(BundleError, match="are of the weights"):
                keep_results(file, without, tmp_path / training)


def test_results_of_other_weights_that_were_put_there_make_no_card(path):
    write_measured_card(path)
    change(path / "results.json", told(weights_sha256=OTHERS))
    with pytest.raises(BundleError, match=r"results\.json are of the weights '0000"):
        write_card(load_config(path), path)


def test_many_datasets_are_read_in_one_pass(path):
    write_measured_card(path)
    report, asked = json.loads((path / "results.json").read_text()), []

    class Row(dict):
        def __getitem__(self, key):
            asked.append(key)
            return super().__getitem__(key)

    report["rows"] = [Row(row, dataset=f"set {i}") for i in range(200) for row in report["rows"][:1]]
    assert len(card_results._parse(report).datasets) == 200
    assert len(asked) < 20 * 200


@pytest.mark.parametrize("name", embedded_bundles())
def test_cards_of_embedded_bundles_are_what_their_results_say(name, tmp_path):
    copy = shutil.copytree(bundle_folder(name), tmp_path / "copy")
    config = load_config(copy)
    assert write_card(config, copy) == config
