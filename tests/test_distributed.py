"""Laws of training on several processes: two give the loss and the gradients of one with all the rows."""

import copy

import pytest
import torch
import torch.distributed
from torch.nn.parallel import DistributedDataParallel

from geoalign_hf.collator import LOSS_KEYS, RowCollator
from geoalign_hf.distributed import gather
from geoalign_hf.losses import LossWeights, compute_losses

REGION_COLUMNS = ("boxes", "quads", "phrases", "concepts", "hard_negatives")
WEIGHTS = LossWeights(scene=1.0, region=0.5, concept=0.5)


def leave_regions(row: dict, num: int) -> dict:
    return row | {name: row[name][:num] for name in REGION_COLUMNS}


def split_rows(toy_rows) -> dict[str, list[list[dict]]]:
    """Rows of two processes, by case; within a case both have the same number of images."""
    silent = {"captions": [], "description": None}
    return {
        "uneven": [toy_rows[1:4], toy_rows[4:7]],
        "one has no region": [toy_rows[1:4], [leave_regions(row, 0) for row in toy_rows[4:7]]],
        "one has no caption": [[row | silent for row in toy_rows[1:4]], toy_rows[4:7]],
        "both have the same words": [toy_rows[1:4], toy_rows[1:4]],
    }


def compute_grads(module, model, batch) -> dict[str, torch.Tensor]:
    """Losses and gradients by name, and how many regions are real."""
    model.zero_grad(set_to_none=True)
    losses = compute_losses(
        module(**{key: tensor for key, tensor in batch.items() if key not in LOSS_KEYS}), batch, WEIGHTS
    )
    losses["loss"].backward()
    grads = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    return {name: loss.detach() for name, loss in losses.items()} | grads


def work(rank: int, model, batches: dict, folder):
    """One of two processes: take its batch of every case, write what came of it."""
    torch.set_num_threads(1)
    store = f"file://{folder / 'store'}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    wrapped = DistributedDataParallel(model)
    results = {case: compute_grads(wrapped, model, batches[case][rank]) for case in batches}

    part = torch.full((2, 1), float(rank + 1)).requires_grad_()
    whole = gather(part)
    (whole * torch.tensor([[1.0], [2.0], [3.0], [4.0]])).sum().backward()
    results["gather"] = {"whole": whole.detach(), "grad": part.grad, "ids": gather(torch.tensor([7 + rank]))}
    torch.save(results, folder / f"results-{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def batches(processor, toy_rows):
    """Per case the two batches of two processes, and the one batch of one."""
    collate = RowCollator(processor, 6)
    return {
        case: [collate(first), collate(second), collate(first + second)]
        for case, (first, second) in split_rows(toy_rows).items()
    }


@pytest.fixture(scope="module")
def results(built, batches, tmp_path_factory):
    """What two processes made of every case."""
    folder = tmp_path_factory.mktemp("distributed")
    # Forking saves importing everything anew; autograd forbids it where it has threads for a device.
    method = "spawn" if torch.accelerator.is_available() else "fork"
    arguments = (copy.deepcopy(built[0]), batches, folder)
    torch.multiprocessing.start_processes(work, arguments, nprocs=2, start_method=method)
    return [torch.load(folder / f"results-{rank}.pt", weights_only=True) for rank in range(2)]


CASES = ["uneven", "one has no region", "one has no caption", "both have the same words"]


@pytest.mark.parametrize("case", CASES)
def test_two_processes_give_the_losses_of_one(results, batches, model, case):
    alone = compute_grads(model, model, batches[case][2])
    for result in results:
        for name in ("scene", "region", "concept", "loss"):
            torch.testing.assert_close(result[case][name], alone[name], rtol=1e-5, atol=0)


@pytest.mark.parametrize("case", CASES)
def test_two_processes_give_the_gradients_of_one(results, batches, model, case):
    alone = compute_grads(model, model, batches[case][2])
    names = [name for name, _ in model.named_parameters()]
    total = torch.stack([alone[name].norm() for name in names]).norm()
    for name in names:
        for result in results:
            # The bias of keys has no gradient but rounding, hence the floor beside the relative bound.
            bound = 1e-5 * alone[name].norm() + 1e-7 * total
            assert (result[case][name] - alone[name]).norm() <= bound, name


@pytest.mark.parametrize("case", CASES)
def test_both_processes_hold_the_same_gradients(results, model, case):
    for name, _ in model.named_parameters():
        assert torch.equal(results[0][case][name], results[1][case][name]), name


def test_the_cases_are_as_uneven_as_they_say(batches):
    num_regions = {
        case: [int(part["region_mask"].sum()) for part in parts] for case, parts in batches.items()
    }
    assert num_regions["uneven"] == [13, 6, 19]
    assert num_regions["one has no region"] == [13, 0, 13]


def test_gathered_parts_lie_in_the_order_of_ranks(results):
    for result in results:
        assert result["gather"]["whole"].tolist() == [[1.0], [1.0], [2.0], [2.0]]
        assert result["gather"]["ids"].tolist() == [7, 8]


def test_the_gradient_of_a_part_is_the_sum_over_all_processes(results):
    # Each of the two computes the same loss, so each part gets its weight twice; DDP's mean halves it.
    assert [result["gather"]["grad"].tolist() for result in results] == [[[2.0], [4.0]], [[6.0], [8.0]]]


def test_without_a_process_group_gather_gives_the_tensor_itself():
    for tensor in (torch.arange(3), torch.ones(2, 2, requires_grad=True)):
        assert gather(tensor) is tensor
