"""Every API key that is accepted: those of the settings, and those of the file of limits.

The file may be read again while the server runs (`reread`): keys come and go, limits change, what
was used stays used, and a file that is broken changes nothing.
"""

import hmac
import logging
from collections.abc import Iterable
from pathlib import Path

from lookm.types import CachePolicy
from server.keys.account import Account, Count
from server.keys.limits import UNNAMED, KeyFile, KeyLimits, digest_of, names
from server.turns import current_owner

log = logging.getLogger("lookm.server")


def _nobody_counts(*_: object, **__: object) -> None:
    pass


class KeyBook:
    """Accounts by digest. Raises `ValueError` for a file that cannot be used.

    `listed` are the keys of the settings; `server_policy` is what a request gets where neither it
    nor its key says.
    """

    def __init__(
        self, listed: Iterable[str], path: Path | None, server_policy: CachePolicy
    ) -> None:
        self._listed = tuple(digest_of(key) for key in listed)
        self._path = path
        self._server_policy = server_policy
        self._accounts: dict[bytes, Account] = {}
        self.names: tuple[str, ...] = ()
        self.count: Count = _nobody_counts
        self.use(self.read())

    @property
    def asks(self) -> bool:
        """Whether a key is asked for at all."""
        return bool(self._accounts)

    @property
    def rereadable(self) -> bool:
        """Whether there is a file."""
        return self._path is not None

    def find(self, key: str) -> Account | None:
        """The account of a key that a client sent.

        Every key is compared, in constant time, so that the time tells nothing.
        """
        given = digest_of(key)
        matches = [each for each in self._accounts if hmac.compare_digest(given, each)]
        return self._accounts[matches[0]] if matches else None

    def current(self) -> Account | None:
        """The account of the request that the running task works for."""
        return self.account(current_owner().key)

    def account(self, key: str) -> Account | None:
        """By the digest, in hex; None for none, and for one that is accepted no longer."""
        return self._accounts.get(bytes.fromhex(key)) if key else None

    def read(self) -> KeyFile:
        """The file as it is now. Takes a moment; raises `ValueError`."""
        if self._path is None:
            return KeyFile()
        file = KeyFile.read(self._path, self._server_policy)
        if not file.keys and not self._listed:
            raise ValueError(f"--key-limits {self._path}: there is no key in it")
        return file

    def use(self, file: KeyFile) -> None:
        """Accept these keys, under these limits."""
        accepted = {digest: KeyLimits(UNNAMED, digest, file.others) for digest in self._listed}
        accepted |= {each.digest: each for each in file.keys}
        accounts = {}
        for digest, each in accepted.items():
            known = self._accounts.get(digest)
            if known is None:
                known = Account(each.name, digest, each.limits, self._counted)
            else:
                known.change(each.name, each.limits)
            accounts[digest] = known
        self._accounts = accounts
        self.names = tuple(names(file)) if accounts else ()

    def _counted(self, *about: object, **labels: str) -> None:
        self.count(*about, **labels)
