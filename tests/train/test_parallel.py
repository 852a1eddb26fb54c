import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing import start_processes

from parhelion.errors import UserError
from parhelion.train.parallel import SynchronisedBatchNorm, accelerator_for, agree_on_attempt, synchronise_batch_norms

B, C, H, W = 3, 5, 7, 11


def in_processes(act, folder, count=2):
    """Run act(rank) in `count` processes that can reach each other; what each returns."""

    def start(rank):
        torch.set_num_threads(1)
        dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=count)
        torch.save(act(rank), folder / f"{rank}.pt")
        dist.destroy_process_group()

    start_processes(start, nprocs=count, start_method="fork")
    return [torch.load(folder / f"{rank}.pt") for rank in range(count)]


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("momentum", [0.1, None])
def test_batch_norm_over_two_processes_is_that_of_the_whole_batch(tmp_path, momentum):
    torch.manual_seed(1)
    images = torch.randn(2 * B, C, H, W, dtype=torch.float64) * 3 + 100
    weights = torch.randn(2 * B, C, H, W, dtype=torch.float64)
    alone = nn.BatchNorm2d(C, momentum=momentum).double()
    nn.init.normal_(alone.weight)
    start = copy.deepcopy(alone)

    def norm_and_gradients(norm, images, weights):
        images = images.clone().requires_grad_()
        for _ in range(2):
            out = norm(images)
        (out * weights).sum().backward()
        return out.detach(), images.grad, norm.weight.grad, norm.bias.grad, dict(norm.state_dict())

    def act(rank):
        norm = synchronise_batch_norms(nn.Sequential(copy.deepcopy(start)))[0]
        assert type(norm) is SynchronisedBatchNorm
        rows = slice(rank * B, (rank + 1) * B)
        return norm_and_gradients(norm, images[rows], weights[rows])

    out, gradient, weight, bias, state = norm_and_gradients(alone, images, weights)
    parts = in_processes(act, tmp_path)
    torch.testing.assert_close(torch.cat([part[0] for part in parts]), out)
    torch.testing.assert_close(torch.cat([part[1] for part in parts]), gradient)
    torch.testing.assert_close(sum(part[2] for part in parts), weight)
    torch.testing.assert_close(sum(part[3] for part in parts), bias)
    for part in parts:
        for name, tensor in state.items():
            torch.testing.assert_close(part[4][name], tensor)


def test_a_synchronised_norm_alone_or_in_evaluation_is_the_plain_one():
    torch.manual_seed(2)
    norm, images = nn.BatchNorm2d(C), torch.randn(B, C, H, W)
    ours = synchronise_batch_norms(copy.deepcopy(norm))
    assert torch.equal(ours(images), norm(images))
    assert torch.equal(ours.eval()(images), norm.eval()(images))
    assert ours.state_dict().keys() == norm.state_dict().keys()


def test_a_precision_that_cannot_be_had_is_one_sentence():
    if torch.accelerator.is_available():
        pytest.skip("an accelerator has fp16")
    with pytest.raises(UserError, match="precision is fp16, which cannot be had"):
        accelerator_for("fp16")


def test_every_attempt_has_a_name_of_its_own_whoever_comes_first():
    store, processes = dist.HashStore(), 3
    names = []
    for _ in range(2):
        with ThreadPoolExecutor(processes) as pool:
            late = [pool.submit(agree_on_attempt, store, rank, processes) for rank in (2, 1)]
            # By now both have met what the attempt before left, and been answered by none.
            with pytest.raises(TimeoutError):
                late[0].result(timeout=0.5)
            first = agree_on_attempt(store, 0, processes)
            assert [other.result(timeout=30) for other in late] == [first, first]
        names.append(first)
    # A first process that proposed a name and was killed before it heard from the others.
    store.set("attempt", "dead")
    with ThreadPoolExecutor(2) as pool:
        other = pool.submit(agree_on_attempt, store, 1, 2)
        names.append(agree_on_attempt(store, 0, 2))
        assert other.result(timeout=30) == names[-1]
    assert len(set(names)) == 3
    assert "dead" not in names
