"""Laws of training on several processes and in chunks: either gives the loss and the gradients of neither."""

import copy
from dataclasses import fields
from types import SimpleNamespace

import pytest
import torch
import torch.distributed
from torch.nn.parallel import DistributedDataParallel

from geoalign_hf.data.collator import RowCollator
from geoalign_hf.data.schema import REGION_COLUMNS
from geoalign_hf.losses.distributed import backward_in_chunks, gather, sum_over_processes
from geoalign_hf.losses.objective import LossWeights, compute_losses
from geoalign_hf.training.step import encode_batch, split_batch
from geoalign_hf.training.teacher import Teacher

TERMS = [term.name for term in fields(LossWeights)]
EVERY = LossWeights(**dict.fromkeys(TERMS, 0.7))
CASES = [
    "uneven",
    "one has no region",
    "one has no caption",
    "one has no negative",
    "all have the same words",
]
WORLDS = (2, 3)


def leave_regions(row: dict, num: int) -> dict:
    return row | {name: row[name][:num] for name in REGION_COLUMNS if row.get(name)}


def list_rows(toy_rows) -> dict[str, list[dict]]:
    """Six rows by case, each with crops of its first two regions; the last rows are the last process's."""
    silent, plain = {"captions": [], "description": None}, {"hard_negatives": []}
    rows = toy_rows[1:7]
    cases = {
        "uneven": rows,
        "one has no region": rows[:3] + [leave_regions(row, 0) for row in rows[3:]],
        "one has no caption": [row | silent for row in rows[:3]] + rows[3:],
        "one has no negative": rows[:3] + [row | plain for row in rows[3:]],
        "all have the same words": [rows[0]] * 6,
    }
    return {
        case: [row | {"crops": list(range(min(2, len(row["boxes"]))))} for row in rows]
        for case, rows in cases.items()
    }


