"""Whose files are whose: one folder for each open page, gone when the page is closed."""

import shutil
import tempfile
import threading
from collections.abc import Iterable
from pathlib import Path


class ClosedError(Exception):
    """The page was closed, or has another photo by now."""


class Visits:
    """Folders under ``root`` by the name that the browser's session has; names are never part of a path."""

    def __init__(self, root: Path):
        self._root, self._lock = root, threading.Lock()
        self._folders: dict[str, tuple[Path, ...]] = {}

    def renew(self, session: str, upload: Path | None = None) -> Path:
        """Delete what a session had, and return its new, empty folder; ``upload`` is a folder that goes with it."""
        folder = Path(tempfile.mkdtemp(dir=self._root))
        with self._lock:
            old = self._folders.get(session, ())
            self._folders[session] = (folder, upload) if upload else (folder,)
        _delete(path for path in old if path != upload)
        return folder

    def folder(self, session: str) -> Path | None:
        """Return the folder of a session, if it has one."""
        with self._lock:
            return self._folders.get(session, (None,))[0]

    def check(self, session: str, folder: Path) -> None:
        """Raise ``ClosedError`` once ``folder`` is no longer that of the session."""
        if self.folder(session) != folder:
            raise ClosedError

    def close(self, session: str) -> None:
        """Delete what a session had."""
        with self._lock:
            folders = self._folders.pop(session, ())
        _delete(folders)


def _delete(folders: Iterable[Path]) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
