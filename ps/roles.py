"""Which ranks serve and which work, and the settings with which that is possible."""

from dataclasses import dataclass

from ringtmp.config.schema import RunConfig
from ringtmp.config.units import parse_bytes
from ringtmp.emulate.nodes import parse_pace
from ringtmp.errors import UserError


@dataclass(frozen=True)
class Roles:
    """Which ranks serve and which work.

    Attributes
    ----------
    servers, workers : tuple of int
        Ranks that serve, and ranks that work; ascending.
    """

    servers: tuple[int, ...]
    workers: tuple[int, ...]

    @classmethod
    def of(cls, config: RunConfig, ranks: int) -> "Roles":
        """Roles of `ranks` ranks by the configuration `config`. Raises `UserError` if no rank would work."""
        everybody = tuple(range(ranks))
        if config.consistency == "allreduce":
            return cls((), everybody)
        if config.colocate:
            return cls(everybody, everybody)
        if config.servers >= ranks:
            raise UserError(
                f"servers: {config.servers} of {ranks} rank{'s' * (ranks > 1)} would serve and none work; start "
                f"at least "
                f"{config.servers + 1}, or let every rank do both (--colocate on)"
            )
        return cls(everybody[: config.servers], everybody[config.servers :])

    def word(self, rank: int) -> str:
        """Role of rank `rank`: `server`, `worker` or `both`."""
        return "both" if {rank} <= {*self.servers} & {*self.workers} else "server" if rank in self.servers else "worker"


def check(config: RunConfig, ranks: int) -> None:
    """Raise `UserError` for settings in `config` with which `ranks` ranks cannot train."""
    workers = len(Roles.of(config, ranks).workers)
    if config.batch_size < workers:
        raise UserError(f"batch_size: {config.batch_size} leaves some of {workers} workers without a sample")
    if config.worker_micro_batches > config.batch_size // workers:
        raise UserError(
            f"worker_micro_batches: {config.worker_micro_batches} exceeds the {config.batch_size // workers} samples "
            "of a worker"
        )
    if config.backup >= workers:
        raise UserError(f"backup: {config.backup} of {workers} workers would be waited for by none; expected fewer")
    if config.state_copies > 1:
        raise UserError(
            f"state_copies: ps.train sends a server's part to one other rank; expected off or 1, got "
            f"{config.state_copies}"
        )
    if config.state_copies and config.consistency == "allreduce":
        raise UserError(
            "state_copies: with consistency allreduce every rank holds everything and none serves; expected off "
            "(checkpoints serve it)"
        )
    if config.state_copies and config.backup:
        raise UserError(
            "state_copies: with backup workers no step is whole on all servers at once; expected off "
            "(checkpoints serve it)"
        )
    if config.clip_norm is not None:
        raise UserError(
            "clip_norm: needs the gradients of all layers before the first of them can be updated; servers update "
            "range by range; --clip-value bounds each number"
        )
    if parse_bytes(config.message_size, "message_size") < 64:
        raise UserError(f"message_size: expected at least 64 bytes, got {config.message_size}")
    if config.node_speed:
        parse_pace(config.node_speed, ranks)
