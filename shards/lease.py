"""One writer at a time in a dataset's folder.

On this machine the folder itself is locked (``flock``); the system lets go when the process ends, however it ends.

An object store has no locks, so a writer leases the folder there: ``FOLDER/ledger/writer.json`` says who writes. It is
created only if it does not exist (``If-None-Match: *``), renewed every minute, and removed at the end. Who finds one that
has not been renewed for five minutes takes it over, by a request that holds only for the version it read
(``If-Match``); where the holder was a process of this machine that is no more, at once.

What this guarantees, and what not. Two runs that start at the same time: one of them gets the lease. A run that sleeps
for more than five minutes (a closed laptop) may lose it and finds out at its next renewal: from then on two runs write.
That costs work, not data, as long as both were started with the same config: units are deterministic, so both write equal
bytes under equal names, and every object is whole at any time. Machines' clocks must agree to within a minute or two with
the store's. Stores that ignore ``If-None-Match`` (some older S3 look-alikes) only notice a writer that came before.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import platform
import secrets
import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from shards.errors import ConfigError, DatasetError
from shards.storage import check_access, explained, file_system, is_remote, key_of, scheme_of

LEASE_NAME = "ledger/writer.json"
RENEW_S = 60.0
STALE_S = 300.0
_ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class Holder:
    """Who writes.

    Attributes:
        host: name of the machine.
        processes: which set of process ids ``pid`` belongs to: boot and name space; empty where that cannot be told.
        token: random, so that no two holders are equal.
        renewals: how often the lease was renewed; it makes every version another one.
    """

    host: str
    processes: str
    pid: int
    token: str
    renewals: int = 0


@contextmanager
def exclusive_writer(folder: Path, *, renew_s: float = RENEW_S, stale_s: float = STALE_S) -> Generator[None]:
    """Hold a dataset's folder for one run at a time; see above for what that means in an object store.

    Args:
        renew_s, stale_s: of the lease of a remote folder.

    Raises:
        DatasetError: another run is writing there.
        ConfigError: the bucket is missing, denied or out of reach.
    """
    with _leased(folder, renew_s, stale_s) if is_remote(folder) else _locked(folder):
        yield


@contextmanager
def _locked(folder: Path) -> Generator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    opened = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DatasetError(
                f"{folder}: expected no other run to write there, found one; wait for it or choose another output"
            ) from error
        yield
    finally:
        os.close(opened)


@contextmanager
def _leased(folder: Path, renew_s: float, stale_s: float) -> Generator[None]:
    check_access(folder)
    lease = _Lease(folder / LEASE_NAME)
    with explained(folder):
        lease.acquire(stale_s)
    stop = threading.Event()
    thread = threading.Thread(target=_renew, args=(lease, stop, renew_s), name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        # Not released, it is taken over in five minutes; whatever else is being raised here matters more.
        with suppress(ConfigError), explained(lease.path):
            lease.release()


def _renew(lease: _Lease, stop: threading.Event, renew_s: float) -> None:
    log = logging.getLogger(__name__)
    while not stop.wait(renew_s):
        try:
            with explained(lease.path):
                is_ours = lease.renew()
        except ConfigError as error:  # the network; the next renewal may get through
            log.warning("the lease could not be renewed, trying again in %.0f s: %s", renew_s, error)
            continue
        if not is_ours:
            log.warning("%s: another run has taken over and writes there too: the same bytes, twice", lease.path)
            return


class _Lease:
    """The lease object, as its holder or somebody who would be sees it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fs, self._key = file_system(path), key_of(path)
        self._me = Holder(platform.node(), _processes(), os.getpid(), secrets.token_hex(8))
        self._version = ""

    def acquire(self, stale_s: float) -> None:
        """Take the lease; ``DatasetError`` while another holds it."""
        for _ in range(_ATTEMPTS):
            found = self._read()
            if found is None:
                with suppress(FileExistsError):
                    self._fs.pipe_file(self._key, self._data(), mode="create")
            else:
                holder, version, age_s = found
                if age_s <= stale_s and not _is_gone(holder):
                    raise DatasetError(
                        f"{self.path}: expected no other run to write there, found process {holder.pid} of {holder.host}, "
                        f"which was there {max(0.0, age_s):.0f} s ago; wait for it or choose another output. If that run "
                        f"was killed, it can be taken over {max(1.0, stale_s - age_s):.0f} s from now"
                    )
                self._replace(version)
            # Believed only when it is read: a store may have ignored the condition.
            if self._is_mine():
                return
        raise DatasetError(f"{self.path}: expected to get the lease, found others being faster; choose another output")

    def renew(self) -> bool:
        """Whether it is still ours."""
        self._me = replace(self._me, renewals=self._me.renewals + 1)
        self._replace(self._version)
        return self._is_mine()

    def release(self) -> None:
        """Remove it, unless it is another's by now."""
        if self._is_mine():
            self._fs.rm_file(self._key)

    def _data(self) -> bytes:
        return (json.dumps(asdict(self._me), indent=1) + "\n").encode()

    def _replace(self, version: str) -> None:
        """Write ours in place of that version, or nothing if it is gone."""
        if scheme_of(self.path) == "s3":
            bucket, _, key = self._key.partition("/")
            # 412 arrives as an OSError, 404 as FileNotFoundError; which of them it was, the next read tells.
            with suppress(OSError):
                self._fs.call_s3("put_object", Bucket=bucket, Key=key, Body=self._data(), IfMatch=version)
            return
        found = self._read()
        if found is not None and found[1] == version:
            self._fs.pipe_file(self._key, self._data())

    def _is_mine(self) -> bool:
        found = self._read()
        if found is None or found[0].token != self._me.token:
            return False
        self._version = found[1]
        return True

    def _read(self) -> tuple[Holder, str, float] | None:
        """Holder, version and age in seconds; None if there is no lease."""
        try:
            facts = self._fs.info(self._key)
            data = self._fs.cat_file(self._key)
            modified: datetime = self._fs.modified(self._key)
        except FileNotFoundError:
            return None
        age_s = (datetime.now(UTC) - modified).total_seconds()
        version = str(facts.get("ETag") or facts.get("etag") or facts.get("generation"))
        try:
            return Holder(**json.loads(data)), version, age_s
        except (ValueError, TypeError):
            return Holder("another version of this program", "", 0, ""), version, age_s


def _is_gone(holder: Holder) -> bool:
    """Whether it was a process we would see if it still were."""
    if not holder.processes or holder.processes != _processes():
        return False
    try:
        os.kill(holder.pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _processes() -> str:
    """What makes process ids comparable: the same boot and the same name space; host names of containers repeat."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""
