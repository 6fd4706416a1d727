"""Parts of a work on several threads, each computing by itself."""

import os
import signal
import threading

import pytest
import torch

from mspose.models.kernels import attend
from mspose.models.threads import in_threads


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_every_part_is_done_once_and_in_two_threads_that_compute_by_themselves(two_threads):
    done, threads, meeting = [], set(), threading.Barrier(2)

    def work(number):
        if number < 2:
            meeting.wait(timeout=60)  # passes only where two threads are at work
        threads.add((threading.get_ident(), torch.get_num_threads()))
        done.append(number)

    in_threads(work, [(number,) for number in range(50)])
    assert sorted(done) == list(range(50))
    assert len(threads) == 2
    assert {count for _, count in threads} == {1}
    assert threading.get_ident() not in {thread for thread, _ in threads}
    assert torch.get_num_threads() == 2
    assert in_another_thread(torch.get_num_threads) == 2


def in_another_thread(call):
    found = []
    thread = threading.Thread(target=lambda: found.append(call()))
    thread.start()
    thread.join()
    return found[0]


def test_one_thread_or_few_parts_stay_in_the_calling_thread(two_threads):
    seen = []
    in_threads(lambda: seen.append((threading.get_ident(), torch.get_num_threads())), [()] * 15)
    torch.set_num_threads(1)
    in_threads(lambda: seen.append((threading.get_ident(), torch.get_num_threads())), [()] * 50)
    in_threads(lambda: seen.append(None), [])
    assert seen == [(threading.get_ident(), 2)] * 15 + [(threading.get_ident(), 1)] * 50


def test_an_error_in_a_part_reaches_the_caller(two_threads):
    def work(number):
        if number == 3:
            raise ValueError("part 3")

    with pytest.raises(ValueError, match="part 3"):
        in_threads(work, [(number,) for number in range(20)])


@pytest.mark.parametrize("inference", [True, False])
def test_parts_may_write_to_tensors_of_inference_mode(two_threads, inference):
    with torch.inference_mode(inference):
        sums = torch.zeros(16)
        in_threads(lambda number: sums[number].add_(number), [(number,) for number in range(16)])
    assert sums.tolist() == list(range(16))


def test_attention_is_the_same_on_any_number_of_threads(two_threads):
    tensors = [torch.randn(10, 2, 520, 8, requires_grad=True) for _ in range(3)]

    def run():
        torch.manual_seed(1)
        output = attend(*tensors, dropout=0.3)
        return [output.detach(), *torch.autograd.grad(output.square().sum(), tensors)]

    on_two = run()
    torch.set_num_threads(1)
    for one, two in zip(run(), on_two, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_starts_threads_of_its_own(two_threads):
    def work(number):
        done.append(number)

    done = []
    in_threads(work, [(number,) for number in range(16)])
    child = os.fork()
    if child == 0:
        signal.alarm(
            30
        )  # a process that waits for threads which it does not have would wait for ever
        in_threads(work, [(number,) for number in range(16, 32)])
        os._exit(0 if sorted(done) == list(range(32)) else 1)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_the_threads_record_gradients_only_where_the_caller_does(two_threads, mode):
    modes, weight = set(), torch.ones(3, requires_grad=True)

    def work():
        modes.add(
            (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), (2 * weight).requires_grad)
        )

    with mode():
        in_threads(work, [()] * 50)
        assert modes == {
            (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), (2 * weight).requires_grad)
        }
