"""Two text domains that every machine has: `reference` and `code`, from the interpreter's standard library.

`reference` is its docstrings (over 80 characters) and `pydoc_data.topics`; `code` its sources with docstrings
and comments stripped. Both are split by module (topics by their key) into train, validation and test, built
once into a cache directory and read as memory maps.
"""

import gc
import hashlib
import json
import os
import platform
import shutil
import sys
import sysconfig
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from archsearch.data.splitting import SPLITS, Document, check_split, content_key, join_documents, split_of
from archsearch.data.standard_library import read_code, read_reference
from archsearch.spec.errors import nearest

BUILDER_VERSION = 1
"""Raised whenever the same standard library would give other bytes."""

_READERS = {"reference": read_reference, "code": read_code}


@dataclass(frozen=True)
class Domain:
    """A built domain: its directory, and the manifest that says what lies there."""

    directory: Path
    manifest: dict[str, Any]

    def tokens(self, split: str) -> npt.NDArray[np.uint8]:
        """Token ids of a split, a read-only map of uint8 (tokens,); END_OF_DOCUMENT ends each document."""
        check_split(split)
        return np.memmap(self.directory / f"{split}.bin", dtype=np.uint8, mode="r")

    def modules(self, split: str) -> list[str]:
        """Names of the modules (and `topics:KEY`) whose text lies in a split."""
        check_split(split)
        return list(self.manifest["splits"][split]["modules"])

    def verify(self) -> None:
        """Compares every file with the manifest's sha256. Raises ValueError at the first that differs."""
        for split, entry in self.manifest["splits"].items():
            found = hashlib.sha256((self.directory / f"{split}.bin").read_bytes()).hexdigest()
            if found != entry["sha256"]:
                raise ValueError(
                    f"{self.directory / f'{split}.bin'}: sha256 is {found}, the manifest says "
                    f"{entry['sha256']}; delete the directory to have it built again"
                )


def load_domain(name: str, split: str) -> npt.NDArray[np.uint8]:
    """Token ids of an embedded domain's split, uint8 (tokens,); built on first use (some seconds)."""
    return open_domain(name).tokens(split)


def open_domain(name: str, cache_directory: Path | None = None) -> Domain:
    """The domain `name` from the cache, built there first where it is missing or damaged.

    The cache is `cache_directory`, else $ARCHSEARCH_CACHE, else ~/.cache/archsearch; a cache that cannot be
    written is still read, and what it lacks is built in a temporary directory.
    """
    if name not in _READERS:
        raise ValueError(f"domain: unknown name {name!r}{nearest(name, _READERS)}")
    return _open(name, cache_directory or _default_cache())


def _default_cache() -> Path:
    if wanted := os.environ.get("ARCHSEARCH_CACHE"):
        return Path(wanted).expanduser()
    try:
        return Path.home() / ".cache" / "archsearch"
    except RuntimeError:  # no home directory is known
        return _temporary_cache()


@cache
def _open(name: str, cache_directory: Path) -> Domain:
    target = cache_directory / "domains" / _key(name)
    manifest = _read_manifest(target)
    if manifest is None and not _writable(cache_directory):
        target = _temporary_cache() / "domains" / _key(name)
        manifest = _read_manifest(target)
    if manifest is None:
        _build(name, target)
        manifest = _read_manifest(target)
        assert manifest is not None, f"{target} was just built and does not match its manifest"
    return Domain(target, manifest)


def _key(name: str) -> str:
    """Two interpreters of one version may carry different standard libraries, so its place counts too."""
    place = hashlib.sha256(sysconfig.get_path("stdlib").encode()).hexdigest()[:8]
    return f"{name}-v{BUILDER_VERSION}-{sys.implementation.name}-{platform.python_version()}-{place}"


def _read_manifest(directory: Path) -> dict[str, Any] | None:
    """The manifest, or None unless every file it names is there with its size."""
    try:
        manifest: dict[str, Any] = json.loads((directory / "manifest.json").read_text())
        sizes = {split: (directory / f"{split}.bin").stat().st_size for split in SPLITS}
        return manifest if all(manifest["splits"][s]["bytes"] == sizes[s] for s in SPLITS) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _build(name: str, target: Path) -> None:
    """Writes the domain beside `target` and renames it there; of several builders at once, one wins."""
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        _write(name, scratch)
        scratch.chmod(0o755)  # mkdtemp's 0700 would hide a shared cache from its other readers
        try:
            scratch.rename(target)
        except OSError:
            if _read_manifest(target) is None:
                _replace(target, scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _replace(damaged: Path, scratch: Path) -> None:
    """Moves `damaged` aside first, since a directory that is not empty cannot be renamed over."""
    aside = Path(tempfile.mkdtemp(prefix=f".{damaged.name}-", dir=damaged.parent))
    try:
        with suppress(FileNotFoundError):  # another process may be repairing it, too
            damaged.rename(aside / "damaged")
        scratch.rename(damaged)
    except OSError:
        if _read_manifest(damaged) is None:
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _write(name: str, directory: Path) -> None:
    library = Path(sysconfig.get_path("stdlib"))
    gc_was_enabled = gc.isenabled()
    gc.disable()  # millions of live syntax-tree nodes make the collector most of the build time
    try:
        documents = _READERS[name](library)
    finally:
        if gc_was_enabled:
            gc.enable()
    documents = _without_duplicates(documents)
    entries = {}
    for split in SPLITS:
        chosen = [document for document in documents if split_of(document.module) == split]
        if not chosen:
            raise ValueError(f"domain {name!r}: {library} holds no Python sources for the {split} split")
        data = join_documents([document.text for document in chosen])
        (directory / f"{split}.bin").write_bytes(data)
        entries[split] = {
            "file": f"{split}.bin",
            "sha256": hashlib.sha256(data).hexdigest(),
            "bytes": len(data),
            "documents": len(chosen),
            "modules": sorted({document.module for document in chosen}),
        }
    manifest = {
        "domain": name,
        "builder": BUILDER_VERSION,
        "python": platform.python_version(),
        "splits": entries,
    }
    (directory / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")


def _without_duplicates(documents: list[Document]) -> list[Document]:
    """The first of each text, so that none is trained on in one module and scored in another."""
    first: dict[bytes, Document] = {}
    for document in documents:
        first.setdefault(content_key(document.text), document)
    return list(first.values())


def _writable(directory: Path) -> bool:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            return True
    except OSError:
        return False


@cache
def _temporary_cache() -> Path:
    user = os.getuid() if hasattr(os, "getuid") else "user"
    directory = Path(tempfile.gettempdir()) / f"archsearch-{user}"
    return directory if _writable(directory) else Path(tempfile.mkdtemp(prefix="archsearch-"))
