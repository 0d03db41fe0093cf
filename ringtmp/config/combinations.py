"""Settings of a run that cannot be combined."""

from typing import Any


def check_combinations(config: Any) -> None:
    """Refuse settings that contradict each other.

    Parameters
    ----------
    config : RunConfig
        Its fields are valid one by one.

    Raises
    ------
    ValueError
        The message begins with the key of the setting and says what was expected.
    """
    if config.steps is not None and "epochs" in config.model_fields_set:
        raise ValueError("epochs and steps: expected one of them, got both")
    if config.mtbf is not None and "checkpoint_every" in config.model_fields_set:
        raise ValueError("checkpoint_every and mtbf: expected one of them, got both")
    if config.jitter and not config.node_speed:
        raise ValueError("jitter: only emulated nodes have it; give --node-speed as well")
    _check_ring(config)
    _check_server(config)


def _check_ring(config: Any) -> None:
    # Asynchronous schedules.
    if config.schedule == "pipedream" and config.mode == "ready":
        raise ValueError("mode: schedule pipedream has an order of its own; leave --mode out, or say strict")
    if config.schedule == "2bw" and config.mode == "strict":
        raise ValueError("mode: schedule 2bw follows no plan; leave --mode out, or say ready")
    if config.schedule in ("pipedream", "2bw") and config.state_copies:
        raise ValueError(
            f"state_copies: with schedule {config.schedule} no step is complete on all ranks at once; expected off "
            "(use checkpoints)"
        )
    if config.schedule in ("pipedream", "2bw") and config.balance == "auto":
        raise ValueError(f"balance: with schedule {config.schedule} layers have several versions; expected off")
    # A ring without its slow ranks, and rings side by side.
    if config.allow_idle_ranks:
        if config.layer_split != "measured":
            raise ValueError(f"allow_idle_ranks: speeds are known with layer_split measured, not {config.layer_split}")
        if config.effective_chunks > 1 or config.rings > 1:
            raise ValueError("allow_idle_ranks: expected one stage for each rank and one ring (chunks 1, rings 1)")
    if config.rings > 1:
        plain: dict[str, tuple[Any, ...]] = {"state_copies": (0,), "balance": ("off",)}
        plain["schedule"] = "naive", "gpipe", "1f1b", "interleaved", "zb-h1", "zb-h2", "interleaved-zb"
        for key, values in plain.items():
            if getattr(config, key) not in (None, *values):
                raise ValueError(f"{key}: with several rings side by side expected {' or '.join(map(str, values))}")
    if config.schedule == "pipedream" and config.clip_norm:
        raise ValueError("clip_norm: waits for all ranks in each step, which schedule pipedream does not")
    if config.schedule in ("pipedream", "2bw") and config.effective_chunks > 1:
        raise ValueError(f"chunks: schedule {config.schedule} takes 1, got {config.chunks}")


def _check_server(config: Any) -> None:
    if config.staleness is not None and config.consistency != "ssp":
        raise ValueError(f"staleness: only consistency ssp has a bound, not {config.consistency}")
    if config.backup and config.consistency != "bsp":
        raise ValueError(f"backup: only consistency bsp waits for workers of each step, not {config.consistency}")
    if config.colocate and config.servers > 1:
        raise ValueError("servers: with colocate every rank serves; leave servers out")
    if config.backup and config.local_steps > 1:
        raise ValueError("backup: a worker that is not waited for cannot make local steps; expected local_steps 1")
    if config.consistency == "allreduce":
        plain = {"servers": 1, "colocate": False, "compression": "none", "local_steps": 1}
        for key, value in plain.items():
            if getattr(config, key) != value:
                raise ValueError(f"{key}: consistency allreduce has no server; expected {value}")
