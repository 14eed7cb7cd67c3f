"""Rows, comparisons and the page."""

import json
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from d2nwg_init.benchmarks.transfer import tables
from d2nwg_init.benchmarks.transfer.cells import Cell, Measured, curve_images
from d2nwg_init.benchmarks.transfer.document import draw, failures
from d2nwg_init.benchmarks.transfer.page import losses, points, write_page
from d2nwg_init.benchmarks.transfer.plan import Choices
from d2nwg_init.benchmarks.transfer.report import check_seeds, compare, merge_report, rows_of, write_report
from zoo_builder.errors import D2NWGError, RecipeError

DATASETS = ("kmnist", "dtd_part")
HEADER = {
    "schema": 1, "name": "transfer", "command": "d2nwg-init bench <transfer>", "commit": "c", "date": "d",
    "machine": {"processor": "p", "cores": 2, "gpu": None}, "versions": {},
    "data": [{"name": n, "origin": "o", "sha256": "0"} for n in DATASETS],
}  # fmt: skip
START = {"scratch": 10, "pretrained": 20, "solved": 60, "universal": 70, "oracle": 80}


def correct(share, seed, images=400):
    """The same images are easy for all."""
    ease = np.random.default_rng(0).random(images) + np.random.default_rng(seed + 1).normal(0, 0.05, images)
    return ease < share / 100


def cell_of(method, dataset, seed):
    return Cell(dataset, None, seed, method, "short", learning_rate=1e-3)


def measured(start, seed):
    points = {
        "step/0": start,
        "step/10": start + 2,
        "step/30": start + 5,
        "step/100": start + 15,
        "epoch/1": start + 10,
    }
    curve = [(step, 0.1 * step, start + min(step, 50) / 5) for step in range(0, 101, 5)]
    seconds = {"initialise": 1.0, **{at: 0.1 * int(at.partition("/")[2]) for at in points if at != "step/0"}}
    found = {at: correct(v, seed) for at, v in points.items()}
    seen = curve_images(400)
    found["epoch/1"][seen] = np.arange(len(seen)) < len(seen) * points["epoch/1"] / 100  # as the curve sees it
    return Measured(found, curve, seconds, {"peak_bytes": 1e9})


@pytest.fixture(scope="module")
def found():
    cells = {cell_of(m, d, s): measured(v, s) for m, v in START.items() for d in DATASETS for s in (0, 1)}
    for shots, head in ((1, "solved"), (1, "nearest_class_mean"), (1, "universal")):
        for d in DATASETS:
            value = {"solved": 30, "nearest_class_mean": 40, "universal": 35}[head]
            cells[Cell(d, shots, 0, head)] = Measured({"step/0": correct(value, 0)}, [], {"initialise": 1.0})
    for d in DATASETS:
        cells[Cell(d, None, 0, "universal", condition="shuffled")] = Measured({"step/0": correct(65, 0)})
    return cells


CHOICES = Choices(closed_form={"1": "nearest_class_mean"})


def reported(found, subject="base", file=None, split="development"):
    rows, pairs = (f(found, subject, split, CHOICES) for f in (rows_of, compare))
    data = [d for d in HEADER["data"] if d["name"] in {c.dataset for c in found}]
    return merge_report(file, HEADER | {"data": data, "commits": ["0ld", "n3w"]}, rows, pairs)


@pytest.fixture(scope="module")
def report(found, tmp_path_factory):
    return reported(found, file=tmp_path_factory.mktemp("none") / "absent.json")


def row(report, **keys):
    (one,) = [r for r in report["rows"] if all(r.get(k) == v for k, v in keys.items())]
    return one


def test_every_measured_value_is_a_row(found, report):
    accuracies = [r for r in report["rows"] if r["metric"] == "test_accuracy"]
    assert len(accuracies) == sum(len(m.correct) for m in found.values()) + len(DATASETS)  # best_closed_form too
    about = {"method": "solved", "dataset": "kmnist", "seed": 1, "shots": None}
    one = row(report, **about, metric="test_accuracy", step=30)
    assert one["value"] == pytest.approx(100 * correct(65, 1).mean(), abs=1e-3)
    assert (one["bundle"], one["split"], one["condition"], one["epoch"], one["unit"]) == (
        "base", "development", "right", None, "%",
    )  # fmt: skip
    assert row(report, **about, metric="test_accuracy", epoch=1)["step"] is None
    assert row(report, **about, metric="seconds_initialise")["value"] == 1.0
    assert row(report, **about, metric="peak_bytes")["value"] == 1e9