@pytest.fixture(scope="module")
def batches(processor, toy_rows):
    """Per case the one batch of one process, and the batches of two and of three."""
    collate = RowCollator(processor, 6)
    return {
        case: {num: [collate(rows[k : k + 6 // num]) for k in range(0, 6, 6 // num)] for num in (1, *WORLDS)}
        for case, rows in list_rows(toy_rows).items()
    }


def compute_grads(module, model, batch, weights, num_chunks: int = 1) -> dict[str, torch.Tensor]:
    """Losses and gradients by name."""
    model.zero_grad(set_to_none=True)
    targets = Teacher("self", model, 0.0).embed_crops(model, batch)

    def encode(chunk):
        return encode_batch(module, chunk, with_crops=True)

    def compute(embeds):
        return compute_losses(SimpleNamespace(**embeds), batch, weights, embeds["crop_embeds"], targets)

    if num_chunks == 1:
        losses = compute(encode(batch))
        losses["loss"].backward()
    else:
        no_sync = {"no_sync": module.no_sync} if module is not model else {}
        chunks = split_batch(batch, num_chunks)
        losses = backward_in_chunks(chunks, encode, compute, torch.Tensor.backward, **no_sync)
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
    return {name: loss.detach() for name, loss in losses.items()} | grads


def list_jobs() -> dict[str, tuple]:
    """Every case with every term, every term alone, and all of it in chunks: case, weights, chunks."""
    jobs = {case: (case, EVERY, 1) for case in CASES}
    for term in TERMS:
        alone = LossWeights(**dict.fromkeys(TERMS, 0.0) | {term: 1.0})
        jobs[f"{term} alone"] = ("uneven", alone, 1)
    return jobs | {f"{case}, in chunks": (case, EVERY, 2) for case in CASES}


JOBS = list_jobs()


def work(rank: int, world_size: int, model, batches: dict, folder):
    """One of several processes: do every job with its own batch, write what came of it."""
    torch.set_num_threads(1)
    store = f"file://{folder / 'store'}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=world_size)
    wrapped = DistributedDataParallel(model)
    results = {
        job: compute_grads(wrapped, model, batches[case][world_size][rank], weights, num_chunks)
        for job, (case, weights, num_chunks) in JOBS.items()
    }
    part = torch.full((2, 1), float(rank + 1)).requires_grad_()
    whole = gather(part)
    (whole * torch.arange(1.0, 2 * world_size + 1).unsqueeze(1)).sum().backward()
    results["gather"] = {"whole": whole.detach(), "grad": part.grad, "ids": gather(torch.tensor([7 + rank]))}
    results["sum"] = sum_over_processes(torch.tensor([1.0, rank], requires_grad=True))
    torch.save(results, folder / f"results-{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def results(built, batches, tmp_path_factory):
    """What two and three processes made of every job."""
    # Forking saves importing everything anew; autograd forbids it where it has threads for a device.
    method = "spawn" if torch.accelerator.is_available() else "fork"
    found = {}
    for num in WORLDS:
        folder = tmp_path_factory.mktemp(f"distributed-{num}")
        arguments = (num, copy.deepcopy(built[0]), batches, folder)
        torch.multiprocessing.start_processes(work, arguments, nprocs=num, start_method=method)
        found[num] = [torch.load(folder / f"results-{rank}.pt", weights_only=True) for rank in range(num)]
    return found


@pytest.fixture(scope="module")
def alone(built, batches):
    """What one process makes of all the rows, without chunks."""
    model = copy.deepcopy(built[0])
    return {
        job: compute_grads(model, model, batches[case][1][0], weights)
        for job, (case, weights, _) in JOBS.items()
    }


def check_grads(found: dict, expected: dict, model) -> None:
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    total = torch.stack([expected[name].norm() for name in names]).norm()
    for name in names:
        # The bias of keys has no gradient but rounding, hence the floor beside the relative bound.
        bound = 1e-5 * expected[name].norm() + 1e-7 * total
        assert (found[name] - expected[name]).norm() <= bound, name


@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize("num", WORLDS)
def test_several_processes_give_the_losses_of_one(results, alone, job, num):
    for result in results[num]:
        for name in result[job].keys() & {*TERMS, "loss"}:
            torch.testing.assert_close(result[job][name], alone[job][name], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize("num", WORLDS)
def test_several_processes_give_the_gradients_of_one(results, alone, model, job, num):
    for result in results[num]:
        check_grads(result[job], alone[job], model)


@pytest.mark.parametrize("num", WORLDS)
def test_all_processes_hold_the_same_gradients(results, model, num):
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    for name in names:
        for job in JOBS:
            assert all(torch.equal(result[job][name], results[num][0][job][name]) for result in results[num])


def test_the_cases_are_as_uneven_as_they_say(batches):
    num_regions = {
        case: [int(part["region_mask"].sum()) for part in parts[2]] for case, parts in batches.items()
    }
    assert num_regions["uneven"] == [13, 6]
    assert num_regions["one has no region"] == [13, 0]
    assert [part["negative_index"].shape[2] for part in batches["one has no negative"][2]] == [3, 0]
    assert [len(part["crop_index"]) for part in batches["uneven"][3]] == [4, 4, 3]


@pytest.mark.parametrize("num", WORLDS)
def test_gathered_parts_lie_in_the_order_of_ranks(results, num):
    for result in results[num]:
        assert result["gather"]["whole"].flatten().tolist() == [1.0 + k // 2 for k in range(2 * num)]
        assert result["gather"]["ids"].tolist() == list(range(7, 7 + num))
        assert result["sum"].tolist() == [num, sum(range(num))]


@pytest.mark.parametrize("num", WORLDS)
def test_the_gradient_of_a_part_is_the_sum_over_all_processes(results, num):
    # Each computes the same loss, so each part gets its weight from all of them; DDP's mean undoes it.
    grads = [result["gather"]["grad"].flatten().tolist() for result in results[num]]
    assert grads == [[num * (2 * k + 1.0), num * (2 * k + 2.0)] for k in range(num)]


def test_without_a_process_group_gather_gives_the_tensor_itself():
    for tensor in (torch.arange(3), torch.ones(2, 2, requires_grad=True)):
        assert gather(tensor) is tensor


# Chunks


@pytest.mark.parametrize("num_chunks", [2, 3, 4, 6])
@pytest.mark.parametrize("case", CASES)
def test_chunks_give_the_losses_and_gradients_of_the_undivided_batch(batches, alone, model, case, num_chunks):
    found = compute_grads(model, model, batches[case][1][0], EVERY, num_chunks)
    for name in (*TERMS, "loss"):
        torch.testing.assert_close(found[name], alone[case][name], rtol=1e-5, atol=1e-7)
    check_grads(found, alone[case], model)


@pytest.mark.parametrize("term", TERMS)
def test_chunks_give_the_gradient_of_every_term_alone(batches, alone, model, term):
    job = f"{term} alone"
    check_grads(compute_grads(model, model, batches["uneven"][1][0], JOBS[job][1], 3), alone[job], model)


def test_dropout_is_replayed_chunk_by_chunk(batches, model):
    model.train()
    for tower in (model.vision_model, model.text_model):
        for layer in tower.encoder.layers:
            layer.self_attn.dropout = 0.3
    batch = batches["uneven"][1][0]
    torch.manual_seed(5)
    found = compute_grads(model, model, batch, EVERY, 3)
    # The same chunks with one graph held over all of them, which draws the same numbers once.
    model.zero_grad()
    targets = Teacher("self", model, 0.0).embed_crops(model, batch)
    torch.manual_seed(5)
    parts = [encode_batch(model, chunk, with_crops=True) for chunk in split_batch(batch, 3)]
    embeds = {name: torch.cat([part[name] for part in parts]) for name in parts[0] if parts[0][name].ndim}
    embeds |= {name: parts[0][name] for name in ("logit_scale", "region_logit_scale")}
    crops = embeds["crop_embeds"], targets
    compute_losses(SimpleNamespace(**embeds), batch, EVERY, *crops)["loss"].backward()
    check_grads(found, {name: parameter.grad for name, parameter in model.named_parameters()}, model)


def test_a_batch_with_fewer_rows_of_text_than_chunks_is_split_all_the_same(processor, toy_rows, model):
    batch = RowCollator(processor, 6, text_kinds={"caption"})(
        [row | {"crops": []} for row in [toy_rows[0]] * 6]
    )
    assert len(batch["input_ids"]) == 1
    chunks = split_batch(batch, 4)
    assert [len(chunk["pixel_values"]) for chunk in chunks] == [1, 2, 1, 2]
    embeds = [encode_batch(model, chunk)["text_embeds"] for chunk in chunks]
    assert [len(part) for part in embeds] == [0, 0, 0, 1]
