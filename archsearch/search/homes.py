"""Trials' folders on a filesystem that driver and workers share; the work is done in a local copy."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import time
import uuid
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING

from archsearch.study.schema import CHECKPOINT, SPEC

if TYPE_CHECKING:
    from pyarrow.fs import FileInfo, FileSystem

_PARTIAL = ".partial"
_WHOLE_AT_ONCE = frozenset({"s3", "gcs", "abfs"})
"""Object stores: a file is there once all of it is."""
_SETTLE_SECONDS = 2.0


def open_filesystem(uri: str) -> tuple[FileSystem, str]:
    """The filesystem of `uri`, a local path or a URI that pyarrow or an installed fsspec knows, and the path
    there. Raises ValueError for one that neither can open."""
    from pyarrow import ArrowException
    from pyarrow.fs import FileSystem, FSSpecHandler, LocalFileSystem, PyFileSystem

    if "://" not in uri:
        return LocalFileSystem(), str(Path(uri).absolute())
    try:
        found, path = FileSystem.from_uri(uri)
        return found, path
    except (ArrowException, OSError, ValueError) as error:
        problem = str(error)
    try:
        import fsspec

        other, path = fsspec.core.url_to_fs(uri)
    except (ImportError, ValueError, OSError) as error:
        raise ValueError(f"{uri}: cannot open this storage: {error}; {problem}") from None
    return PyFileSystem(FSSpecHandler(other)), path


def absolute(uri: str) -> str:
    """`uri`, a relative path made absolute: other machines have other working directories."""
    return uri if "://" in uri else str(Path(uri).expanduser().absolute())


def joined(uri: str, *names: str) -> str:
    """`uri` with further path segments; what follows a `?` stays at the end."""
    place, mark, query = uri.partition("?")
    return "/".join((place.rstrip("/"), *names)) + mark + query


def local_path(uri: str) -> Path | None:
    """The path of a storage that is a folder here (a network filesystem's included), None for others."""
    if "://" not in uri:
        return Path(uri).absolute()
    return Path(open_filesystem(uri)[1]) if uri.startswith("file://") else None


def delete_files(uri: str, name: str) -> None:
    """Delete every file of that name in the folder at `uri` and below."""
    system, path = open_filesystem(uri)
    for info in _below(system, path):
        if info.base_name == name:
            system.delete_file(info.path)


def reach(mark: str, own: str, files: list[str]) -> list[str]:
    """Of a node: which of the file `mark` in a storage and the local `files` it does not see. Where it sees
    `mark`, it writes the file `own` there, to show that it can."""
    missing = [file for file in files if not os.path.exists(file)]
    if not exists(mark):
        return [mark, *missing]
    write(own, b"")
    return missing


def exists(uri: str) -> bool:
    """Whether there is a file at `uri`."""
    from pyarrow.fs import FileType

    system, path = open_filesystem(uri)
    return bool(system.get_file_info(path).type == FileType.File)


def folders(uri: str) -> list[str]:
    """The names of the folders in the folder at `uri`, which need not be there."""
    from pyarrow.fs import FileSelector, FileType

    system, path = open_filesystem(uri)
    found = system.get_file_info(FileSelector(path, allow_not_found=True))
    return sorted(info.base_name for info in found if info.type == FileType.Directory)


def write(uri: str, data: bytes) -> None:
    """Write a small file, whole, and the folders above it."""
    system, path = open_filesystem(uri)
    _write_whole(system, io.BytesIO(data), path)


def write_new(uri: str, data: bytes) -> None:
    """Write a small file unless there is one; what it holds afterwards is what the first writer wrote.

    Where the file system can link files (local ones and most network ones can) nothing comes between. Others
    can only write: the last writer wins, which is settled once two have written, so that this waits a little
    before it returns. What remains: a writer that looked before the first one wrote, and whose file arrives
    more than `_SETTLE_SECONDS` after the first one's, replaces it unseen.
    """
    system, path = open_filesystem(uri)
    partial = f"{path}.{uuid.uuid4().hex[:8]}{_PARTIAL}"
    if system.type_name == "local":
        system.create_dir(str(PurePosixPath(path).parent), recursive=True)
        Path(partial).write_bytes(data)
        try:
            os.link(partial, path)
            return
        except FileExistsError:
            return
        except OSError:  # no links there
            pass
        finally:
            os.unlink(partial)
    if not exists(uri):
        write(uri, data)
        time.sleep(_SETTLE_SECONDS)


def read(uri: str) -> bytes:
    """What a small file holds."""
    system, path = open_filesystem(uri)
    with system.open_input_stream(path) as source:
        found: bytes = source.read()
        return found


def delete(uri: str) -> None:
    """Delete a file that may not be there."""
    system, path = open_filesystem(uri)
    with contextlib.suppress(OSError):
        system.delete_file(path)


def _below(system: FileSystem, path: str) -> list[FileInfo]:
    from pyarrow.fs import FileSelector

    found: list[FileInfo] = system.get_file_info(FileSelector(path, allow_not_found=True, recursive=True))
    return found


class Home:
    """One trial's folder at `uri`, of which `folder`, empty at first, is the copy that is worked on.

    spec: the trial's experiment file. Every file arrives whole or not at all, and a checkpoint after the
    files that it belongs with, so that whoever fetches the folder finds something to go on from.
    """

    def __init__(self, uri: str, spec: str, folder: Path):
        self.folder = folder
        self._spec = spec
        self._system, self._path = open_filesystem(uri)
        self._kept: dict[str, tuple[int, int]] = {}

    def fetch(self) -> None:
        """Copy what is kept here. What another experiment's spec stands beside is put aside instead."""
        from pyarrow.fs import FileType

        names = {
            info.path.removeprefix(self._path).lstrip("/"): info.path
            for info in _below(self._system, self._path)
            if info.type == FileType.File
        }
        if SPEC in names and self._read(names[SPEC]) != self._spec.encode():
            # A storage is one run's (`owner`). But a run's folder may have been copied, two may have taken a
            # bucket at once, and another version may spell the spec otherwise: its checkpoint need not fit.
            self._put_aside(names)
            names = {}
        for name, path in names.items():
            if name.endswith(_PARTIAL):
                continue
            target = self.folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with self._system.open_input_stream(path) as source, open(target, "wb") as file:
                shutil.copyfileobj(source, file, 1 << 20)
            self._kept[name] = _stamp(target)
        if SPEC not in names:
            (self.folder / SPEC).write_text(self._spec)

    def store(self) -> None:
        """Make what is kept equal to the local folder."""
        found = {
            str(path.relative_to(self.folder)): path
            for path in self.folder.rglob("*")
            if path.is_file() and not path.name.startswith(".") and not path.name.endswith(_PARTIAL)
        }
        for name in sorted(found, key=lambda name: PurePosixPath(name).name == CHECKPOINT):
            stamp = _stamp(found[name])
            if self._kept.get(name) != stamp:
                self._write(found[name], f"{self._path}/{name}")
                self._kept[name] = stamp
        for name in self._kept.keys() - found.keys():
            with contextlib.suppress(FileNotFoundError):
                self._system.delete_file(f"{self._path}/{name}")
            del self._kept[name]

    def _put_aside(self, names: dict[str, str]) -> None:
        """Move files, path by name, to a folder beside this one that is nobody else's."""
        aside = f"{self._path}-replaced-{uuid.uuid4().hex[:8]}"
        for name, path in names.items():
            target = f"{aside}/{name}"
            self._system.create_dir(str(PurePosixPath(target).parent), recursive=True)
            self._system.move(path, target)

    def _read(self, path: str) -> bytes:
        with self._system.open_input_stream(path) as file:
            found: bytes = file.read()
            return found

    def _write(self, source: Path, target: str) -> None:
        with open(source, "rb") as file:
            _write_whole(self._system, file, target)


def _write_whole(system: FileSystem, source: IO[bytes], target: str) -> None:
    """The file at `target` holds all of `source` or is as it was."""
    whole = system.type_name in _WHOLE_AT_ONCE
    first = target if whole else f"{target}.{uuid.uuid4().hex[:8]}{_PARTIAL}"
    if not whole:
        system.create_dir(str(PurePosixPath(target).parent), recursive=True)
    with system.open_output_stream(first) as stream:
        shutil.copyfileobj(source, stream, 1 << 20)
    if not whole:
        system.move(first, target)


def _stamp(path: Path) -> tuple[int, int]:
    """What changes when a file does."""
    status = os.stat(path)
    return status.st_mtime_ns, status.st_size
