"""Dynamic batching: order, size, waiting, refusal, failures, and nothing lost when it closes."""

import threading
import time

import numpy as np
import pytest

from xcite.server.batching import Batcher, QueueFullError


def _doubled(items):
    return list(2 * np.array(items))


def test_everyone_gets_the_own_answer_and_batches_form_across_callers():
    sizes = []
    batcher = Batcher(_doubled, batch=8, wait=0.05, observe=sizes.append)
    answers = {}

    def ask(i):
        answers[i] = batcher.submit(i).result(timeout=60)

    callers = [threading.Thread(target=ask, args=(i,)) for i in range(40)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    batcher.close()
    assert answers == {i: 2 * i for i in range(40)}
    assert sum(sizes) == 40
    assert max(sizes) <= 8
    assert len(sizes) < 20  # company was waited for


def test_a_lone_item_waits_no_longer_than_told():
    batcher = Batcher(_doubled, batch=64, wait=0.05)
    started = time.monotonic()
    assert batcher.submit(3).result(timeout=60) == 6
    seconds = time.monotonic() - started
    batcher.close()
    assert 0.04 < seconds < 5


def test_places_are_bounded_and_given_back():
    batcher = Batcher(_doubled, places=3)
    with batcher.admit(2):
        with pytest.raises(QueueFullError) as full, batcher.admit(2):
            pass
        assert full.value.retry_after >= 1
        with batcher.admit(1):
            assert batcher.taken == 3
    with batcher.admit(3):
        pass
    assert batcher.taken == 0
    batcher.close()


def test_a_failure_reaches_its_batch_alone():
    def divide(items):
        return [12 // item for item in items]

    batcher = Batcher(divide, batch=1, wait=0)
    bad, good = batcher.submit(0), batcher.submit(4)
    with pytest.raises(ZeroDivisionError):
        bad.result(timeout=60)
    assert good.result(timeout=60) == 3
    assert batcher.alive
    batcher.close()


def test_closing_answers_what_was_accepted_and_takes_no_more():
    def slow(items):
        time.sleep(0.02)
        return items

    batcher = Batcher(slow, batch=2, wait=10)
    futures = [batcher.submit(i) for i in range(7)]
    batcher.close()
    assert [future.result(timeout=0) for future in futures] == list(range(7))
    with pytest.raises(RuntimeError, match="closed"):
        batcher.submit(8)


def test_a_cancelled_item_is_not_computed():
    release, computed = threading.Event(), []

    def answer(items):
        release.wait(10)
        computed.extend(items)
        return items

    batcher = Batcher(answer, batch=1, wait=0)
    first, second = batcher.submit("first"), batcher.submit("second")
    while not first.running():
        time.sleep(0.001)
    assert second.cancel()
    release.set()
    batcher.close()
    assert computed == ["first"]
