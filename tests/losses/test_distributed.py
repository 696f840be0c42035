"""Laws of training on several processes and in chunks: both give the gradient of the full batch."""

import copy
from types import SimpleNamespace

import pytest
import torch
import torch.distributed
from gradients import ALL_TERMS, TERMS, check_grads, compute_grads, list_cases
from torch.nn.parallel import DistributedDataParallel
from toy_rows import CONCEPTS

from geoalign_hf.data.collator import RowCollator
from geoalign_hf.losses.distributed import gather, sum_over_processes
from geoalign_hf.losses.objective import LossWeights, compute_losses
from geoalign_hf.training.step import encode_batch, split_batch
from geoalign_hf.training.teacher import Teacher

SMOOTHING = 0.1
WORLDS = (2, 3)
VOCABULARY = [*CONCEPTS, "a concept without regions", "another one"]
CASES = [
    "uneven",
    "one has no region",
    "one has no caption",
    "one has no negative",
    "all have the same words",
    "uneven, with a vocabulary",
    "one has no region, with a vocabulary",
    "broader concepts",
    "broader concepts, with a vocabulary",
]
NARROWER = dict(zip(CONCEPTS, ["vehicle", "bus", "small vehicle", "car", "small car", "ship"], strict=False))


@pytest.fixture(scope="module")
def batches(processor, toy_rows):
    """Per case the one batch of one process, and the batches of two and of three."""

    def split(rows, vocabulary=None):
        collate = RowCollator(processor, 6, vocabulary=vocabulary)
        return {num: [collate(rows[k : k + 6 // num]) for k in range(0, 6, 6 // num)] for num in (1, *WORLDS)}

    cases = list_cases(toy_rows)
    renamed = [
        row | {"concepts": [NARROWER.get(name, name) for name in row["concepts"]]} for row in cases["uneven"]
    ]
    cases["broader concepts"] = renamed
    names = [*NARROWER.values(), *CONCEPTS]
    broader = {"broader concepts, with a vocabulary": split(renamed, names)}
    with_vocabulary = broader | {
        f"{case}, with a vocabulary": split(cases[case], VOCABULARY) for case in CASES[:2]
    }
    return {case: split(rows) for case, rows in cases.items()} | with_vocabulary


def list_jobs() -> dict[str, tuple]:
    """Every case with every term, every term alone, and all of it in chunks: case, weights, chunks."""
    jobs = {case: (case, ALL_TERMS, 1) for case in CASES}
    for term in TERMS:
        alone = LossWeights(**dict.fromkeys(TERMS, 0.0) | {term: 1.0})
        jobs[f"{term} alone"] = ("uneven", alone, 1)
    return jobs | {f"{case}, in chunks": (case, ALL_TERMS, 2) for case in CASES}


JOBS = list_jobs()


def work(rank: int, world_size: int, model, batches: dict, folder):
    """Run every job on one of several processes with its own batch, and write the results."""
    torch.set_num_threads(1)
    store = f"file://{folder / 'store'}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=world_size)
    wrapped = DistributedDataParallel(model)
    results = {
        job: compute_grads(wrapped, model, batches[case][world_size][rank], weights, num_chunks, SMOOTHING)
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
    """The results of every job on two and on three processes."""
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
    """The results of every job on one process with all the rows, without chunks."""
    model = copy.deepcopy(built[0])
    return {
        job: compute_grads(model, model, batches[case][1][0], weights, 1, SMOOTHING)
        for job, (case, weights, _) in JOBS.items()
    }


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


def test_the_cases_are_uneven(batches):
    num_regions = {
        case: [int(part["region_mask"].sum()) for part in parts[2]] for case, parts in batches.items()
    }
    assert num_regions["uneven"] == [8, 17]
    assert num_regions["one has no region"] == [8, 0]
    assert [part["negative_index"].shape[2] for part in batches["one has no negative"][2]] == [3, 0]
    assert [len(part["crop_index"]) for part in batches["uneven"][3]] == [3, 4, 4]


@pytest.mark.parametrize("num", WORLDS)
def test_gathered_parts_are_in_the_order_of_ranks(results, num):
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
    found = compute_grads(model, model, batches[case][1][0], ALL_TERMS, num_chunks, SMOOTHING)
    for name in (*TERMS, "loss"):
        torch.testing.assert_close(found[name], alone[case][name], rtol=1e-5, atol=1e-7)
    check_grads(found, alone[case], model)


@pytest.mark.parametrize("term", TERMS)
def test_chunks_give_the_gradient_of_every_term_alone(batches, alone, model, term):
    job = f"{term} alone"
    found = compute_grads(model, model, batches["uneven"][1][0], JOBS[job][1], 3, SMOOTHING)
    check_grads(found, alone[job], model)


def test_dropout_is_replayed_chunk_by_chunk(batches, model):
    model.train()
    for tower in (model.vision_model, model.text_model):
        for layer in tower.encoder.layers:
            layer.self_attn.dropout = 0.3
    batch = batches["uneven"][1][0]
    torch.manual_seed(5)
    found = compute_grads(model, model, batch, ALL_TERMS, 3)
    # The same chunks with one graph held over all of them, which draws the same numbers once.
    model.zero_grad()
    targets = Teacher("self", model, 0.0).embed_crops(model, batch)
    torch.manual_seed(5)
    parts = [encode_batch(model, chunk, with_crops=True) for chunk in split_batch(batch, 3)]
    embeds = {name: torch.cat([part[name] for part in parts]) for name in parts[0] if parts[0][name].ndim}
    embeds |= {name: parts[0][name] for name in ("logit_scale", "region_logit_scale")}
    crops = embeds["crop_embeds"], targets
    compute_losses(SimpleNamespace(**embeds), batch, ALL_TERMS, *crops)["loss"].backward()
    check_grads(found, {name: parameter.grad for name, parameter in model.named_parameters()}, model)


def test_a_batch_with_fewer_rows_of_text_than_chunks_can_be_split(processor, toy_rows, model):
    batch = RowCollator(processor, 6, text_kinds={"caption"})(
        [row | {"crops": []} for row in [toy_rows[0]] * 6]
    )
    assert len(batch["input_ids"]) == 1
    chunks = split_batch(batch, 4)
    assert [len(chunk["pixel_values"]) for chunk in chunks] == [1, 2, 1, 2]
    embeds = [encode_batch(model, chunk)["text_embeds"] for chunk in chunks]
    assert [len(part) for part in embeds] == [0, 0, 0, 1]
