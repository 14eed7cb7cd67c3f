"""The scripts under examples/ run as a user runs them, without a network."""

import difflib
import os
import re
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(name, *arguments):
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, EXAMPLES / name, *map(str, arguments)], capture_output=True, text=True, env=offline
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_timm_script_begins_far_better_after_its_one_line_change():
    accuracies = [float(a) for a in re.findall(r"([\d.]+) %", run("finetune_timm_generated.py"))]
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


def test_torchvision():
    text = run("finetune_torchvision.py")
    assert "own_body" in text
    assert float(re.findall(r"([\d.]+) %", text)[-1]) > 50


def test_save_and_load(tmp_path):
    text = run("save_and_load.py", tmp_path)
    assert "timm loads the same weights" in text
    assert (tmp_path / "config.json").exists()
