"""The HTML report: what is in it, that names cannot break out of it, and that a real browser shows it."""

import dataclasses
import html
import shutil
import subprocess
from html.parser import HTMLParser

import matplotlib
import numpy as np
import pytest
from PIL import Image

from d2nwg_init import CandidateScore, initialize
from d2nwg_init.benchmarks.generator.plot import draw_compression
from pretrained_generators.audit import Sighting
from pretrained_generators.audit_plot import draw_audit
from pretrained_generators.nearest_datasets import Neighbour
from pretrained_generators.svg import as_svg
from pretrained_generators.training_plot import draw_training
from tests.d2nwg_init.test_report import NAN, report


class Page(HTMLParser):
    """Tags, their attributes, and the text between them."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.text += " "
        self.attributes += attributes

    def handle_data(self, data):
        self.text += data


def test_the_page_tells_what_was_tried_read_and_chosen(model, loader, bundle):
    made = initialize(model, loader, generator=bundle, num_candidates=2)
    text = " ".join(Page(made.to_html()).text.split())
    for c in made.candidates:
        assert f"{c.name} {c.kind} {c.loss:.3f} {c.loss_error:.3f} {c.accuracy:.1f}" in text
    for words in ("48 of 3x32x32", "3 of 3 seen", bundle.config.weights_sha256, "tiny-random", made.versions["torch"]):
        assert words in text
    assert f"d2nwg-init: {made.chosen}" in text
    assert "Fine-tune at" in Page(report().to_html()).text
    assert "birds 0.50" in Page(report().to_html()).text
    assert "5e1f" in Page(report(bundle_revision="5e1f").to_html()).text
    assert "Fine-tun" not in Page(report(learning_rate=None).to_html()).text


def test_the_page_needs_nothing_beside_it_and_holds_no_image():
    page = Page(report().to_html())
    assert not {"script", "img", "image", "iframe", "object", "embed"} & set(page.tags)
    links = [v for k, v in page.attributes if k in ("src", "href", "xlink:href") and not v.startswith("#")]
    assert links == ["data:,"]
    assert "@import" not in page.text
    assert not [k for k, _ in page.attributes if k.startswith("on")]


def test_it_has_light_and_dark_colours():
    text = report().to_html()
    assert "color-scheme: light dark" in text
    assert "prefers-color-scheme: dark" in text


def test_a_discarded_candidate_is_named_and_not_drawn():
    broken = CandidateScore("generated_1", "generated", NAN, NAN, 0.0)
    made = report(candidates=(*report().candidates, broken))
    text = " ".join(Page(made.to_html()).text.split())
    assert "generated_1 generated discarded" in text
    assert "nan" not in text.lower()
    assert "discarded" in str(made)


HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</style></title></table><b>x",
    "{{ 7*7 }}{% raw %}",
    "$\\frac{a}$ $$ \\undefined",
    "[red]x[/] [link=http://x]y[/link]",
    "]]><!-- -->",
    "a\u202eb",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_text(name):
    plain = Page(report().to_html())
    scores = (*(dataclasses.replace(c, name=f"{name}{i}") for i, c in enumerate(report().candidates)),)
    made = report(
        bundle=name, bundle_sha256=name, neighbours=(Neighbour(name, 1.0),),
        reason=name, notes=(name,), chosen=f"{name}1", candidates=scores,
        versions={name: name}, seconds={name: 1.0}, peak_bytes={name: 1 << 20},
    )  # fmt: skip
    page = Page(made.to_html())
    assert sorted(set(page.tags)) == sorted(set(plain.tags))
    assert {k for k, _ in page.attributes} == {k for k, _ in plain.attributes}
    assert page.text.count(name) >= 10
    assert "49" not in html.unescape(page.text).split("Candidates")[0]


@pytest.mark.parametrize(
    "draw",
    [
        lambda: report().to_html(),
        lambda: draw_training([{"stage": "vae", "step": 1, "loss": 2.0}], {"gain": 1.0}, {"gain": 0.5}),
        lambda: draw_audit([Sighting("task", "birds", "generated", 1.0, 0.2, 50.0)]),
        lambda: as_svg(draw_compression([{"codec": "vae", "compression": 9.0, "value": 0.8}], 0.9)),
    ],
)
def test_plots_do_not_follow_the_users_own_settings_of_matplotlib(draw):
    """They may ask for what is not there, as LaTeX, or for colours that the page has not."""
    expected = draw()
    mine = {"text.usetex": True, "axes.facecolor": "red", "axes.labelsize": 40, "svg.fonttype": "path"}
    with matplotlib.rc_context(mine):
        assert draw() == expected
        assert {key: matplotlib.rcParams[key] for key in mine} == mine


def browser(tmp_path, page, *options):
    """What chromium does with a page; a complaint on its console is an error."""
    shown = subprocess.run(
        ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile",
         "--enable-logging=stderr", "--window-size=800,900", *options, page.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert "CONSOLE" not in shown.stderr
    return shown.stdout


needs_chromium = pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium: apt-get install chromium")


@needs_chromium
@pytest.mark.parametrize("name", ["generated_", *HOSTILE[:3]])
def test_a_browser_shows_names_as_text(name, tmp_path):
    scores = (dataclasses.replace(c, name=f"{name}{i}") for i, c in enumerate(report().candidates))
    page = tmp_path / "report.html"
    page.write_text(report(chosen=f"{name}1", candidates=tuple(scores)).to_html())
    shown = Page(browser(tmp_path, page, "--dump-dom"))
    assert shown.text.count(f"{name}1") >= 3
    assert shown.tags.count("svg") == 1
    assert not {"script", "img"} & set(shown.tags)


@needs_chromium
@pytest.mark.parametrize("dark", [False, True])
def test_a_browser_shows_it_in_the_readers_colours(dark, tmp_path):
    page, picture = tmp_path / "report.html", tmp_path / "page.png"
    page.write_text(report().to_html())
    browser(tmp_path, page, f"--blink-settings=preferredColorScheme={int(not dark)}", f"--screenshot={picture}")
    pixels = np.asarray(Image.open(picture).convert("L"))
    background = pixels[2, 2]
    assert background < 60 if dark else background > 240
    assert np.abs(pixels.astype(int) - background).max() > 150  # and there is text that can be read on it
