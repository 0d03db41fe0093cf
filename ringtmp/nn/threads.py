"""Threads of a rank, which share work where that changes no bit."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ringtmp.kernels.denormals import flush_for_good


class Pool:
    """Runs one function on several arguments, on the calling thread and `threads` - 1 others."""

    def __init__(self, threads: int) -> None:
        self._others = ThreadPoolExecutor(threads - 1, "ringtmp", flush_for_good) if threads > 1 else None

    def each(self, run: Callable[[Any], None], arguments: Iterable[Any]) -> None:
        """Call `run` with each of `arguments`, at least one; the first call runs here. Raises the calls' exceptions."""
        first, *others = arguments
        waiting = [self._others.submit(run, other) for other in others] if self._others else []
        run(first)
        for each in waiting:
            each.result()
