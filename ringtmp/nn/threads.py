"""Threads of a rank, which share what can be shared without changing a bit."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from kernels.denormals import flush_for_good


class Pool:
    """Runs one function on several arguments, on this thread and `threads` - 1 others."""

    def __init__(self, threads: int) -> None:
        self._others = ThreadPoolExecutor(threads - 1, "ringtmp", flush_for_good) if threads > 1 else None

    def each(self, run: Callable[[Any], None], arguments: Iterable[Any]) -> None:
        """All of them, the first one here; an exception of any of them is raised."""
        first, *others = arguments
        waiting = [self._others.submit(run, other) for other in others] if self._others else []
        run(first)
        for each in waiting:
            each.result()
