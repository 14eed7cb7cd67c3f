"""Two processes by gloo: both end with the first one's weights, or neither is changed."""

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from d2nwg_init import InitReport, initialize
from tests.d2nwg_init.conftest import new_model
from tests.d2nwg_init.test_report import NAN, report
from tests.pretrained_generators.small import copied, labelled_images, same
from zoo_builder.errors import D2NWGError


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


def test_a_report_is_read_back_from_its_json():
    made = report(image_shape=(3, 8, 9), notes=("a", "b"))
    assert InitReport.from_json(made.to_json()) == made
    broken_score = type(made.candidates[0])("x", "generated", NAN, NAN, 0.0)
    assert InitReport.from_json(report(candidates=(broken_score,)).to_json()).candidates[0].discarded
    with pytest.raises(D2NWGError, match="schema"):
        InitReport.from_json('{"schema": 99}')
