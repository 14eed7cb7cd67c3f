"""What the commands that ask the Hub make of a user's slips, and of what breaks off."""

from tests.hub.client import command, interrupted


def test_pull_that_is_interrupted_goes_on(client, pushed, tmp_path):
    out = tmp_path / "new" / "out"
    code, text = client(interrupted, "bundle", "pull", pushed[0], "--out", out)
    assert (code, "goes on from there" in text) == (130, True)
    assert list((tmp_path / "new").iterdir()) == []
    assert client(command, "bundle", "pull", pushed[0], "--out", out)[0] == 0
    assert client(command, "bundle", "verify", out)[0] == 0
