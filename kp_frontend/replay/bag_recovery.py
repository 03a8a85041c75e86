"""What a bag that was cut off still holds, as a whole bag file again."""

from __future__ import annotations

import shutil
import sqlite3
import struct
from collections.abc import Callable
from pathlib import Path

from kp_frontend.errors import InputError

_MCAP_MAGIC = b"\x89MCAP0\r\n"
# DataEnd without checksum, then a Footer that says: there is no summary, scan the file.
_MCAP_END = struct.pack("<BQI BQQQI", 0x0F, 4, 0, 0x02, 20, 0, 0, 0) + _MCAP_MAGIC


def _recover_mcap(source: Path, target: Path) -> None:
    """Copy the complete records and end the file properly; the chunk that was being written is lost."""
    size = source.stat().st_size
    with source.open("rb") as file:
        if file.read(len(_MCAP_MAGIC)) != _MCAP_MAGIC:
            raise InputError(f"{source} is no MCAP file")
        end = file.tell()
        while len(header := file.read(9)) == 9 and header[0] not in (0x02, 0x0F):
            following = end + 9 + int.from_bytes(header[1:], "little")
            if following > size:
                break
            end = following
            file.seek(end)
    shutil.copyfile(source, target)
    with target.open("r+b") as file:
        file.truncate(end)
        file.seek(end)
        file.write(_MCAP_END)


def _recover_sqlite(source: Path, target: Path) -> None:
    """Copy every row up to the first page that is gone."""
    old = sqlite3.connect(f"{source.resolve().as_uri()}?mode=ro", uri=True)
    new = sqlite3.connect(target)
    try:
        old.execute("PRAGMA writable_schema=ON")  # else SQLite refuses a file shorter than its header says
        for name, statement in old.execute("SELECT name, sql FROM sqlite_master WHERE type = 'table'").fetchall():
            new.execute(statement)
            cursor = old.execute(f'SELECT * FROM "{name}" NOT INDEXED')
            insert = f'INSERT INTO "{name}" VALUES ({",".join("?" * len(cursor.description))})'
            try:
                new.executemany(insert, cursor)
            except sqlite3.DatabaseError:
                continue  # what came before the damage is kept
            finally:
                new.commit()
    except sqlite3.DatabaseError as error:
        raise InputError(f"{source} is damaged beyond reading: {error}") from None
    finally:
        old.close()
        new.close()


RECOVERIES: dict[str, Callable[[Path, Path], None]] = {".mcap": _recover_mcap, ".db3": _recover_sqlite}


def recover(source: Path, folder: Path) -> Path:
    """Write what is readable of the bag file `source` (.mcap, .db3) to `folder` and return the new file.

    Raises InputError where nothing can be recovered, or the format allows none.
    """
    if source.suffix not in RECOVERIES:
        raise InputError(f"{source} is damaged, and only .mcap and .db3 are recovered here; try `rosbag reindex`")
    target = folder / source.name
    RECOVERIES[source.suffix](source, target)
    return target
