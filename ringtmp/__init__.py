"""RingTMP: neural networks whose layers are divided over MPI ranks in a ring.

    import ringtmp
    result = ringtmp.train(data="digits", epochs=5)

The names below are loaded on first use, so that ``import ringtmp`` costs nothing and the command line can set the
thread counts before NumPy is imported.
"""

import os
from typing import Any

# Set before MPI starts: libfabric's TCP keeps 64 messages for which no receive is posted yet, and then reads nothing
# more from that rank, not even a message that is waited for, so that two ranks could wait for each other. The number
# of messages in transit is bounded by the slots of the stages.
os.environ.setdefault("FI_TCP_MAX_SAVED", str(1 << 20))

__version__ = "0.1.0"
__all__ = ["Result", "RunConfig", "UserError", "train"]

_HOME = {
    "train": "ringtmp.ring.trainer",
    "Result": "ringtmp.run.result",
    "RunConfig": "ringtmp.config.schema",
    "UserError": "ringtmp.errors",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        from importlib import import_module

        globals()[name] = found = getattr(import_module(_HOME[name]), name)
        return found
    raise AttributeError(f"module 'ringtmp' has no attribute {name!r}")
