"""Leases: one machine at a time works on a key of a shared store.

A lease is a file `leases/NAME/GENERATION`, made by a conditional write, so that one of several machines wins.
Its owner writes it anew several times in its term. Who waits and sees the same content for a whole term, by a
clock of its own, takes the owner for dead and makes the next generation. No two clocks are compared. The
highest generation owns the lease. An owner that was taken for dead, because its machine slept, finds that out
before it publishes (:attr:`Lease.lost`).
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from flows.engine.errors import StageFailed
from flows.engine.shared.remote_files import RemoteFiles
from jora_core.base.errors import InputError

TERM_SECONDS = 60.0
FOLDER = "leases"

logger = logging.getLogger("jora.store")


class Lease:
    """A lease that this process holds.

    Attributes:
        lost: whether another machine has taken it over.
    """

    def __init__(self, remote: RemoteFiles, name: str, term: float) -> None:
        self.lost = False
        self._remote = remote
        self._name = name
        self._term = term
        self._generation = 0
        self._beat = 0
        self._ended = threading.Event()
        # A renewal in progress would write the file again behind its removal.
        self._writing = threading.Lock()
        self._token = secrets.token_hex(8)
        self._renewed = time.monotonic()

    def take(self, on_wait: Callable[[str], None] | None) -> None:
        """Wait until the lease is free, and take it."""
        seen: tuple[int, bytes | None] = (0, None)
        since = time.monotonic()
        told = False
        while True:
            top = _top(self._remote, self._name)
            content = self._remote.read(_path(self._name, top)) if top else None
            if top and content is None:
                continue  # just given back
            if content is not None:
                if (top, content) != seen:
                    seen, since = (top, content), time.monotonic()
                if time.monotonic() - since < self._term:
                    if on_wait and not told:
                        on_wait(owner(content))
                        told = True
                    time.sleep(min(self._term / 10, 5.0))
                    continue
                logger.warning(
                    "%s: no sign of life from %s for %g s; taking over",
                    self._name,
                    owner(content),
                    self._term,
                )
            self._generation = top + 1
            if self._claim():
                break
        threading.Thread(target=self._renew, name=f"lease {self._name}", daemon=True).start()

    def check(self) -> bool:
        """Return whether this process still holds the lease."""
        if not self.lost and time.monotonic() - self._renewed > self._term / 2:
            self.lost = _top(self._remote, self._name) != self._generation
        return not self.lost

    def give_back(self) -> None:
        """Free the lease. A store that does not answer frees it itself after the term."""
        self._ended.set()
        if self.lost:
            return
        with self._writing, suppress(StageFailed, InputError):
            # The lower ones first: while the own file is there, nobody takes a lower one for the highest.
            names = sorted(
                int(name) for name in self._remote.stamps(f"{FOLDER}/{self._name}") if name.isdigit()
            )
            if names and names[-1] == self._generation:
                self._remote.remove(*(_path(self._name, number) for number in names))

    def _claim(self) -> bool:
        path = _path(self._name, self._generation)
        mine = self._content()
        if not self._remote.create(path, mine):
            return False
        self._remote.settle()
        self._renewed = time.monotonic()
        # The highest, because a slow reader of an old list could make a generation below the owner's.
        if _top(self._remote, self._name) == self._generation and self._remote.read(path) == mine:
            return True
        if self._remote.read(path) == mine:
            self._remote.remove(path)
        return False

    def _renew(self) -> None:
        while not self._ended.wait(self._term / 4):
            with self._writing:
                if self._ended.is_set() or not self._renewed_once():
                    return

    def _renewed_once(self) -> bool:
        """Write the lease anew; return False if another machine has it."""
        try:
            # A taken-over owner writes nothing any more.
            if _top(self._remote, self._name) != self._generation:
                self.lost = True
                logger.warning("%s: another machine has taken the lease over", self._name)
                return False
            self._beat += 1
            self._remote.write(_path(self._name, self._generation), self._content())
            self._renewed = time.monotonic()
        except (StageFailed, InputError) as error:
            logger.warning("%s: lease not renewed: %s", self._name, error)
        return True

    def _content(self) -> bytes:
        told = {
            "host": socket.gethostname(),
            "process": os.getpid(),
            "token": self._token,
            "beat": self._beat,
        }
        return json.dumps(told).encode()


@contextmanager
def hold(
    remote: RemoteFiles, name: str, term: float, on_wait: Callable[[str], None] | None = None
) -> Iterator[Lease]:
    """Hold a lease during the block; wait first while another machine holds it.

    Args:
        remote: files of the shared store.
        name: name of the lease.
        term: seconds without a sign of life after which an owner counts as dead.
        on_wait: called once with who holds it, if it is not free.
    """
    lease = Lease(remote, name, term)
    lease.take(on_wait)
    try:
        yield lease
    finally:
        lease.give_back()


def held(remote: RemoteFiles, folder: str) -> dict[str, bytes]:
    """Return the leases below a folder whose file is there, by name, with their content."""
    names: dict[str, int] = {}
    for path in remote.stamps(f"{FOLDER}/{folder}"):
        name, _, generation = path.rpartition("/")
        if name and generation.isdigit():
            names[name] = max(int(generation), names.get(name, 0))
    paths = {_path(f"{folder}/{name}", generation): name for name, generation in names.items()}
    return {paths[path]: data for path, data in remote.read_many(list(paths)).items()}


def alive(remote: RemoteFiles, folder: str, term: float) -> dict[str, str]:
    """Return the owners of the leases below a folder that give a sign of life, by name of the lease.

    Takes up to a term if some owner gives none, and removes the leases of those.

    Args:
        remote: the shared store.
        folder: folder of the leases in the store.
        term: seconds after which a lease without a sign of life ends.
    """
    first = held(remote, folder)
    waiting, found = dict(first), dict[str, str]()
    deadline = time.monotonic() + term
    while waiting and time.monotonic() < deadline:
        time.sleep(min(term / 10, 5.0))
        now = held(remote, folder)
        for name in list(waiting):
            if name not in now:
                del waiting[name]  # given back meanwhile
            elif now[name] != first[name]:
                found[name] = owner(now[name])
                del waiting[name]
    for name in waiting:
        for generation in remote.stamps(f"{FOLDER}/{folder}/{name}"):
            remote.remove(f"{FOLDER}/{folder}/{name}/{generation}")
    return found


def owner(content: bytes) -> str:
    """Return who wrote a lease, such as `gpu-2 (process 4711)`."""
    try:
        told = json.loads(content)
        return f"{told['host']} (process {told['process']})"
    except (ValueError, KeyError, TypeError):
        return "another machine"  # a lease that is being written


def _top(remote: RemoteFiles, name: str) -> int:
    return max(_generations(remote, name), default=0)


def _generations(remote: RemoteFiles, name: str) -> list[int]:
    return [int(one) for one in remote.stamps(f"{FOLDER}/{name}") if one.isdigit()]


def _path(name: str, generation: int) -> str:
    return f"{FOLDER}/{name}/{generation}"
