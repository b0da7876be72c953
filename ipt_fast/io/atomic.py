"""Files that are written whole or not at all."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import IO, Any, Literal


@contextmanager
def atomic_path(path: str | Path, *, force: bool = True) -> Iterator[Path]:
    """Yield the name of a temporary file beside ``path``; at the end it is flushed to the disk and becomes ``path``.

    Where the body raises, the temporary file is removed and ``path`` is as it was before. Its name begins with a dot
    and keeps the suffix.

    Args:
        path: the file to write.
        force: replace a file that is there; otherwise it is an error.

    Raises:
        FileExistsError: ``path`` is there, and not ``force``.
        OSError: it cannot be written (the disk is full, no such folder); the message names ``path``.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem[:40]}.{secrets.token_hex(4)}.part{path.suffix}")
    try:
        yield temporary
        _sync(temporary)
        if not force and path.exists():
            raise FileExistsError(f"{path} is already there")
        os.replace(temporary, path)
    except OSError as error:
        if error.errno is None or error.filename not in (None, str(temporary)):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)
    with suppress(OSError):  # a rename is on the disk only when its folder is; not every system can do that
        _sync(path.parent)


@contextmanager
def atomic_write(path: str | Path, mode: Literal["w", "wb"] = "wb", *, force: bool = True) -> Iterator[IO[Any]]:
    """Yield a file that becomes ``path`` when it is complete; see ``atomic_path``. "w" is UTF-8 text.

    Raises:
        OSError: as ``atomic_path``.
    """
    with atomic_path(path, force=force) as temporary:
        if mode == "w":
            with open(temporary, "w", encoding="utf-8", newline="") as text:
                yield text
            return
        with _File(temporary, "wb") as file:
            try:
                yield file  # type: ignore[misc]
            except RuntimeError as error:
                raise (file.error or error) from error


class _File(FileIO):
    """A file that writes all bytes and remembers why it could not: torch.save tells a full disk as something else."""

    error: OSError | None = None

    def write(self, data: Any) -> int:
        view, done = memoryview(data).cast("B"), 0
        try:
            while done < len(view):
                done += super().write(view[done:]) or 0
        except OSError as error:
            self.error = self.error or error
            raise
        return done


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