def test_steps_to_target_are_those_of_the_curve(report):
    """pretrained is at 30 % after its epoch, solved at 70 %: at 50 steps all have gained 10 points."""
    steps = {
        (r["method"], r["target"]): r["value"]
        for r in report["rows"]
        if r["metric"] == "steps_to_target" and (r["dataset"], r["seed"]) == ("kmnist", 0)
    }
    assert steps["pretrained", "pretrained_epoch1"] == 50
    assert steps["solved", "pretrained_epoch1"] == 0
    assert steps["universal", "solved_epoch1"] == 0
    assert steps["scratch", "pretrained_epoch1"] is None


def test_the_best_closed_form_is_the_chosen_head(report):
    about = {"dataset": "dtd_part", "metric": "test_accuracy", "shots": 1}
    best, head = (row(report, method=m, **about) for m in ("best_closed_form", "nearest_class_mean"))
    assert best["value"] == head["value"]


def test_comparisons_are_paired_and_called(report):
    about = {"method": "universal", "rival": "solved", "at": "step/0", "shots": None, "condition": "right"}
    pairs = [c for c in report["comparisons"] if all(c[k] == v for k, v in about.items())]
    assert [c["dataset"] for c in pairs] == list(DATASETS)
    for c in pairs:
        assert c["low"] <= c["difference"] <= c["high"]
        assert c["difference"] == pytest.approx(10, abs=4)
        assert (c["verdict"], c["seeds"]) == ("win", 2)
    assert {c["verdict"] for c in report["comparisons"] if (c["method"], c["rival"]) == ("scratch", "solved")} == {
        "loss"
    }
    shuffled = [c for c in report["comparisons"] if c["condition"] == "shuffled"]
    assert {c["rival"] for c in shuffled} == {"solved", "pretrained"}
    assert {c["seeds"] for c in shuffled} == {1}  # the seeds that both have
    few = {(c["method"], c["rival"]) for c in report["comparisons"] if c["shots"] == 1}
    assert ("universal", "best_closed_form") in few


def test_another_subject_or_split_joins_and_the_same_methods_are_replaced(found, report, tmp_path):
    file = tmp_path / "transfer.json"
    write_report(file, report)
    assert json.loads(file.read_text()) == report
    write_report(file, reported(found, "other", file))
    write_report(file, reported(found, "base", file, "held_out"))
    write_report(file, reported(found, "base", file))
    merged = json.loads(file.read_text())
    runs = [(r["bundle"], r["split"]) for r in merged["runs"]]
    assert runs == [("other", "development"), ("base", "held_out"), ("base", "development")]
    counts = {key: sum((r["bundle"], r["split"]) == key for r in merged["rows"]) for key in runs}
    assert set(counts.values()) == {len(report["rows"])}


def test_rows_of_some_methods_join_those_of_the_others(found, report, tmp_path):
    """A comparison stays while both of its sides are what they were, and goes where one is not."""
    file = tmp_path / "transfer.json"
    write_report(file, report)
    some = {c: m for c, m in found.items() if c.method in ("universal", "solved")}
    again = reported(some, "base", file)
    others = ["scratch", "pretrained", "oracle", "nearest_class_mean", "best_closed_form"]
    assert [r["methods"] for r in again["runs"]] == [others, ["solved", "universal"]]
    assert all(c in again["comparisons"] for c in report["comparisons"])
    assert len(again["comparisons"]) == len(report["comparisons"])
    accuracies = [[r for r in of["rows"] if r["metric"] == "test_accuracy"] for of in (again, report)]
    assert sorted(map(str, accuracies[0])) == sorted(map(str, accuracies[1]))
    better = {c: measured(90, c.seed) for c in some if c.method == "solved" and c.shots is None}
    write_report(file, reported(better, "base", file))
    left = json.loads(file.read_text())["comparisons"]
    assert {(c["method"], c["shots"]) for c in left if c["rival"] == "solved"} == {
        ("nearest_class_mean", 1), ("best_closed_form", 1), ("universal", 1),
    }  # fmt: skip


