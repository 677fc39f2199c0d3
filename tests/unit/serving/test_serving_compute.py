"""Engines of several models take turns on the cores."""

import threading
from collections.abc import Callable

from aimass_serving.compute import ComputePermit


def in_threads(num: int, work: Callable[[int], None]) -> None:
    threads = [threading.Thread(target=work, args=(number,)) for number in range(num)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_never_more_holders_than_permits() -> None:
    permit, lock = ComputePermit(2), threading.Lock()
    running, most = 0, 0

    def work(number: int) -> None:
        nonlocal running, most
        for _ in range(200):
            with permit:
                with lock:
                    running += 1
                    most = max(most, running)
                with lock:
                    running -= 1

    in_threads(6, work)
    assert 1 <= most <= 2
    assert running == 0


def test_engine_that_takes_the_permit_again_waits_behind_others() -> None:
    permit, order = ComputePermit(), list[str]()
    is_waiting = threading.Event()

    def other() -> None:
        is_waiting.set()
        with permit:
            order.append("other")

    with permit:
        thread = threading.Thread(target=other)
        thread.start()
        is_waiting.wait()
        while not permit.num_waiting:
            pass
    with permit:
        order.append("first again")
    thread.join()
    assert order == ["other", "first again"]


def test_permit_is_given_back_when_a_run_fails() -> None:
    permit = ComputePermit()
    for _ in range(2):
        try:
            with permit:
                raise ValueError
        except ValueError:
            pass
    with permit:
        pass
