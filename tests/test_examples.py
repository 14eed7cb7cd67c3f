"""The scripts under examples/ run without a network: one as a user runs it, the others in this process."""

import difflib
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture
def run(monkeypatch, capsys):
    def run_here(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return run_here


def test_a_timm_script_begins_far_better_after_its_one_line_change():
    offline = os.environ | {"HF_HUB_OFFLINE": "1"}
    command = [sys.executable, EXAMPLES / "finetune_timm_generated.py"]
    done = subprocess.run(command, capture_output=True, text=True, env=offline)
    assert done.returncode == 0, done.stderr
    accuracies = [float(a) for a in re.findall(r"([\d.]+) %", done.stdout)]
    assert len(accuracies) == 3
    assert accuracies[0] > 80  # of ten classes, before any training


def test_the_change_is_one_line_and_its_import():
    before, after = (
        (EXAMPLES / n).read_text().splitlines() for n in ("finetune_timm.py", "finetune_timm_generated.py")
    )
    changes = [
        d for d in difflib.unified_diff(before[1:], after[1:], n=0, lineterm="") if d[:1] in "+-" and d[1:2] != d[0]
    ]
    model = 'model = timm.create_model("test_resnet", pretrained=True, num_classes=10)'
    assert [c for c in changes if c.strip("+-")] == [
        "+import d2nwg_init",
        f"-{model}",
        "+with d2nwg_init.pretrained(train_loader, num_candidates=4, num_support=512):",
        f"+    {model}",
    ]


def test_torchvision(run):
    text = run("finetune_torchvision.py")
    assert "own_body" in text
    assert float(re.findall(r"([\d.]+) %", text)[-1]) > 50


def test_save_and_load(run, tmp_path):
    text = run("save_and_load.py", tmp_path)
    assert "timm loads the same weights" in text
    assert (tmp_path / "config.json").exists()