def test_some_datasets_join_the_others(found, report, tmp_path):
    file = tmp_path / "transfer.json"
    write_report(file, report)

    def rows_on(name, of):
        return [r for r in of["rows"] if r["dataset"] == name]

    part = {c: m for c, m in found.items() if c.dataset == "kmnist" and c.shots is None}
    again = reported({c: measured(50, c.seed) if c.method == "solved" else m for c, m in part.items()}, "base", file)
    write_report(file, again)
    assert rows_on("dtd_part", again) == rows_on("dtd_part", report)
    assert len(rows_on("kmnist", again)) == len(rows_on("kmnist", report))
    changed = [r for r in rows_on("kmnist", again) if r not in report["rows"]]
    assert {r["method"] for r in changed if r["metric"] == "test_accuracy"} == {"solved"}
    assert len(again["comparisons"]) == len(report["comparisons"])
    assert [([d["name"] for d in r["data"]], r["shots"]) for r in again["runs"]] == [
        (["dtd_part"], [None, 1]), (["kmnist"], [1]), (["kmnist"], [None]),
    ]  # fmt: skip
    (of_base,) = tables.parts(again)
    assert of_base.datasets == ["dtd_part", "kmnist"]
    assert tables.measured_by(again["runs"][2], again["runs"]).endswith(" on kmnist")
    assert tables.measured_by(report["runs"][0], report["runs"]) == "all train images, 1 a class"


def test_what_a_run_did_not_measure_stays_while_what_it_did_is_as_it_was(found, report, tmp_path):
    """Targets of methods that it left out, a training, and the condition of a dataset that it left out."""
    file = tmp_path / "transfer.json"
    write_report(file, {**report, "runs": [{**r, "commits": ["c0ffee"]} for r in report["runs"]]})
    some = {c: m for c, m in found.items() if c.method == "universal" and c.shots is None and c.condition == "right"}
    for part in (
        some,
        {c: replace(m, correct={"step/0": m.correct["step/0"]}, curve=[]) for c, m in some.items()},
        {c: m for c, m in some.items() if c.dataset == "kmnist"},
    ):
        again = reported(part, file=file)
        assert sorted(map(str, again["rows"])) == sorted(map(str, report["rows"]))
        assert again["runs"][-1]["commits"] == ["0ld", "c0ffee", "n3w"]
        assert sorted(map(str, again["comparisons"])) == sorted(map(str, report["comparisons"]))
    again = reported({c: measured(50, c.seed) for c in some}, file=file)
    gone = [r for r in report["rows"] if r["method"] == "universal" and r["metric"] == "steps_to_target"]
    assert not any(r in again["rows"] for r in gone)
    better = {c: measured(50, c.seed) for c in found if c.method == "pretrained"}
    again = reported(better, file=file)
    stale = {r["method"] for r in again["rows"] if r.get("target") == "pretrained_epoch1"}
    assert stale == {"pretrained"}  # whose epoch is another now


def test_verdicts_are_over_all_datasets_of_a_comparison_whenever_they_were_measured(found, tmp_path):
    """At a p of 0.03 the one dataset is a win, and of two that tell nothing none is."""
    file = tmp_path / "transfer.json"
    rows = rows_of(found, "base", "development", CHOICES)
    one = next(c for c in compare(found, "base", "development", CHOICES) if c.dataset == "kmnist")
    for dataset in DATASETS:
        alone = replace(one, dataset=dataset, p_win=0.03, p_loss=0.97, verdict="win")
        merged = merge_report(file, HEADER, [r for r in rows if r.dataset == dataset], [alone])
        write_report(file, merged)
    assert [(c["dataset"], c["verdict"]) for c in merged["comparisons"]] == [("kmnist", "tie"), ("dtd_part", "tie")]


