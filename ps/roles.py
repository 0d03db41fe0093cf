"""Who serves and who works, and with which settings that is possible."""

from dataclasses import dataclass

from ringtmp.errors import UserError
from ringtmp.run.config import RunConfig
from ringtmp.run.pace import parse_pace
from ringtmp.run.units import parse_bytes


@dataclass(frozen=True)
class Roles:
    """Who serves and who works."""

    servers: tuple[int, ...]
    workers: tuple[int, ...]

    @classmethod
    def of(cls, config: RunConfig, ranks: int) -> "Roles":
        """As the configuration says. Raises `UserError` if nobody would be left to work."""
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
        """`server`, `worker` or `both`."""
        return "both" if {rank} <= {*self.servers} & {*self.workers} else "server" if rank in self.servers else "worker"


def check(config: RunConfig, ranks: int) -> None:
    """Raise `UserError` for settings with which so many ranks cannot train."""
    workers = len(Roles.of(config, ranks).workers)
    if config.batch_size < workers:
        raise UserError(f"batch_size: {config.batch_size} leaves some of {workers} workers without a sample")
    if config.pieces > config.batch_size // workers:
        raise UserError(f"pieces: {config.pieces} exceeds the {config.batch_size // workers} samples of a worker")
    if config.backup >= workers:
        raise UserError(f"backup: {config.backup} of {workers} workers would be waited for by none; expected fewer")
    if config.replicate > 1:
        raise UserError(
            f"replicate: ps.train sends a server's part to one other rank; expected off or 1, got {config.replicate}"
        )
    if config.replicate and config.consistency == "allreduce":
        raise UserError(
            "replicate: with consistency allreduce every rank holds everything and none serves; expected off "
            "(checkpoints serve it)"
        )
    if config.replicate and config.backup:
        raise UserError(
            "replicate: with backup workers no step is whole on all servers at once; expected off "
            "(checkpoints serve it)"
        )
    if config.clip_norm is not None:
        raise UserError(
            "clip_norm: needs the gradients of all layers before the first of them can be updated; servers update "
            "range by range; --clip-value bounds each number"
        )
    if parse_bytes(config.chunk, "chunk") < 64:
        raise UserError(f"chunk: expected at least 64 bytes, got {config.chunk}")
    if config.pace:
        parse_pace(config.pace, ranks)
