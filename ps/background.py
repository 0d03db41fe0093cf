"""The work of a rank besides training: it serves, moves checkpoints and copies, and watches the other ranks."""

from collections.abc import Sequence

from ringtmp.comm.messages import Mailbox
from ringtmp.errors import RunFailure
from ringtmp.ps.assembly import ServerParts
from ringtmp.ps.coordinator import Coordinator
from ringtmp.ps.messages import PartWritten, StopRequest
from ringtmp.ps.serving.mirror import Incoming, Outgoing
from ringtmp.ps.setup import RankSetup
from ringtmp.trace.recorder import clock

_WATCH_INTERVAL = 500_000_000  # nanoseconds between two looks at the other ranks


class Background:
    """Polled by the worker while it trains and waits, and until all workers have ended.

    Parameters
    ----------
    setup : RankSetup
        Setup of this rank.
    mailbox : Mailbox
        Delivers control messages.
    serving : ServerParts or None
        The server of a rank that serves.
    incoming : sequence of Incoming
        Other servers' copies that this rank holds.
    coordinator : Coordinator or None
        The coordinator on rank 0.
    """

    def __init__(
        self,
        setup: RankSetup,
        mailbox: Mailbox,
        serving: ServerParts | None,
        incoming: Sequence[Incoming],
        coordinator: Coordinator | None,
    ) -> None:
        self.setup, self.mailbox, self.serving = setup, mailbox, serving
        self.incoming, self.coordinator = incoming, coordinator
        self._stop_requested = False
        self._watched = clock()

    def poll(self) -> bool:
        """Advance all of it; True if anything has happened."""
        moved = False
        if self.serving:
            moved = self.serving.server.poll()
            moved |= self.serving.collector.poll()
            if self.serving.replica:
                moved |= self.serving.replica.poll(not moved)
        for each in self.incoming:
            moved |= each.poll()
        for part in self.setup.session.checkpoints.poll():
            self.mailbox.send(0, PartWritten(*part), part.step)
            moved = True
        now = clock()
        if now - self._watched > _WATCH_INTERVAL:
            # If this rank stood still it received nothing, so no worker counts as silent.
            if self.serving and now - self._watched > 4 * _WATCH_INTERVAL:
                self.serving.server.excuse_silence(now)
            self._watched = now
            self._watch(now)
        return moved

    def _watch(self, now: int) -> None:
        """Pass on a signal, and check whether the other ranks are alive.

        No rank can continue without a server: raises `RunFailure` if one on this host was killed. All can continue
        without a worker: rank 0 drops those that are lost.
        """
        setup, session = self.setup, self.setup.session
        if session.stop_request() and not self._stop_requested:
            self._stop_requested = True
            self.mailbox.send(0, StopRequest(session.stop_request()))
        if not setup.works:
            session.recorder.between_steps(-1)
        for server in setup.roles.servers:
            host, pid = session.peers.places[server]
            if session.peers.has_ended(server):
                raise RunFailure(f"the server on rank {server} of {host} (process {pid}) was killed")
        if self.coordinator and self.serving and not setup.works:
            limit = setup.config.worker_timeout
            self.coordinator.check_workers(self.serving.server.silent(now, int(limit * 1e9)), limit)

    def finished(self) -> bool:
        """Whether this rank has nothing left to serve, to collect or to write."""
        if self.setup.session.checkpoints.writer.busy:
            return False
        return not self.serving or (self.serving.server.finished() and self.serving.collector.idle())

    def finish_replication(self) -> bool:
        """Let copies that are under way arrive, and send no further ones; True once that is done."""
        mirror = self._mirror
        sent = mirror.finish() if mirror else True
        return sent and all(each.ended for each in self.incoming)

    def close(self) -> None:
        """Free all requests; call when everything is finished."""
        if self._mirror:
            self._mirror.close()
        for each in self.incoming:
            each.close()
        if self.serving:
            self.serving.server.close()

    @property
    def _mirror(self) -> Outgoing | None:
        """The channel by which this server's copies go to another rank."""
        replica = self.serving.replica if self.serving else None
        return replica.mirror if replica else None
