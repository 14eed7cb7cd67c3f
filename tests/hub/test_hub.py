"""Bundles pushed and pulled by the real client, against a Hub on this machine."""

import dataclasses
import json

import datasets
import pytest
import yaml
from huggingface_hub import parse_eval_result_entries
from huggingface_hub.constants import DOWNLOAD_CHUNK_SIZE

from d2nwg_init.saved_model import save_model
from pretrained_generators.bundle import load_bundle, load_config
from pretrained_generators.bundle_files import file_sha256
from pretrained_generators.card import write_card
from tests.d2nwg_init.conftest import new_model
from tests.hub.client import command, commit_of, digest, listed, load, push, push_generator, push_model, timm_model
from tests.hub.server import TOKEN, Fault, Repo
from tests.pretrained_generators.small import random_generator, save_random_bundle, write_measured_card
from tests.pretrained_generators.test_bundle_formats import FIXTURES
from tests.zoo_builder.synthetic import striped_dataset, write_npz
from tests.zoo_builder.test_dataset_sources import PARTS, write_parquet
from zoo_builder.datasets import load_dataset

WEIGHTS = "generator.safetensors"


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def other_bundle(folder):
    save_random_bundle(folder, name="other", generator=random_generator(seed=1))
    return write_measured_card(folder)


def test_push_then_pull_gives_the_same_bits(hub, client, saved, whole, cache):
    commit = client(push, saved, "org/tiny", token=TOKEN)
    names = {".gitattributes", "README.md", "config.json", WEIGHTS, "results.json"}
    assert hub.repos["org/tiny"].commits[commit].keys() == names
    assert client(load, "org/tiny", cache_dir=cache) == whole
    assert client(commit_of, "org/tiny", cache_dir=cache) == commit


def test_a_folder_is_pushed_as_it_is_in_one_commit(hub, client, folder):
    (folder / "audit.svg").write_text("<svg/>")
    write_card(load_config(folder), folder)
    commit = client(push, folder, "org/tiny", token=TOKEN)
    files = hub.repos["org/tiny"].commits[commit]
    assert {n: c for n, c in files.items() if n != ".gitattributes"} == {
        p.name: p.read_bytes() for p in folder.iterdir()
    }
    assert len(hub.repos["org/tiny"].commits) == 2  # the first is the Hub's own


def test_the_token_is_not_sent_to_another_host(hub, client, saved, cache):
    client(push, saved, "org/secret", private=True, token=TOKEN)
    client(load, "org/secret", cache_dir=cache, token=TOKEN)
    assert {headers.get("authorization") for _, path, headers in hub.asked if path.startswith("/lfs/")} == {None}


def test_the_mixins_push_gives_a_bundle_with_a_card(hub, client, saved, whole, cache):
    url = client(push_generator, saved, "org/again", token=TOKEN)
    commit = hub.repos["org/again"].resolve("main")
    assert url == f"{hub.endpoint}/org/again/commit/{commit}"
    files = hub.repos["org/again"].commits[commit]
    assert {n: c for n, c in files.items() if n != ".gitattributes"} == {
        p.name: p.read_bytes() for p in saved.iterdir()
    }
    assert client(load, "org/again", cache_dir=cache) == whole


@pytest.mark.parametrize("way", [push, push_generator])
def test_bundle_without_results_is_not_pushed(hub, client, folder, way):
    (folder / "results.json").unlink()
    write_card(load_config(folder), folder)
    message = client(way, folder, "org/tiny", token=TOKEN)
    assert message.startswith("BundleError: The bundle 'tiny-random' has no card and is not pushed")
    assert "d2nwg-init bundle card FOLDER --results results.json" in message
    assert hub.asked == []


def test_generator_whose_weights_changed_is_not_pushed(hub, client, folder):
    generator = load_bundle(folder).generator
    generator.vae.mean[0, 0] += 1
    generator.save_pretrained(folder)
    assert "has no card" in client(push_generator, folder, "org/tiny", token=TOKEN)
    assert hub.asked == []


