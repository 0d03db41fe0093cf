"""The first lines of a run: how the ranks share the cores, then data, model and division of the work."""

from collections.abc import Callable, Sequence

from ringtmp.run.hosts import Host
from ringtmp.run.job import Job
from ringtmp.schedule.registry import schedule_named


def announce(
    say: Callable[[str], None], job: Job, hosts: Sequence[Host], ring: bool, division: str, notes: Sequence[str]
) -> None:
    """Print the first lines of a launch.

    Parameters
    ----------
    say : callable
        Prints a line.
    job : Job
        The job.
    hosts : sequence of Host
        All hosts of the launch.
    ring : bool
        Whether the trainer is the ring.
    division : str
        How the trainer divides the work.
    notes : sequence of str
        Further lines.
    """
    # Say first what the cores allow, and what else to beware of.
    c = job.config
    exact = ring and c.rings == 1 and schedule_named(c.schedule).synchronous
    for line in sharing(hosts, c.threads, emulated=bool(c.node_speed), exact=exact):
        say(line)
    for warning in job.notes:
        say(f"warning: {warning}")

    # Describe data, model and division of the work.
    ranks = sum(len(host.ranks) for host in hosts)
    over = f"{ranks // c.rings} rank{'s' * (ranks > c.rings)}" + (f" in each of {c.rings} rings" if job.across else "")
    say(
        f"{job.info.name}: {job.info.n_train:,} training and {job.info.n_test:,} test samples; "
        f"{len(job.model.layers)} layers, {job.model.parameters:,} parameters over {over}; {division}"
    )
    for note in notes:
        say(note)
    if job.folder:
        source = " from the memory of the nodes" if job.recalled else ""
        resumed = f", resumed at step {job.start}{source}" if job.marker else ""
        say(f"run folder: {job.folder.path}{resumed}")


def sharing(hosts: Sequence[Host], threads: int, *, emulated: bool, exact: bool) -> list[str]:
    """Lines that say which ranks share cores, and what follows from that; none if every thread has a core.

    Parameters
    ----------
    hosts : sequence of Host
        All hosts of the launch.
    threads : int
        Threads of a rank.
    emulated : bool
        Whether nodes are emulated.
    exact : bool
        Whether the run gives the same numbers on any number of ranks.
    """
    # Join hosts with as many ranks and as many cores.
    crowded = [host for host in hosts if host.is_crowded(threads)]
    if not crowded:
        return []
    alike: dict[tuple[int, float], list[str]] = {}
    for host in crowded:
        alike.setdefault((len(host.ranks), host.cores), []).append(host.name)
    lines = []
    for (ranks, cores), names in alike.items():
        where = "" if len(hosts) == 1 else f"on {names[0]} " if len(names) == 1 else f"on each of {len(names)} hosts "
        who = f"{ranks} rank{'s' * (ranks > 1)}" + (f" with {threads} threads each" if threads > 1 else "")
        lines.append(f"{where}{who} share{'s' * (ranks == 1)} {_cores(cores)}{_turns(ranks, threads, cores)}")
    lines[-1] += "."

    # Say what the run can show, and how to have more.
    if emulated:
        what = (
            "The nodes are emulated (--node-speed): an action ends when its time on the emulated node is over, also on "
            "a shared core. A warning at the end says if this machine was too slow for that."
        )
        return [*lines[:-1], f"{lines[-1]} {what}"]
    room = sum(host.room(threads) for host in hosts)
    shown = "This run shows that training works" + (" and gives the same numbers as on one rank" if exact else "")
    least = int(min(host.cores / len(host.ranks) for host in crowded))
    if least >= 1:
        what = f"More threads than cores make no rank faster: use --threads {least}."
    else:
        many = "one rank (-n 1)" if room == 1 else f"{room} ranks (-n {room})"
        each = "a core" if threads == 1 else f"{threads} cores"
        what = f"{shown}; it cannot be faster than {many}. For speed give each rank {each}."
    return [*lines[:-1], f"{lines[-1]} {what}"]


def _cores(cores: float) -> str:
    return f"{cores:g} core{'s' * (cores != 1)}"


def _turns(ranks: int, threads: int, cores: float) -> str:
    """How many ranks take turns on a core, where both numbers are whole."""
    if threads > 1 or cores != int(cores) or ranks <= cores:
        return ""
    least, rest = divmod(ranks, int(cores))
    if cores == 1:
        return ": they take turns on it"
    return f": {least} or {least + 1} take turns on each" if rest else f": {least} take turns on each"
