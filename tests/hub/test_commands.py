"""What the commands that ask the Hub make of a user's slips, and of what breaks off."""

import pytest

from tests.hub.client import command, create, interrupted
from tests.hub.server import TOKEN


def test_pull_that_is_interrupted_goes_on(client, pushed, tmp_path):
    out = tmp_path / "new" / "out"
    code, text = client(interrupted, "bundle", "pull", pushed[0], "--out", out)
    assert (code, "goes on from there" in text) == (130, True)
    assert list((tmp_path / "new").iterdir()) == []
    assert client(command, "bundle", "pull", pushed[0], "--out", out)[0] == 0
    assert client(command, "bundle", "verify", out)[0] == 0


@pytest.fixture(scope="module")
def nowhere(processes, tmp_path_factory):
    """A client that reaches nothing and has nothing."""
    home = str(tmp_path_factory.mktemp("nowhere"))
    return processes(HF_HUB_OFFLINE="1", HF_HOME=home, TORCH_HOME=home, https_proxy="http://127.0.0.1:9")


@pytest.mark.parametrize("model", ["test_resnet", "torchvision:squeezenet1_1"])
def test_pretrained_weights_that_cannot_be_fetched_are_said(nowhere, model):
    message = nowhere(create, model)
    assert message.startswith(f"ModelError: The pretrained weights of {model} cannot be had")
    assert "give a safetensors file" in message


def test_what_trying_again_would_not_mend_is_said(hub, client, processes, saved):
    code, text = client(command, "bundle", "push", saved, "org/a--b")
    assert (code, text.endswith("Expected ORG/NAME.")) == (1, True), text
    nobody = processes(HF_ENDPOINT="http://127.0.0.1:9", HF_TOKEN=TOKEN)
    code, text = nobody(command, "bundle", "push", saved, "org/tiny")
    assert (code, text.endswith("Check the connection and HF_ENDPOINT.")) == (1, True), text
