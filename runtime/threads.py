"""Work on many items in threads: decoding a photo and an engine's work release the GIL."""

from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from threading import Semaphore, Thread
from typing import TypeVar

from runtime.environment import usable_cores

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(work: Callable[[Item], Result], items: Iterable[Item], workers: int = 0) -> Generator[Result]:
    """`work` of each item, in order, done in threads ahead of the consumer and never more than a few items ahead.

    A result is there as soon as it is done, also where the next item is long in coming. `workers` 0: one a core. Closed
    early it returns once those at work have ended.
    """
    workers = workers or usable_cores()
    ahead: SimpleQueue[Future[Result] | None] = SimpleQueue()
    room = Semaphore(2 * workers)
    pool = ThreadPoolExecutor(workers)

    def feed() -> None:
        try:
            for item in items:
                room.acquire()
                ahead.put(pool.submit(work, item))
        except BaseException as error:  # of finding the next item: it is the consumer's to handle, in its turn
            failed: Future[Result] = Future()
            failed.set_exception(error)
            ahead.put(failed)
        ahead.put(None)

    Thread(target=feed, daemon=True).start()  # a daemon: it may wait for a line of stdin that never comes
    try:
        while (done := ahead.get()) is not None:
            room.release()
            yield done.result()
    finally:
        pool.shutdown(cancel_futures=True)
        room.release()  # so that the feeder goes on, and ends at the pool that is shut