def test_fewer_seeds_than_there_are_do_not_replace_them(found, report, tmp_path):
    file = tmp_path / "transfer.json"
    check_seeds(file, "base", "development", found)
    write_report(file, report)
    fewer = [c for c in found if c.seed == 0]
    with pytest.raises(RecipeError, match=r"holds seed 1 of 'scratch' on 'kmnist'.* run of 1 "):
        check_seeds(file, "base", "development", fewer)
    check_seeds(file, "base", "development", [c for c in fewer if c.shots == 1])  # which has but this one
    check_seeds(file, "base", "held_out", fewer)
    check_seeds(file, "base", "development", [*found, *(replace(c, seed=2) for c in fewer)])


@pytest.mark.parametrize("text", ['{"rows": [', "[]", "{}"])
def test_a_damaged_file_is_told_of_before_anything_is_measured(text, found, tmp_path):
    file = tmp_path / "transfer.json"
    file.write_text(text)
    with pytest.raises(D2NWGError, match=r"transfer\.json does not hold results.*Restore it, or remove it"):
        check_seeds(file, "base", "development", found)


def test_rows_of_another_bundle_of_the_same_name_go(found, report, tmp_path):
    file = tmp_path / "transfer.json"
    write_report(file, {**report, "runs": [{**r, "weights_sha256": "0"} for r in report["runs"]]})
    some = {c: m for c, m in found.items() if c.method == "solved" and c.shots is None}
    part = reported({c: m for c, m in some.items() if c.dataset == "kmnist"}, "base", file)
    assert {(r["method"], r["dataset"]) for r in part["rows"] if r["shots"] is None} == {("solved", "kmnist")}
    again = reported(some, "base", file)
    assert {r["method"] for r in again["rows"] if r["shots"] is None} == {"solved"}
    assert len([r for r in again["rows"] if r["shots"] == 1]) == len([r for r in report["rows"] if r["shots"] == 1])
    assert [(r["shots"], r["methods"] == ["solved"]) for r in again["runs"]] == [([1], False), ([None], True)]


def test_other_numbers_of_shots_join_those_of_the_same_subject_and_split(found, report, tmp_path):
    file = tmp_path / "transfer.json"
    write_report(file, report)
    write_report(file, reported({c: m for c, m in found.items() if c.shots == 1}, "base", file))
    merged = json.loads(file.read_text())
    assert [(r["shots"], r["methods"]) for r in merged["runs"]] == [
        ([None], ["scratch", "pretrained", "solved", "universal", "oracle"]),
        ([1], ["solved", "nearest_class_mean", "universal", "best_closed_form"]),
    ]
    for part in ("rows", "comparisons"):
        assert len(merged[part]) == len(report[part])
    assert len(tables.parts(merged)) == 1
    write_report(file, reported(found, "base", file))
    assert len(json.loads(file.read_text())["runs"]) == 1


def test_means_are_over_datasets_and_seeds(report):
    (part,) = tables.parts(report)
    start = tables.means(tables.selected(part.rows, "test_accuracy", step=0), part.datasets)
    assert list(start) == ["scratch", "pretrained", "solved", "universal", "universal, shuffled", "oracle"]
    assert start["solved"] == pytest.approx(100 * np.mean([correct(60, s).mean() for s in (0, 1)]), abs=1e-3)
    half = [r for r in part.rows if (r["method"], r["dataset"]) != ("solved", "kmnist")]
    assert "solved" not in tables.means(tables.selected(half, "test_accuracy", step=0), part.datasets)


def test_a_run_tells_the_commits_of_its_cells():
    assert tables.commits({"commit": "c", "commits": ["a", "b"]}) == ["a", "b"]
    assert tables.commits({"commit": "c"}) == ["c"]  # written before cells told


def test_targets_never_reached_count_as_later_than_all(report):
    (part,) = tables.parts(report)
    found = tables.reached(tables.selected(part.rows, "steps_to_target", target="solved_epoch1"))
    assert (found["universal"].median, found["universal"].never) == (0, 0)
    assert (found["scratch"].median, found["scratch"].never, found["scratch"].runs) == (None, 4, 4)


