"""Two processes by gloo: both end with the first one's weights, or neither is changed. And groups that take no CPU."""

from contextlib import contextmanager

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.parallel import DistributedDataParallel
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from d2nwg_init import InitReport, across_ranks, initialize
from d2nwg_init.across_ranks import _device
from tests.d2nwg_init.conftest import new_model
from tests.d2nwg_init.test_report import NAN, report
from tests.pretrained_generators.small import copied, labelled_images, same
from zoo_builder.errors import D2NWGError, ModelError


def train(rank, folder, fails):
    """What a process does: the state it ends with, and what its report or error says, go into files."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    data = TensorDataset(*labelled_images(48, 3))
    loader = DataLoader(data, 8, sampler=DistributedSampler(data, shuffle=True))
    model = DistributedDataParallel(new_model().to(memory_format=torch.channels_last))
    before = copied(model.state_dict())
    try:
        made = initialize(model, broken() if fails else loader, generator=None, head="solve")
        (folder / f"report{rank}.json").write_text(made.to_json())
        save_file({k: v.contiguous() for k, v in model.module.state_dict().items()}, folder / f"{rank}.safetensors")
        made.revert()
    except (D2NWGError, ZeroDivisionError) as e:
        (folder / f"error{rank}").write_text(repr(e))
    assert same(copied(model.state_dict()), before)
    dist.destroy_process_group()


def broken():
    raise ZeroDivisionError("mine")
    yield


def in_two_processes(folder, fails):
    torch.multiprocessing.start_processes(train, (folder, fails), nprocs=2, start_method="fork")


def test_all_ranks_end_with_equal_weights_and_reports(tmp_path):
    in_two_processes(tmp_path, fails=False)
    states = [load_file(tmp_path / f"{rank}.safetensors") for rank in range(2)]
    assert same(*states)
    assert not same(states[0], copied(new_model().state_dict()))
    texts = [(tmp_path / f"report{rank}.json").read_text() for rank in range(2)]
    assert texts[0].split('"seconds"')[0] == texts[1].split('"seconds"')[0]
    assert InitReport.from_json(texts[1]).images_read == 24  # its share


def test_an_error_of_the_first_rank_ends_the_others(tmp_path):
    in_two_processes(tmp_path, fails=True)
    assert (tmp_path / "error0").read_text() == "ZeroDivisionError('mine')"
    assert "Rank 0 could not initialise" in (tmp_path / "error1").read_text()


@contextmanager
def rank_without_cpu(rank):
    """One of two ranks of a group that takes nothing from a CPU, as with NCCL; the other does not exist."""
    dist.init_process_group("cuda:fake", rank=rank, world_size=2, store=FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()


@pytest.fixture
def accelerator(monkeypatch):
    """The CPU stands for it, and a list for what takes tensors from there to the other ranks."""
    sent = []

    def broadcast(tensor, source):
        if dist.get_rank() == source:
            sent.append(tensor.clone())
        else:
            tensor.copy_(sent.pop(0))

    monkeypatch.setattr(across_ranks, "_device", lambda _: torch.device("cpu"))
    monkeypatch.setattr(dist, "broadcast", broadcast)
    return sent


def test_a_model_on_the_cpu_is_shared_by_a_group_that_takes_nothing_from_there(loader, accelerator):
    models, texts = [new_model(), new_model()], []
    before = copied(models[1].state_dict())
    for rank, model in enumerate(models):
        with rank_without_cpu(rank):
            texts.append(initialize(model, loader, generator=None, head="solve").to_json())
    assert same(*(model.state_dict() for model in models))
    assert not same(models[1].state_dict(), before)
    assert texts[0] == texts[1]
    assert accelerator == []


def test_ranks_talk_by_the_models_device_or_by_one_that_the_group_works_on(monkeypatch):
    with rank_without_cpu(0):
        with FakeTensorMode():  # there is none
            assert _device(nn.Linear(2, 2, device="cuda:1")) == torch.device("cuda:1")
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
        assert _device(nn.Linear(2, 2)) == torch.device("cuda")


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [(new_model, ZeroDivisionError, "mine"), (lambda: "no model", ModelError, "got str 'no model'")],
)
def test_the_first_ranks_own_error_is_seen_where_no_other_can_be_told(make, error, words):
    with rank_without_cpu(0), pytest.raises(error, match=words):
        initialize(make(), broken(), generator=None)


def test_a_group_that_breaks_while_weights_are_sent_leaves_the_first_ranks_model(loader, accelerator, monkeypatch):
    calls = iter(range(5))
    monkeypatch.setattr(dist, "broadcast", lambda *_: next(calls))
    model = new_model()
    before = copied(model.state_dict())
    with rank_without_cpu(0), pytest.raises(StopIteration):
        initialize(model, loader, generator=None, head="solve")
    assert same(model.state_dict(), before)


def test_a_report_is_read_back_from_its_json():
    made = report(image_shape=(3, 8, 9), notes=("a", "b"))
    assert InitReport.from_json(made.to_json()) == made
    broken_score = type(made.candidates[0])("x", "generated", NAN, NAN, 0.0)
    assert InitReport.from_json(report(candidates=(broken_score,)).to_json()).candidates[0].discarded
    with pytest.raises(D2NWGError, match="schema"):
        InitReport.from_json('{"schema": 99}')
