"""The data of a step depends on the seed and the step, not on devices or interruptions."""

import pickle
from itertools import chain

import pytest

from quantsr.data.sampling import StepBatchSampler
from quantsr.errors import UserError

SIZE, BATCH, STEPS = 10, 4, 12


def sampler(**arguments) -> StepBatchSampler:
    return StepBatchSampler(**{"size": SIZE, "batch_size": BATCH, "steps": STEPS, "seed": 7} | arguments)


def test_one_batch_per_step():
    batches = list(sampler())
    assert len(batches) == STEPS
    assert all(len(batch) == BATCH for batch in batches)


def test_every_sample_is_visited_once_per_permutation():
    numbers = list(chain.from_iterable(sampler(steps=5)))
    first, second = numbers[:SIZE], numbers[SIZE:]
    assert sorted(first) == list(range(SIZE))
    assert sorted(second) == list(range(SIZE, 2 * SIZE))
    assert [number - SIZE for number in second] != first


def test_batch_may_be_larger_than_the_data_set():
    [batch] = sampler(size=3, batch_size=8, steps=1)
    assert sorted(batch[:3]) == [0, 1, 2]
    assert sorted(batch[3:6]) == [3, 4, 5]
    assert all(6 <= number < 9 for number in batch[6:])


@pytest.mark.parametrize("world_size", [1, 2, 4], ids=lambda size: f"{size} devices")
def test_devices_share_the_same_global_batches(world_size):
    ranks = [list(sampler(rank=rank, world_size=world_size)) for rank in range(world_size)]
    for step, shares in enumerate(zip(*ranks, strict=True)):
        interleaved = list(chain.from_iterable(zip(*shares, strict=True)))
        assert interleaved == sampler().global_batch(step)


@pytest.mark.parametrize("start", [0, 1, 5, STEPS], ids=lambda start: f"from step {start}")
def test_resumed_run_sees_the_rest_of_the_same_data(start):
    assert list(sampler(start_step=start)) == list(sampler())[start:]


def test_length_is_that_of_the_whole_run():
    assert len(sampler(start_step=5)) == STEPS


def test_longer_run_begins_like_a_shorter_one():
    assert list(sampler(steps=20))[:STEPS] == list(sampler())


def test_seeds_differ():
    assert list(sampler(seed=1)) != list(sampler(seed=2))


def test_it_can_be_iterated_again_and_pickled():
    one = sampler()
    assert list(one) == list(one) == list(pickle.loads(pickle.dumps(one)))


FIRST = ((2, 1), (3, 6))


def test_first_stages_can_have_batches_of_their_own():
    batches = list(sampler(first_batches=FIRST))
    assert [len(batch) for batch in batches] == [1, 1, 6, 6, 6, *[BATCH] * 7]
    assert list(chain.from_iterable(batches)) == list(chain.from_iterable(sampler(steps=12)))[: 2 + 18 + 28]


@pytest.mark.parametrize("start", [1, 2, 4, 5, 9], ids=lambda start: f"from step {start}")
def test_resumed_run_counts_them(start):
    assert list(sampler(first_batches=FIRST, start_step=start)) == list(sampler(first_batches=FIRST))[start:]


def test_indivisible_batch_is_refused():
    with pytest.raises(UserError, match="batch size of 4 cannot be divided among 3 devices"):
        sampler(world_size=3)