class Page(HTMLParser):
    """Checks that what is opened is closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.seen, self.text = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data.strip())


def test_the_page_is_whole_and_needs_nothing_beside_it(report, tmp_path):
    write_page(report, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    page = Page(text)
    assert page.open == []
    assert sum(tag == "svg" for tag, _ in page.seen) == 3
    assert sum(tag == "table" for tag, _ in page.seen) == 4
    fetched = [a for tag, a in page.seen if tag in ("script", "link", "img", "iframe") or "src" in a]
    assert fetched == []
    assert "d2nwg-init bench <transfer>" in page.text  # escaped in the file
    assert "commit 0ld, n3w" in text
    assert "bench <transfer>" not in text
    cells = [t for t in page.text if t]
    at = cells.index("solved")
    assert cells[at + 1] == f"{100 * np.mean([correct(60, s).mean() for s in (0, 1)]):.1f}"


def test_a_table_names_the_rows_whose_epoch_is_of_an_earlier_protocol(report):
    def note(*runs):
        (part,) = tables.parts(report | {"runs": runs})
        return points(part)["note"]

    (run,) = report["runs"]
    assert "Epoch 1 of scratch, pretrained, solved, universal, oracle: of an earlier protocol" in note(run)
    later = run | {"protocol": 4, "methods": ["scratch", "solved"]}
    assert "Epoch 1 of pretrained, oracle: of an" in note(later, run | {"methods": ["pretrained", "oracle"]})
    assert "Epoch 1" not in note(later)


def test_the_page_is_the_same_for_the_same_results(report, tmp_path):
    for name in ("a", "b"):
        write_page(report, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_document_holds_every_method_of_every_part(report, tmp_path):
    (tmp_path / "results").mkdir()
    write_report(tmp_path / "results/transfer.json", report)
    for name in ("benchmark", "failure-cases"):
        (tmp_path / f"{name}.md").write_text("read\n<!-- transfer:start -->\nold\n<!-- transfer:end -->\nme\n")
    draw(tmp_path)
    text = (tmp_path / "benchmark.md").read_text()
    assert "old" not in text
    assert "Commit `0ld`, `n3w`, 2 CPU cores" in text
    assert text.startswith("read\n")
    assert text.endswith("me\n")
    tables_ = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    lengths = {len(row) for row in tables_}
    assert lengths == {10, 3, 4}  # every row as long as its head
    assert {f"`{m}`" for m in START} <= {row[0] for row in tables_}
    for name in ("curves", "wins"):
        assert (tmp_path / f"results/transfer-base-development-{name}.svg").read_text().startswith("<svg")
    assert (tmp_path / "results/transfer.html").exists()


def test_every_loss_of_initialize_is_listed_and_no_win(found, tmp_path):
    """Below `solved` on one dataset and above it on the other, by far."""
    start = {"kmnist": 40, "dtd_part": 80}
    cells = found | {cell_of("initialize", d, s): measured(v, s) for d, v in start.items() for s in (0, 1)}
    (part,) = tables.parts(reported(cells, file=tmp_path / "absent"))
    listed = losses(part)["rows"]
    assert {(row[0], row[1], row[3]) for row in listed} == {("kmnist", "all", "solved")}
    assert {row[2] for row in listed} == {"step 0", "step 10", "step 30", "step 100", "epoch 1"}
    assert all(float(row[4]) < -10 for row in listed)
    assert "| `kmnist` | all | step 0 | solved |" in failures(part)


def test_that_there_is_no_loss_tells_where_one_was_looked_for(found, tmp_path):
    (part,) = tables.parts(reported(found, file=tmp_path / "absent"))
    assert "compared with no rival" in failures(part)
    better = {cell_of("initialize", d, s): measured(80, s) for d in DATASETS for s in (0, 1)}
    start = {c: replace(m, correct={"step/0": m.correct["step/0"]}) for c, m in better.items()}
    (part,) = tables.parts(reported(found | start, file=tmp_path / "absent"))
    assert "None on any dataset, at step 0 with all train images." in failures(part)
    few = {Cell(d, 1, 0, "initialize"): Measured({"step/0": correct(60, 0)}) for d in DATASETS}
    (part,) = tables.parts(reported(found | better | few, file=tmp_path / "absent"))
    assert "at step 0, step 10, step 30, step 100, epoch 1 with all train images; step 0 with 1 a class." in failures(
        part
    )
