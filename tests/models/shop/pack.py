"""Turns a folder into a `.tar.gz` that is the same to the byte for the same files."""

import gzip
import shutil
import tarfile
from pathlib import Path


def pack(folder: Path) -> Path:
    """Puts the files of `folder` at the root of `<folder>.tar.gz` and removes the folder."""
    archive_path = folder.with_name(f"{folder.name}.tar.gz")
    with open(archive_path, "wb") as file, gzip.GzipFile("", "wb", compresslevel=9, fileobj=file, mtime=0) as stream:
        with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as archive:
            for path in sorted(path for path in folder.rglob("*") if path.is_file()):
                entry = tarfile.TarInfo(f"./{path.relative_to(folder)}")
                entry.size = path.stat().st_size
                entry.mode = 0o644
                with open(path, "rb") as source:
                    archive.addfile(entry, source)
    shutil.rmtree(folder)
    return archive_path
