"""The compiled kernels with several threads, from several threads and in forked processes: the same bits each time."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from kernel_cases import (
    CASES,
    FEW,
    KERNEL_DTYPES,
    Case,
    assert_equal,
    axial,
    content,
    edges,
    halo,
    result_and_gradients,
)
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from parhelion import native

dtypes = pytest.mark.parametrize("dtype", KERNEL_DTYPES, ids=str)
few = pytest.mark.parametrize("case", [CASES[name] for name in FEW], ids=FEW)
kernels = pytest.mark.skipif(native.why_not_native() is not None, reason=str(native.why_not_native()))


@dtypes
@pytest.mark.parametrize("case", edges())
@pytest.mark.usefixtures("threads")
def test_the_number_of_threads_changes_no_bit(case: Case, dtype: torch.dtype, level: str):
    tensors = case.tensors(dtype)
    torch.set_num_threads(1)
    one = result_and_gradients(case, tensors)
    for threads in (2, 3):
        torch.set_num_threads(threads)
        assert_equal(result_and_gradients(case, tensors), one)


@dtypes
@pytest.mark.usefixtures("threads")
def test_runs_with_two_threads_on_many_blocks_are_equal_bit_by_bit(dtype: torch.dtype, level: str):
    torch.set_num_threads(2)
    for case in (halo(29, 43, 4, 3, heads=2, batch=3), content(29, 43, heads=5), axial(29, 43, "h", batch=3)):
        tensors = case.tensors(dtype)
        expected = result_and_gradients(case, tensors)
        for _ in range(3):
            assert_equal(result_and_gradients(case, tensors), expected)


@kernels
@pytest.mark.parametrize("threads_each", [1, 2])
@pytest.mark.usefixtures("threads")
def test_two_threads_of_python_may_attend_at_once(threads_each: int):
    cases = [CASES[name] for name in FEW]
    tensors = [case.tensors(torch.float32) for case in cases]
    expected = [result_and_gradients(*pair) for pair in zip(cases, tensors, strict=True)]

    def work(turn: int) -> list[Tensor]:
        torch.set_num_threads(threads_each)  # counts for this thread of Python only
        return result_and_gradients(cases[turn % len(cases)], tensors[turn % len(cases)])

    with ThreadPoolExecutor(2) as pool:
        for turn, actual in enumerate(pool.map(work, range(40))):
            assert_equal(actual, expected[turn % len(cases)])


class Attended(Dataset):
    """What a data set that calls the operations would give."""

    def __len__(self) -> int:
        return 2 * len(FEW)

    def __getitem__(self, index: int) -> list[Tensor]:
        case = CASES[FEW[index % len(FEW)]]
        return result_and_gradients(case, case.tensors(torch.float32))


@kernels
@pytest.mark.usefixtures("threads")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_forked_workers_of_a_loader_may_attend_after_their_parent_did_with_two_threads():
    torch.set_num_threads(2)
    expected = [Attended()[index] for index in range(len(FEW))]
    loader = DataLoader(Attended(), batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=60)
    for index, actual in enumerate(loader):
        assert_equal(actual, expected[index % len(FEW)])
