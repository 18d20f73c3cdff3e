"""The work queue: one worker per key, no lost wakes, pauses after failures."""

import asyncio
from collections import Counter
from itertools import pairwise

import pytest

from hftitan_operator.kube import retry
from hftitan_operator.kube.workqueue import WorkQueue
from hftitan_operator.port import Conflict


def drive(scenario, work, workers=4):
    """Run `scenario(queue)` while the workers run; return its result."""

    async def main():
        queue = WorkQueue(work, workers)
        running = asyncio.create_task(queue.run())
        try:
            return await asyncio.wait_for(scenario(queue), 20)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    return asyncio.run(main())


async def until(condition):
    while not condition():
        await asyncio.sleep(0.001)


def test_wakes_before_the_work_starts_are_merged():
    done = Counter()

    async def work(key):
        done[key] += 1

    async def scenario(queue):
        for _ in range(100):
            queue.wake("a")
        queue.wake("b")
        await until(lambda: done["b"])
        await asyncio.sleep(0.02)

    drive(scenario, work)
    assert done == {"a": 1, "b": 1}


def test_wakes_during_the_work_cause_one_more_pass():
    done, gate = Counter(), asyncio.Event()

    async def work(key):
        done[key] += 1
        await gate.wait()

    async def scenario(queue):
        queue.wake("a")
        await until(lambda: done["a"] == 1)
        for _ in range(100):
            queue.wake("a")
        gate.set()
        await until(lambda: done["a"] == 2)
        await asyncio.sleep(0.02)

    drive(scenario, work)
    assert done == {"a": 2}


def test_a_key_never_has_two_workers():
    busy, most, passes = Counter(), Counter(), Counter()

    async def work(key):
        busy[key] += 1
        most[key] = max(most[key], busy[key])
        passes[key] += 1
        await asyncio.sleep(0.001)
        busy[key] -= 1

    async def scenario(queue):
        for i in range(300):
            queue.wake(i % 3)
            await asyncio.sleep(0.0002)
        await until(lambda: not any(busy.values()) and not queue.depth)

    drive(scenario, work, workers=8)
    assert set(most.values()) == {1}
    assert all(count >= 2 for count in passes.values())


def test_a_key_returns_after_its_delay_or_at_a_wake():
    times = []

    async def work(key):
        times.append(asyncio.get_running_loop().time())
        return {1: 0.05, 2: 3600.0}.get(len(times))

    async def scenario(queue):
        queue.wake("a")
        await until(lambda: len(times) == 2)
        queue.wake("a")
        await until(lambda: len(times) == 3)

    drive(scenario, work)
    assert times[1] - times[0] >= 0.05


def test_failures_are_retried_after_growing_pauses_that_wakes_do_not_shorten(monkeypatch):
    pauses = []
    monkeypatch.setattr(retry, "backoff", lambda failures: pauses.append(failures) or 0.05)
    tries, errors = [], []

    async def work(key):
        tries.append(asyncio.get_running_loop().time())
        if len(tries) < 4:
            raise OSError("down")

    async def scenario(queue):
        queue.on_error = lambda key, error: errors.append(str(error))
        queue.wake("a")
        while len(tries) < 4:
            queue.wake("a")
            await asyncio.sleep(0.001)

    drive(scenario, work)
    assert pauses == [1, 2, 3]
    assert errors == ["down"] * 3
    assert all(b - a >= 0.045 for a, b in pairwise(tries))


def test_a_success_resets_the_failures(monkeypatch):
    pauses = []
    monkeypatch.setattr(retry, "backoff", lambda failures: pauses.append(failures) or 0.001)
    outcomes = iter([OSError("x"), None, OSError("y"), None])
    done = []

    async def work(key):
        outcome = next(outcomes)
        done.append(outcome)
        if outcome:
            raise outcome

    async def scenario(queue):
        queue.wake("a")
        await until(lambda: len(done) == 2)
        queue.wake("a")
        await until(lambda: len(done) == 4)

    drive(scenario, work)
    assert pauses == [1, 1]


def test_a_key_that_always_fails_does_not_block_others():
    done = Counter()

    async def work(key):
        done[key] += 1
        if key == "bad":
            raise ValueError("always")

    async def scenario(queue):
        queue.wake("bad")
        for i in range(50):
            queue.wake(i)
        await until(lambda: sum(count for key, count in done.items() if key != "bad") == 50)

    drive(scenario, work, workers=1)


def test_a_conflict_is_retried_at_once_a_limited_number_of_times(monkeypatch):
    pauses = []
    monkeypatch.setattr(retry, "backoff", lambda failures: pauses.append(failures) or 0.001)
    tries = []

    async def work(key):
        tries.append(key)
        if len(tries) < 6:
            raise Conflict("changed")

    async def scenario(queue):
        queue.wake("a")
        await until(lambda: len(tries) == 6)

    drive(scenario, work)
    assert pauses == [3, 4, 5]


def test_retry_after_is_limited(monkeypatch):
    monkeypatch.setattr(retry, "LONGEST_PAUSE", 0.01)
    tries = []

    class Busy(OSError):
        retry_after = 3600.0

    async def work(key):
        tries.append(key)
        if len(tries) == 1:
            raise Busy

    async def scenario(queue):
        queue.wake("a")
        await until(lambda: len(tries) == 2)

    drive(scenario, work)


def test_drain_waits_for_the_running_pass_and_starts_no_other():
    done, gate = [], asyncio.Event()

    async def work(key):
        await gate.wait()
        done.append(key)

    async def scenario(queue):
        queue.wake("a")
        await asyncio.sleep(0.01)
        draining = asyncio.create_task(queue.drain(5.0))
        queue.wake("b")
        await asyncio.sleep(0.01)
        gate.set()
        await draining
        await asyncio.sleep(0.02)

    drive(scenario, work, workers=1)
    assert done == ["a"]


def test_drain_has_a_timeout():
    async def work(key):
        await asyncio.Event().wait()

    async def scenario(queue):
        queue.wake("a")
        await asyncio.sleep(0.01)
        began = asyncio.get_running_loop().time()
        await queue.drain(0.05)
        return asyncio.get_running_loop().time() - began

    assert drive(scenario, work) == pytest.approx(0.05, abs=1.0)
