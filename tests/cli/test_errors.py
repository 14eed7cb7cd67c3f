import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import BrokenExecutor

import pytest

from d2nwg_init.cli.interrupts import ended_alike
from tests.cli.conftest import fail, run, write_image_folder
from tests.pretrained_generators.small import save_random_bundle
from zoo_builder.executors.processes import process_executor


@pytest.fixture
def out(tmp_path):
    return tmp_path / "weights.safetensors"


def init(data, out, *more, model="test_resnet"):
    return fail("init", model, "--data", data, "--out", out, "--size", 32, *more)


def test_unknown_bundle(images, out):
    assert "no-such-bundle" in init(images, out, "--bundle", "no-such-bundle")
    assert "no-such-bundle" in fail("demo", "--data", images, "--bundle", "no-such-bundle")
    assert not out.exists()


def test_unknown_model_names_the_nearest(images, out):
    message = init(images, out, model="test_resnte")
    assert "ModelError" in message
    assert "'test_resnet'" in message


def test_seed_that_torch_does_not_take(images, out):
    assert "(RecipeError): seed must be a whole number" in init(images, out, "--seed", 10**20)


def test_seed_that_a_base_cannot_have(images, out):
    result = run(
        "zoo", "base", "--data", images, "--out", out, "--seed", 2**50
    )  # times an epoch torch takes it no more
    assert result.exit_code == 2
    assert "--seed" in result.output


def test_bundle_that_does_not_fit_the_model(images, out, bundle_path):
    message = init(images, out, "--bundle", bundle_path, model="mobilenetv3_small_050")
    assert "BundleError" in message
    assert "tiny-random" in message


def test_damaged_bundle(images, out, tmp_path):
    save_random_bundle(tmp_path / "bundle")
    with (tmp_path / "bundle" / "generator.safetensors").open("ab") as file:
        file.write(b"x")
    assert "SHA-256" in init(images, out, "--bundle", tmp_path / "bundle")


@pytest.mark.parametrize("command", ["init", "demo"])
def test_unknown_dataset(command, out, bundle_path):
    arguments = ("test_resnet", "--out", out) if command == "init" else ()
    message = fail(command, *arguments, "--data", "digist", "--bundle", bundle_path)
    assert "DataError" in message
    assert "did you mean 'digits'" in message


def test_unknown_dataset_of_a_folder_names_the_nearest(images, tmp_path):
    arguments = ("--data", images.parent, "--out", tmp_path / "base.safetensors")
    assert "did you mean 'insects'" in fail("zoo", "base", *arguments, "--dataset", "insect")


def test_folder_of_broken_images(out, tmp_path):
    folder = write_image_folder(tmp_path / "broken", count=9)
    for file in folder.glob("*/*.png"):
        file.write_bytes(b"not an image")
    message = init(folder, out)
    assert "DataError" in message
    assert "all 9 are unreadable" in message
    assert not out.exists()


