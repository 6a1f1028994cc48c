"""Notice within seconds that another process of the mesh is gone, wherever this one waits for it.

A collective does not always notice: the thread of one device gets the error of the closed connection while
the thread of another still waits for the first, and JAX then ends the process after its heartbeat timeout,
with a stack trace. So each process keeps a connection to the first one, and nothing is ever sent over it. The
system closes the connections of a process that ends, however it ends.
"""

from __future__ import annotations

import secrets
import socket
import threading
import time
from collections.abc import Callable

import numpy as np

from jora_core.base.notices import notice
from jora_core.specs.common import DistributedSpec

# Seconds that a process has to end by itself after another one is gone: by the error of a collective, which
# says more, or by an error of its own that all of them meet at once.
GRACE = 10
# A host without power or network closes nothing. Its connections end after 5 + 3 x 5 seconds.
_KEEPALIVE = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}
_CONNECT_TIMEOUT = 30
_TOKEN_BYTES = 16


class PeerWatch:
    """Connections of this process to the others: of the first process to all, of the others to the first."""

    def __init__(self, place: DistributedSpec, lost: Callable[[str], None]) -> None:
        """Open the connections and watch them. All processes of the mesh must do this.

        Args:
            place: this process's place among the others, which have joined already.
            lost: called on another thread, after another process has been gone for `GRACE` seconds, with the
                reason.
        """
        self.place = place
        self._lost = lost
        self._left = threading.Event()
        self._open: list[socket.socket] = []
        host = place.coordinator_address.rpartition(":")[0].strip("[]")
        server = _server() if place.process_id == 0 else None
        port, token = _announced(server)
        if server is not None:
            self._start(self._accept, server, token)
            return
        try:
            connection = socket.create_connection((host, port), _CONNECT_TIMEOUT)
            connection.sendall(token)
        except OSError as err:
            notice(
                f"process {place.process_id} cannot reach port {port} of {host} ({err}): it may notice later "
                "that another process is gone; let the hosts reach each other on all ports"
            )
            return
        self._begin(connection)

    def leave(self) -> None:
        """Close the connections, which tells the others that this process ends."""
        self._left.set()
        for connection in self._open:
            # A thread that waits for data keeps a closed socket open; a shutdown ends its wait.
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # the other side was faster
            connection.close()

    def _start(self, target: Callable[..., None], *arguments: object) -> None:
        threading.Thread(target=target, args=arguments, name="peer-watch", daemon=True).start()

    def _accept(self, server: socket.socket, token: bytes) -> None:
        missing = self.place.num_processes - 1
        with server:
            while missing:
                connection, _ = server.accept()
                connection.settimeout(_CONNECT_TIMEOUT)
                # Anybody may connect to an open port: only the processes of the mesh know the token.
                if _received(connection) == token:
                    missing -= 1
                    self._begin(connection)
                else:
                    connection.close()

    def _begin(self, connection: socket.socket) -> None:
        connection.settimeout(None)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEPALIVE.items():
            if hasattr(socket, name):  # not every system has all of them
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        self._open.append(connection)
        self._start(self._watch, connection)

    def _watch(self, connection: socket.socket) -> None:
        try:
            connection.recv(1)
            reason = "its connection was closed"
        except OSError as err:
            reason = err.strerror or str(err)
        time.sleep(GRACE)
        if not self._left.is_set():
            self._lost(reason)


def _server() -> socket.socket:
    # Both families where the system has them, since the address of the first process may be of either.
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", 0))


def _announced(server: socket.socket | None) -> tuple[int, bytes]:
    """Return the first process's port and token, in all processes."""
    from jax.experimental import multihost_utils

    sent = np.zeros(1 + _TOKEN_BYTES, np.int32)
    if server is not None:
        sent[:] = [server.getsockname()[1], *secrets.token_bytes(_TOKEN_BYTES)]
    port, *token = np.asarray(multihost_utils.broadcast_one_to_all(sent)).tolist()
    return port, bytes(token)


def _received(connection: socket.socket) -> bytes:
    """Return what a new connection sends first, up to the length of a token."""
    found = b""
    try:
        while len(found) < _TOKEN_BYTES and (more := connection.recv(_TOKEN_BYTES - len(found))):
            found += more
    except OSError:
        pass  # closed or silent: no process of the mesh
    return found