def test_what_was_pulled_is_pushed_again_with_its_card(hub, client, pushed, saved, cache):
    """From the client's cache, whose files are links."""
    repo, commit = pushed
    client(load, repo, cache_dir=cache)
    client(push_generator, repo, "org/again", token=TOKEN, cache_dir=cache)
    again = hub.repos["org/again"]
    assert again.commits[again.resolve("main")] == hub.repos[repo].commits[commit]


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def bands(tmp_path, monkeypatch):
    """A dataset as it is read of the Hub at a commit: here, from a folder that is laid out and called so."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "arrow")
    monkeypatch.chdir(tmp_path)
    write_parquet(tmp_path / "org" / f"bands@{COMMIT}", PARTS)
    return load_dataset(f"hf:org/bands@{COMMIT}?label=label", size=32)


def test_results_on_a_dataset_of_the_hub_are_told_there(hub, client, folder, whole, cache, bands):
    write_measured_card(folder, data=[bands, load_dataset("digits")])
    commit = client(push, folder, "org/tiny", token=TOKEN)
    assert len(hub.repos["org/tiny"].commits) == 2  # the first is the Hub's own
    files = hub.repos["org/tiny"].commits[commit]
    told = {n: c for n, c in files.items() if n.startswith(".eval_results/")}
    assert told.keys() == {".eval_results/d2nwg-init--org--bands.yaml"}
    [entry] = parse_eval_result_entries(yaml.safe_load(*told.values()))
    assert (entry.dataset_id, entry.dataset_revision, entry.task_id) == ("org/bands", COMMIT, "image-classification")
    assert entry.value == 65.0
    assert entry.date == json.loads((folder / "results.json").read_text())["date"]
    assert entry.source_url == f"{hub.endpoint}/org/tiny/blob/main/results.json"
    assert "initialize, before any training" in entry.notes
    assert bands.name in entry.notes
    assert client(load, "org/tiny", cache_dir=cache) == whole
    assert not [path for path in hub.paths("GET") if "/resolve/" in path and ".eval_results" in path]


def test_a_file_that_names_a_dataset_of_the_hub_is_not_that_dataset(hub, client, folder, bands):
    copied = dataclasses.replace(bands, name="bands")
    branch = dataclasses.replace(bands, name="hf:org/bands@main", origin="hf:org/bands@main")
    write_measured_card(folder, data=[copied, branch])
    commit = client(push, folder, "org/tiny", token=TOKEN)
    assert not [n for n in hub.repos["org/tiny"].commits[commit] if n.startswith(".eval_results/")]


def test_results_of_former_weights_are_taken_back_and_those_of_others_left(hub, client, folder, bands):
    write_measured_card(folder, data=[bands])
    client(push, folder, "org/tiny", token=TOKEN)
    hub.repos["org/tiny"].commit({".eval_results/community.yaml": b"[]", "audit.json": b"{}", "mine.md": b""})
    other_bundle(folder)
    commit = client(push, folder, "org/tiny", token=TOKEN)
    files = hub.repos["org/tiny"].commits[commit]
    assert "mine.md" in files
    assert "audit.json" not in files
    assert [n for n in files if n.startswith(".eval_results/")] == [".eval_results/community.yaml"]


def test_a_clone_of_the_repository_is_a_bundle(hub, owner, folder, tmp_path, bands):
    write_measured_card(folder, data=[bands])
    commit = owner(push, folder, "org/tiny")
    for name, contents in hub.repos["org/tiny"].commits[commit].items():
        (tmp_path / "clone" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "clone" / name).write_bytes(contents)
    assert (tmp_path / "clone" / ".eval_results").is_dir()
    load_bundle(tmp_path / "clone")
    assert owner(command, "bundle", "pull", "org/tiny", "--out", tmp_path / "out")[0] == 0
    assert {p.name for p in (tmp_path / "out").iterdir()} == {p.name for p in folder.iterdir()}


def test_damaged_bundle_is_not_pushed(hub, client, folder):
    with (folder / WEIGHTS).open("ab") as file:
        file.write(b"x")
    assert "SHA-256" in client(push, folder, "org/tiny", token=TOKEN)
    assert hub.asked == []


def test_nothing_is_asked_for_what_is_cached_at_a_commit(hub, client, pushed, whole, cache):
    repo, commit = pushed
    assert client(load, f"{repo}@{commit}", cache_dir=cache) == whole
    hub.asked.clear()
    assert client(load, repo, revision=commit, cache_dir=cache) == whole
    assert client(load, f"{repo}@{commit}", cache_dir=cache, local_files_only=True) == whole
    assert hub.asked == []


def test_only_what_the_config_names_is_fetched(hub, client, pushed, whole, cache):
    hub.repos["org/tiny"].commit({"setup.py": b"raise SystemExit", "pytorch_model.bin": b"\x80\x04"})
    assert client(load, "org/tiny", cache_dir=cache) == whole
    assert {p.rpartition("/")[2] for p in hub.paths("GET") if "/resolve/" in p} <= {
        "config.json",
        "README.md",
        "results.json",
    }


def test_pinned_revision_stays_what_it_was(hub, client, pushed, whole, folder, cache):
    repo, commit = pushed
    hub.repos[repo].tags["v1"] = commit
    other_bundle(folder)
    later = client(push, folder, repo, token=TOKEN)
    assert later != commit
    for revision in (commit, "v1"):
        assert client(load, repo, revision=revision, cache_dir=cache) == whole
    assert client(load, repo, cache_dir=cache) == digest(random_generator(seed=1))
    assert client(commit_of, repo, cache_dir=cache) == later


def test_download_that_breaks_off_goes_on_where_it_stopped(hub, client, folder, whole, cache):
    (folder / "audit.svg").write_text("<svg>" + " " * 2 * DOWNLOAD_CHUNK_SIZE + "</svg>")
    write_card(load_config(folder), folder)
    client(push, folder, "org/tiny", token=TOKEN)
    hub.faults.append(Fault("GET", f"/lfs/{file_sha256(folder / 'audit.svg')}"))
    assert client(load, "org/tiny", cache_dir=cache) == whole
    ranges = [headers.get("range") for _, path, headers in hub.asked if path.startswith("/lfs/")]
    assert f"bytes={DOWNLOAD_CHUNK_SIZE}-" in ranges


def test_truncated_body_is_refused_and_fetched_anew(hub, client, pushed, whole, cache):
    hub.faults.append(Fault("GET", "/lfs/", honest=True))
    assert client(load, "org/tiny", cache_dir=cache).startswith("BundleError: org/tiny on the Hub: Consistency check")
    assert client(load, "org/tiny", cache_dir=cache) == whole


@pytest.mark.parametrize(("method", "path"), [("HEAD", "config.json"), ("GET", "/tree/")])
@pytest.mark.parametrize(("status", "headers"), [(429, {"Retry-After": "0"}), (500, {})])
def test_a_busy_hub_is_asked_again(hub, client, pushed, whole, cache, method, path, status, headers):
    hub.faults.append(Fault(method, path, status=status, headers=headers))
    assert client(load, "org/tiny", cache_dir=cache) == whole
    assert hub.faults[0].times == 0


def test_a_busy_hub_is_pushed_to_again(hub, client, saved):
    hub.faults += [Fault("PUT", "/lfs/", status=500), Fault("POST", "/preupload/", status=429)]
    commit = client(push, saved, "org/tiny", token=TOKEN)
    assert hub.repos["org/tiny"].commits[commit][WEIGHTS] == (saved / WEIGHTS).read_bytes()


def test_a_hub_that_is_down_is_no_matter_for_what_is_cached(hub, client, pushed, whole, cache):
    assert client(load, "org/tiny", cache_dir=cache) == whole
    hub.faults.append(Fault("HEAD", "", times=99, status=503))
    assert client(load, "org/tiny", cache_dir=cache) == whole


@pytest.mark.parametrize("name", ["org/nothing", "org/tiny@" + "f" * 40, "org/tiny@no-such-branch"])
def test_what_is_not_there_is_said(hub, client, pushed, cache, name):
    message = client(load, name, cache_dir=cache)
    assert message.startswith("BundleError")
    assert "Check the " in message


def test_a_repository_without_a_bundle_is_said(hub, client, pushed, cache):
    commits = hub.repos["org/tiny"].commits
    commits[pushed[1]].pop("config.json")
    assert "It holds no bundle" in client(load, "org/tiny", cache_dir=cache)
    commit = "401" + pushed[1][3:]  # a number that may be in a name or a port is no status
    commits[commit] = commits[pushed[1]]
    assert "It holds no bundle" in client(load, f"org/tiny@{commit}", cache_dir=cache)


def test_wrong_token_is_said(hub, client, pushed, saved, cache):
    assert "log in" in client(load, "org/tiny", cache_dir=cache, token="hf_wrong")
    assert "log in" in client(push, saved, "org/tiny", token="hf_wrong")
    assert len(hub.repos["org/tiny"].commits) == 2


def test_private_repository_needs_the_token(hub, client, saved, whole, cache):
    client(push, saved, "org/secret", private=True, token=TOKEN)
    assert hub.repos["org/secret"].private
    assert "log in" in client(load, "org/secret", cache_dir=cache)
    assert client(load, "org/secret", cache_dir=cache, token=TOKEN) == whole
    assert client(load, "org/secret", cache_dir=cache, local_files_only=True) == whole


def test_a_file_that_changed_under_its_commit_is_refused(hub, client, pushed, cache):
    repo, commit = pushed
    files = hub.repos[repo].commits[commit]
    files[WEIGHTS] = files[WEIGHTS][:-1] + bytes([files[WEIGHTS][-1] ^ 1])
    assert "SHA-256" in client(load, repo, revision=commit, cache_dir=cache)


def test_what_is_damaged_in_the_cache_is_fetched_anew_by_force(hub, client, pushed, home):
    repo, commit = pushed
    assert client(command, "bundle", "pull", repo)[0] == 0
    [blob] = {p.resolve() for p in home.glob(f"hub/models--org--tiny/snapshots/{commit}/{WEIGHTS}")}
    blob.write_bytes(blob.read_bytes()[:-1] + b"x")
    code, text = client(command, "bundle", "pull", repo)
    assert (code, "bundle pull ORG/NAME --force" in text) == (1, True)
    assert client(command, "bundle", "pull", repo, "--force")[0] == 0
    assert client(command, "bundle", "verify", f"{repo}@{commit}")[0] == 0


def test_a_file_of_another_size_is_not_fetched(hub, client, pushed, cache):
    repo, commit = pushed
    hub.repos[repo].commits[commit][WEIGHTS] += b"\0" * 2**20
    assert "Nothing of it was fetched" in client(load, repo, cache_dir=cache)
    assert not any("/lfs/" in path for path in hub.paths("GET"))


def test_a_hostile_config_is_refused_before_anything_else_is_fetched(hub, client, pushed, cache):
    repo, commit = pushed
    files = hub.repos[repo].commits[commit]
    config = json.loads(files["config.json"])
    config["files"].append({"name": "../../escape.json", "bytes": 1, "sha256": "0" * 64})
    files["config.json"] = json.dumps(config).encode()
    assert "no name of a file" in client(load, repo, cache_dir=cache)
    assert hub.paths("GET") == [f"/{repo}/resolve/main/config.json"]


def test_a_config_that_is_too_long_is_not_fetched(hub, client, pushed, cache):
    repo, commit = pushed
    hub.repos[repo].commits[commit]["config.json"] += b" " * 2**20
    for revision in (None, commit):
        assert "at most 1048576" in client(load, repo, revision=revision, cache_dir=cache)
    assert repo not in str(client(listed, cache_dir=cache, hub=True))
    assert not any("/resolve/" in path for path in hub.paths("GET"))


def test_a_bundle_of_format_1_is_asked_for_as_a_folder(hub, client, cache):
    """It does not say what to fetch."""
    hub.repos["org/old"] = Repo()
    hub.repos["org/old"].commit({p.name: p.read_bytes() for p in (FIXTURES / "format-1").iterdir()})
    message = client(load, "org/old", cache_dir=cache)
    assert "bundle format 1, which does not name its files" in message
    assert "hf download" in message


def test_a_link_of_the_cache_that_leads_elsewhere_is_refused(hub, client, pushed, cache, tmp_path):
    repo, commit = pushed
    client(load, repo, cache_dir=cache)
    [link] = cache.glob(f"models--org--tiny/snapshots/{commit}/{WEIGHTS}")
    assert link.is_symlink()
    (tmp_path / "elsewhere").write_bytes(link.read_bytes())
    link.unlink()
    link.symlink_to(tmp_path / "elsewhere")
    assert "symbolic link" in client(load, repo, cache_dir=cache, local_files_only=True)


def test_lists_what_is_cached_and_what_the_hub_has(hub, client, pushed, folder, cache):
    repo, commit = pushed
    other_bundle(folder)
    research = client(push, folder, "org/research", token=TOKEN)
    client(load, repo, cache_dir=cache)
    hub.asked.clear()
    cached = [i for i in client(listed, cache_dir=cache) if i.where != "embedded"]
    assert [(i.name, i.where, i.commercial) for i in cached] == [(f"{repo}@{commit}", "cached", True)]
    assert hub.asked == []
    both = client(listed, cache_dir=cache, hub=True, architecture="test_resnet")
    assert {(i.name, i.where) for i in both if i.where != "embedded"} == {
        (f"{repo}@{commit}", "cached"),
        (f"org/research@{research}", "hub"),
    }
    commercial = client(listed, cache_dir=cache, hub=True, commercial=True)
    assert [i.name for i in commercial] == [f"{repo}@{commit}"]
    assert client(listed, cache_dir=cache, hub=True, architecture="resnet50") == []


def test_a_saved_model_is_loaded_by_timm_from_the_hub_head_included(hub, client, tmp_path):
    model = new_model(classes=3)
    save_model(model, tmp_path / "saved", (3, 64, 64))
    client(push_model, tmp_path / "saved", "org/flowers", token=TOKEN)
    assert client(timm_model, "org/flowers") == digest(model)


def test_environment_is_honoured(hub, client, processes, pushed, whole, home):
    """HF_HOME holds the cache, and with HF_HUB_OFFLINE nothing is asked."""
    assert client(load, "org/tiny") == whole
    assert (home / "hub" / "models--org--tiny" / "snapshots" / pushed[1]).is_dir()
    hub.asked.clear()
    offline = processes(HF_HUB_OFFLINE="1")
    assert offline(load, "org/tiny") == whole
    assert "bundle pull" in offline(load, "org/other", local_files_only=True)
    assert "HF_HUB_OFFLINE is not set" in offline(load, "org/other")
    assert hub.asked == []


def test_commands_push_pull_and_measure_the_way(hub, owner, saved, tmp_path):
    code, text = owner(command, "bundle", "push", saved, "org/tiny")
    [_, commit] = hub.repos["org/tiny"].commits
    assert (code, f"org/tiny@{commit}" in text) == (0, True)
    code, text = owner(command, "bundle", "pull", "org/tiny", "--out", tmp_path / "out")
    assert (code, f"org/tiny@{commit}" in text) == (0, True)
    assert not any(p.is_symlink() for p in (tmp_path / "out").iterdir())
    for words in (("verify",), ("show",), ("diff", saved), ("diff", tmp_path / "out")):
        code, text = owner(command, "bundle", words[0], f"org/tiny@{commit}", *words[1:])
        assert code == 0, text
    assert text.strip() == "No difference."
    write_npz(tmp_path / "stripes.npz", striped_dataset("stripes"))
    about = ("--bundle", saved, "--data", tmp_path / "stripes.npz")
    code, text = owner(command, "bench", "hub", "org/measured", *about, "--json")
    report = json.loads(text)
    rows = {(r["method"], r["metric"]): r["value"] for r in report["rows"]}
    assert rows["pull", "tensors_differing"] == 0
    assert rows["pull", "bytes"] == sum(p.stat().st_size for p in saved.iterdir() if p.name != "config.json")
    assert report["hub"]["revision"] in hub.repos["org/measured"].commits
    assert hub.repos["org/measured"].private
