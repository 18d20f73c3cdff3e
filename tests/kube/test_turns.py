"""Turns: a limited number of slots, granted in deadline order, also when callers are cancelled."""

import asyncio

import pytest

from hftitan_operator.kube.turns import Turns


async def settle():
    for _ in range(5):
        await asyncio.sleep(0)


class Crowd:
    """Callers that compete for `at_once` slots, and the order in which they got one."""

    def __init__(self, at_once=1):
        self.turns, self.went = Turns(at_once), []

    def come(self, name, patience=0.0, leave=None):
        async def go():
            async with self.turns.take(patience):
                self.went.append(name)
                if leave:
                    await leave.wait()

        return asyncio.create_task(go())


def test_the_number_of_holders_is_limited():
    async def main():
        crowd, leave = Crowd(at_once=2), asyncio.Event()
        tasks = [crowd.come(name, leave=leave) for name in "abc"]
        await settle()
        assert crowd.went == ["a", "b"]
        leave.set()
        await asyncio.gather(*tasks)
        assert crowd.went == ["a", "b", "c"]

    asyncio.run(main())


def test_slots_are_granted_in_deadline_order():
    async def main():
        crowd, leave = Crowd(), asyncio.Event()
        tasks = [crowd.come("holder", leave=leave)]
        await settle()
        for name, patience in {"event": 5.0, "status": 2.0, "pod 1": 0.0, "pod 2": 0.0, "late status": 2.0}.items():
            tasks.append(crowd.come(name, patience))
            await settle()
        leave.set()
        await asyncio.gather(*tasks)
        assert crowd.went == ["holder", "pod 1", "pod 2", "status", "late status", "event"]

    asyncio.run(main())


def test_a_patient_caller_does_not_starve():
    async def main():
        crowd, leave = Crowd(), asyncio.Event()
        tasks = [crowd.come("holder", leave=leave)]
        await settle()
        tasks.append(crowd.come("status", 0.05))
        await asyncio.sleep(0.06)
        tasks.append(crowd.come("pod"))
        await settle()
        leave.set()
        await asyncio.gather(*tasks)
        assert crowd.went == ["holder", "status", "pod"]

    asyncio.run(main())


@pytest.mark.parametrize("granted", [False, True])
def test_the_slot_of_a_cancelled_caller_is_not_lost(granted):
    """The caller is cancelled before the slot is granted, or when it is granted but not used yet."""

    async def main():
        crowd, leave = Crowd(), asyncio.Event()
        quitter = None

        async def hold():
            async with crowd.turns.take():
                await leave.wait()
                if not granted:
                    quitter.cancel()
                    await settle()
            quitter.cancel()

        holder = asyncio.create_task(hold())
        await settle()
        quitter, other = crowd.come("quitter"), crowd.come("other")
        await settle()
        leave.set()
        async with asyncio.timeout(1):
            await asyncio.gather(holder, other, crowd.come("last"))
        assert quitter.cancelled()
        assert crowd.went == ["other", "last"]

    asyncio.run(main())


def test_an_exception_releases_the_slot():
    async def main():
        turns = Turns(1)
        with pytest.raises(ValueError):
            async with turns.take():
                raise ValueError
        async with asyncio.timeout(1), turns.take():
            pass

    asyncio.run(main())
