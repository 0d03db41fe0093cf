"""Settings of a run that cannot be combined."""

from typing import Any

from ringtmp.schedule.registry import AUTO, Schedule, chunks_fault, plan_names, schedule_named


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
    schedule = schedule_named(config.schedule)
    _check_schedule(config, schedule)
    # A ring without its slow ranks, and rings side by side.
    if config.allow_idle_ranks:
        if config.layer_split != "measured":
            raise ValueError(f"allow_idle_ranks: speeds are known with layer_split measured, not {config.layer_split}")
        if config.effective_chunks > 1 or config.rings > 1:
            raise ValueError("allow_idle_ranks: expected one stage for each rank and one ring (chunks 1, rings 1)")
    if config.rings > 1:
        for key, value in {"state_copies": 0, "balance": "off"}.items():
            if getattr(config, key) != value:
                raise ValueError(f"{key}: with several rings side by side expected {value}")
        if config.schedule == AUTO or not schedule.synchronous:
            raise ValueError(f"schedule: with several rings side by side expected {' or '.join(plan_names())}")


def _check_schedule(config: Any, schedule: Schedule) -> None:
    named = f"schedule {schedule.name}"
    if schedule.order and config.mode == "ready":
        raise ValueError(f"mode: {named} has an order of its own; leave --mode out, or say strict")
    if config.schedule not in (None, AUTO) and schedule.follows_rule and config.mode == "strict":
        raise ValueError(f"mode: {named} follows no plan; leave --mode out, or say ready")
    if not schedule.synchronous:
        if config.state_copies:
            raise ValueError(
                f"state_copies: with {named} no step is complete on all ranks at once; expected off (use checkpoints)"
            )
        if config.balance == "auto":
            raise ValueError(f"balance: with {named} layers have several versions; expected off")
        if config.clip_norm and schedule.weights == "latest":
            raise ValueError(f"clip_norm: waits for all ranks in each step, which {named} does not")
    followed = not schedule.plan or config.effective_mode == "strict"
    if followed and (fault := chunks_fault(schedule, config.effective_chunks)):
        raise ValueError(fault)


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
