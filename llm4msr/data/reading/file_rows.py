"""Rows of files whose pieces can be told apart by what they hold, so that a later run knows those it has seen."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from llm4msr import storage
from llm4msr.arrays import Ints
from llm4msr.data.reading import files, pieces
from llm4msr.data.reading.pieces import Piece
from llm4msr.data.reading.raw_tables import PieceTable


@dataclass(frozen=True)
class FileRows(PieceTable[Piece]):
    """The rows of all files of a table."""

    reading: str = ""
    """All that decides, besides the content of a piece, which rows it gives."""
    orders_are_numbers: bool = False
    """Whether the column `order` repeats the rows' numbers, since the source has no such column."""

    def digests(self) -> list[str]:
        """A hash for each piece, which changes with what it holds and with the name of its file.

        Raises:
            StorageError: a file cannot be read.
        """
        by_place = {piece.place: piece.file for piece in self.pieces}
        hashes = dict(zip(by_place, files.hash_files(by_place.values()), strict=True))
        return [storage.digest(hashes[piece.place], json.dumps(piece.groups)) for piece in self.pieces]

    def only(self, chosen: Sequence[int]) -> "FileRows":
        """The rows of some pieces, of which there is at least one as far as is known; they keep their numbers."""
        held = [self.pieces[at] for at in chosen]
        size = sum(piece.size for piece in held)
        return replace(self, pieces=held, size=size, rows=max(round(self.rows * size / max(self.size, 1)), 1))


def move_rows(row_R: Ints, moved: dict[int, int]) -> Ints:
    """Numbers of rows after their files have moved from one place among the source's files to another."""
    if not moved or not len(row_R):
        return row_R
    place_R = row_R >> pieces.FILE_BITS
    now = np.arange(max(int(place_R.max()), *moved) + 1)
    now[[*moved]] = [*moved.values()]
    return row_R + ((now[place_R] - place_R) << pieces.FILE_BITS)