@pytest.mark.parametrize("content", ["nothing", "files", "empty class", "one class"])
def test_folder_without_classes_of_images(content, out, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    if content == "files":
        (folder / "notes.txt").write_text("no images")
    elif content == "empty class":
        (folder / "ant").mkdir()
    elif content == "one class":
        write_image_folder(folder, classes=("ant",), count=4)
    assert "DataError" in init(folder, out)


MEASURING = {
    "demo": ("--data", "{data}/{name}", "--bundle", "{bundle}", "--plot", "{data}/curves.png"),
    "never-worse": ("--data", "{data}", "--datasets", "{name}", "--bundles", "{bundle}", "--work", "{data}/work"),
    "uncovered": ("test_resnet", "--data", "{data}", "--datasets", "{name}", "--weights", "{bundle}/config.json"),
}


def measure(command, data, name, bundle):
    given = (part.format(data=data, name=name, bundle=bundle) for part in MEASURING[command])
    return fail(*(() if command == "demo" else ("bench",)), command, *given)


@pytest.mark.parametrize("command", ["demo", "never-worse"])
def test_dataset_that_the_bundle_was_trained_on_is_refused(command, bundle_path, tmp_path):
    write_image_folder(tmp_path / "stripes")
    assert "trained on 'stripes'" in measure(command, tmp_path, "stripes", bundle_path)


@pytest.mark.parametrize("command", MEASURING)
def test_dataset_without_test_images_is_refused(command, bundle_path, tmp_path):
    write_image_folder(tmp_path / "few", count=12)  # four a class: a fifth of them is none
    assert "no test images" in measure(command, tmp_path, "few", bundle_path)


def test_folder_that_is_no_zoo(tmp_path):
    (tmp_path / "recipe.toml").write_text('name = "x"\n')
    assert "ZooError" in fail("zoo", "list", tmp_path)
    arguments = ("--zoo", tmp_path, "--recipe", "small", "--out", tmp_path / "out")
    assert "ZooError" in fail("generator", "train", *arguments)


def test_unknown_and_wrong_recipes(tmp_path):
    arguments = ("generator", "train", "--zoo", tmp_path, "--out", tmp_path / "out", "--recipe")
    assert "did you mean 'small'" in fail(*arguments, "smal")
    recipe = tmp_path / "recipe.toml"
    for text, words in (("name =", "RecipeError"), ("colour = 3", "unknown key 'colour'")):
        recipe.write_text(text)
        assert words in fail(*arguments, recipe)


@pytest.mark.parametrize("device", ["cuda:99", "abacus"])
def test_device_that_is_not_there(images, tmp_path, device):
    arguments = ("--recipe", "small", "--data", images.parent, "--base", "none", "--out", tmp_path / "zoo")
    message = fail("zoo", "build", *arguments, "--device", device)
    assert f"no device '{device}'" in message
    assert "Try --device cpu" in message


def test_message_prints_markup_as_it_is(out):
    assert "[red]x" in init("[red]x", out)


@pytest.mark.parametrize(
    ("command", "goes_on"),
    [
        (("demo", "--data", "{images}", "--bundle", "{bundle}"), False),
        (("bench", "bases", "test_resnet", "--data", "{images}"), False),
        (("zoo", "base", "--data", "{images}", "--out", "{out}"), True),
        (("bench", "uncovered", "test_resnet", "--data", "{images}", "--weights", "{bundle}/config.json"), True),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, tuple) else None,
)
def test_interrupt_is_exit_code_130_without_a_traceback(command, goes_on, monkeypatch, images, bundle_path, out):
    """And tells that the command goes on where it does."""

    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("zoo_builder.datasets.load_dataset", stop)
    result = run(*(part.format(images=images, bundle=bundle_path, out=out) for part in command))
    assert result.exit_code == 130
    assert "Interrupted." in result.stderr
    assert ("goes on from there" in result.stderr) == goes_on
    assert "Traceback" not in result.output


@pytest.fixture(autouse=True)
def workers_of_other_tests(monkeypatch):
    """SIGTERM ends worker processes, and other tests keep theirs."""
    active, before = multiprocessing.active_children, set(multiprocessing.active_children())
    monkeypatch.setattr(multiprocessing, "active_children", lambda: [c for c in active() if c not in before])


def test_sigterm_ends_a_command_as_ctrl_c_does_and_its_temporary_folders(monkeypatch, images, out, tmp_path):
    places, before = [], signal.getsignal(signal.SIGTERM)

    def stop(*_, **__):
        with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
            places.append(folder)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)

    monkeypatch.setattr("zoo_builder.datasets.load_dataset", stop)
    result = run("zoo", "base", "--data", images, "--out", out)
    assert (result.exit_code, len(places)) == (130, 1)
    assert "Interrupted. What was finished is kept" in result.stderr
    assert not os.path.exists(places[0])
    assert signal.getsignal(signal.SIGTERM) == before


def test_sigterm_ends_what_worker_processes_are_at():
    with process_executor(1) as executor:
        worker = executor.submit(os.getpid).result()
        pending = executor.submit(time.sleep, 600)
        with pytest.raises(KeyboardInterrupt), ended_alike():
            signal.raise_signal(signal.SIGTERM)
        with pytest.raises(BrokenExecutor):
            pending.result(timeout=60)
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)


def test_error_of_the_installed_command_goes_to_stderr(tmp_path):
    code = "from d2nwg_init.cli import app; app()"
    arguments = [sys.executable, "-c", code, "zoo", "list", str(tmp_path)]
    process = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert process.returncode == 1
    assert process.stdout == ""
    assert process.stderr.startswith("Error (ZooError)")
    assert "Traceback" not in process.stderr


@pytest.mark.parametrize(
    "command",
    [
        ("zoo", "base", "--data", "nowhere", "--out", "base", "--threads", "-1"),
        ("bench", "bases", "test_resnet", "--data", "nowhere", "--threads", "-1"),
        ("bench", "zoo", "--data", "nowhere", "--base", "none", "--workers", "-1"),
        ("bench", "fuzz", "--inputs", "4"),  # of which each kind of bundle must get one
    ],
    ids=" ".join,
)
def test_number_below_its_least_is_a_wrong_option(command):
    result = run(*command)
    assert result.exit_code == 2
    assert command[-2] in result.output
