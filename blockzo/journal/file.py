"""The journal: an append-only file of step records from which anyone can rebuild the trained weights (docs/journal.md)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from blockzo.contract import CONTRACT
from blockzo.journal import files
from blockzo.journal import format as fmt
from blockzo.journal.format import JournalError
from blockzo.journal.reader import Reader
from blockzo.journal.record import Record, check_record

__all__ = ["Journal", "JournalError"]


class Journal:
    """Records of one run. Made by `create`, `resume` (both may append) or `open` (reads only).

    Attributes: `path`, `base_digest` (of the weights it begins at, or None), `layout` (parameter name -> block), `metadata`
    (settings), `start` (number of its first step, 0 unless earlier ones were compacted away), `exact` (False where losses were
    evaluated in place, so that replay is approximate), `plan` (what the planner measured before its first step, or None),
    `finished`, `final_digest` (of the weights after the last record, once finished), `dropped` (bytes after the last record that
    are left out, or were cut off), `left_out` (in words, what they are; None where nothing was).
    """

    def __init__(self, path: Path, reader: Reader, file: int | None) -> None:
        header = reader.header
        self.path = path
        self.base_digest: str | None = header.base_digest
        self.layout: dict[str, int] = header.layout
        self.metadata: dict[str, Any] = header.metadata
        self.exact: bool = header.exact
        self.start: int = header.start
        self.final_digest: str | None = None
        self.plan: dict[str, Any] | None = None
        self.finished = False
        self.dropped = 0
        self.left_out: str | None = None
        self._records: list[Record] = []
        self._file = file
        self._lock: files.Lock | None = None
        self._end, self._chain = reader.end, reader.chain
        self._marks = [(self._end, self._chain)]
        """Where the file ends, and its check, after so many records (with what stands between them and the next)."""
        self._after = 0
        """Records after one that cannot be applied."""
        self._read(reader)

    def _read(self, reader: Reader) -> None:
        for kind, body in reader.frames():
            if self.left_out is not None:
                self._after += kind == fmt.STEP
                continue
            try:
                self._take(kind, body)
            except JournalError:
                raise
            except ValueError as error:
                if kind != fmt.STEP:
                    raise
                # on disk and whole, so some blockzo wrote it; but no weights can ever have been moved by it
                self.left_out = f"{error}; it is left out, and the {len(self)} steps before it are whole"
                continue
            self._end, self._chain = reader.end, reader.chain
            self._mark()
        self.dropped = reader.size - self._end
        if self.left_out is None and self.dropped:
            self.left_out = f"its last step is not complete ({self.dropped} bytes); it is left out"

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        base_digest: str | None = None,
        layout: Mapping[str, int] | None = None,
        metadata: Mapping[str, Any] | None = None,
        exact: bool = True,
        start: int = 0,
    ) -> Journal:
        """A new journal; its header is complete on disk, under its name, or the file does not exist.

        Args:
            base_digest: `blockzo.digest(model)` of the weights that training starts from.
            layout: `blocks.layout`.
            metadata: anything JSON can hold: settings, data digest, model name.
            exact: False for in-place evaluation.
            start: number of the first step; `base_digest` is of the weights before it.

        Raises:
            JournalError: the file exists, or cannot be written.
        """
        path = Path(path)
        header: dict[str, Any] = {
            "contract": CONTRACT,
            "base_digest": base_digest,
            "layout": dict(layout or {}),
            "metadata": dict(metadata or {}),
            "exact": exact,
        }
        if start:
            header["start"] = start
        data = fmt.encode_header(header)
        try:
            files.create_whole(path, data)
        except FileExistsError:
            raise JournalError(f"{path} exists; resume it, or choose another path") from None
        except OSError as error:
            raise JournalError(f"cannot create {path}: {error.strerror}; choose a place that can be written") from error
        return cls.resume(path)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Journal:
        """Reads a journal.

        A last record that is torn (a write that was cut, or a page that never reached the disk) or that cannot be applied is left
        out, and `left_out` says so.

        Raises:
            JournalError: not a journal, or damaged anywhere else.
        """
        path = Path(path)
        try:
            with open(path, "rb") as file:
                return cls._parse(path, file, None)
        except OSError as error:
            raise JournalError(f"cannot read {path}: {error.strerror}") from error

    @classmethod
    def resume(cls, path: str | os.PathLike[str]) -> Journal:
        """Opens a journal for more records; what `open` leaves out is cut off. One process at a time.

        Raises:
            JournalError: as `open`; another process is writing the journal; it holds records after one that cannot be applied.
        """
        path = Path(path)
        try:
            file = files.open_for_writing(path)
        except OSError as error:
            raise JournalError(f"cannot open {path} for writing: {error.strerror}") from error
        lock: files.Lock | None = None
        try:
            try:
                lock = files.Lock(path, file)
            except files.Busy as error:
                raise JournalError(
                    f"another process is writing {path} ({error.strerror}); wait for it or stop it"
                ) from None
            except OSError as error:
                raise JournalError(
                    f"{path} cannot be locked against other writers ({error.strerror}); put it on another file system"
                ) from error
            with open(file, "rb", closefd=False) as stream:
                journal = cls._parse(path, stream, file)
            if journal._after:
                raise JournalError(
                    f"{path}: {journal.left_out}. {journal._after} records follow it, which no weights can have: rebuild the "
                    "steps before it (Journal.open; blockzo replay --partial) and start another run from there"
                )
            if journal.dropped:
                os.ftruncate(file, journal._end)
                os.fsync(file)
            journal._lock = lock
            return journal
        except BaseException:
            if lock is not None:
                lock.release()
            os.close(file)
            raise

    @classmethod
    def _parse(cls, path: Path, stream: BinaryIO, file: int | None) -> Journal:
        try:
            return cls(path, Reader(stream), file)
        except JournalError as error:
            raise JournalError(f"{path}: {error}") from None
        except (ValueError, KeyError, TypeError) as error:
            raise JournalError(f"{path}: a record does not make sense ({error}); the file is damaged") from error

    def _take(self, kind: int, body: bytes) -> None:
        if self.finished:
            raise JournalError("there is a record after the end of the run; the file is damaged")
        if kind == fmt.STEP:
            record = check_record(fmt.decode_record(body))
            if record.step != self.next_step:
                raise JournalError(f"record {self.next_step} holds step {record.step}; the file is damaged")
            if self._records and len(record.blocks) != len(self._records[0].blocks):
                raise JournalError(f"step {record.step} has another number of blocks; the file is damaged")
            self._records.append(record)
        elif kind == fmt.DIGEST:
            step, digest = fmt.decode_digest(body)
            if not self._records or step != self.next_step - 1:
                raise JournalError(f"a digest of step {step} follows step {self.next_step - 1}; the file is damaged")
            self._records[-1] = replace(self._records[-1], digest=digest)
        elif kind == fmt.FINISH:
            step, digest = fmt.decode_digest(body)
            if step != self.next_step:
                raise JournalError(
                    f"the end names {step} steps, the file ends at {self.next_step}; the file is damaged"
                )
            self.finished, self.final_digest = True, digest
        elif kind == fmt.PLAN:
            if self._records or self.plan is not None:
                raise JournalError("a plan does not stand before the first step; the file is damaged")
            self.plan = fmt.decode_plan(body)
        else:
            raise JournalError(f"a record has the unknown kind {kind}; it was written by a newer blockzo")

    def __len__(self) -> int:
        return len(self._records)

    @property
    def next_step(self) -> int:
        """Number of the step that comes next."""
        return self.start + len(self._records)

    def records(self, first: int | None = None) -> list[Record]:
        """Records in order of their steps: all, or those of step `first` and later."""
        return self._records[max(0, (first or 0) - self.start) :]

    def append(self, record: Record) -> None:
        """Writes one record and returns when it is on disk; where that fails the file is as before.

        Raises:
            JournalError: not the next step, it cannot be applied, the journal is finished or read-only, or the disk is full.
        """
        self.extend([record])

    def extend(self, records: Sequence[Record]) -> None:
        """Writes consecutive records with one wait for the disk; where that fails the file is as before.

        Raises:
            JournalError: as `append`.
        """
        frames: list[tuple[int, bytes]] = []
        blocks = len((*self._records[:1], *records[:1])[0].blocks) if records else 0
        for number, record in enumerate(records, self.next_step):
            try:
                check_record(record)
            except ValueError as error:
                raise JournalError(f"{error}; nothing was written") from None
            if record.step != number:
                raise JournalError(f"the record holds step {record.step}; {self.path} expects step {number}")
            if len(record.blocks) != blocks:
                raise JournalError(f"the record has {len(record.blocks)} blocks; earlier ones have {blocks}")
            frames.append((fmt.STEP, fmt.encode_record(record)))
            if record.digest is not None:
                frames.append((fmt.DIGEST, fmt.encode_digest(record.step, record.digest)))
        self._write(*frames)

    def add_digest(self, digest: str) -> None:
        """Notes the digest of the weights after the last record, so that a replay can be checked half-way."""
        self._write((fmt.DIGEST, fmt.encode_digest(self.next_step - 1, digest)))

    def add_plan(self, plan: Mapping[str, Any]) -> None:
        """Notes what the planner measured; once, before the first step.

        Args:
            plan: "costs", a positive number for each block.
        """
        if self._records or self.plan is not None:
            raise JournalError(
                f"{self.path} holds a plan or {len(self)} steps; a plan stands once, before the first step"
            )
        self._write((fmt.PLAN, fmt.encode_plan(plan)))

    def finish(self, digest: str) -> None:
        """Ends the run: `digest` is of the weights after the last record. Nothing can be appended afterwards."""
        self._write((fmt.FINISH, fmt.encode_digest(self.next_step, digest)))

    def truncate(self, step: int) -> None:
        """Drops the records of `step` and later, and the end of a finished run, as a run does that goes on from a checkpoint
        before them. The digest of the weights before `step` stays.

        Raises:
            JournalError: the journal is read-only, has no such place, or the file cannot be cut.
        """
        if self._file is None:
            raise JournalError(f"{self.path} is open for reading; use Journal.resume to truncate")
        if not self.start <= step <= self.next_step:
            raise JournalError(f"step is {step}; {self.path} can be cut at {self.start} to {self.next_step}")
        count = step - self.start
        end, chain = self._marks[count]
        try:
            os.ftruncate(self._file, end)
            os.fsync(self._file)
        except OSError as error:
            raise JournalError(f"cannot cut {self.path}: {error.strerror}") from error
        self._end, self._chain, self.finished, self.final_digest = end, chain, False, None
        del self._records[count:], self._marks[count + 1 :]

    def verify(self) -> None:
        """Reads the file again and checks every byte of it.

        Raises:
            JournalError: damaged, torn, changed since it was opened, or not finished.
        """
        again = Journal.open(self.path)
        if again.left_out is not None:
            raise JournalError(f"{self.path}: {again.left_out}; resume it to cut that off")
        if again._records != self._records or again.finished != self.finished:
            raise JournalError(f"{self.path} was changed since it was opened; open it again")
        if not self.finished:
            raise JournalError(f"{self.path} is not finished: it holds {len(self)} steps and no end; resume the run")

    def _write(self, *frames: tuple[int, bytes]) -> None:
        if self._file is None:
            raise JournalError(f"{self.path} is open for reading; use Journal.resume to append")
        if self.finished:
            raise JournalError(f"{self.path} is finished; nothing can be appended")
        data, chain = b"", self._chain
        ends = []
        for kind, body in frames:
            frame, chain = fmt.encode_frame(kind, body, chain)
            data += frame
            ends.append((self._end + len(data), chain))
        try:
            files.write_at(self._file, data, self._end)
            os.fsync(self._file)
        except OSError as error:
            os.ftruncate(self._file, self._end)
            raise JournalError(
                f"cannot write {self.path}: {error.strerror}; the journal holds {len(self)} steps and is valid: "
                "free some space and resume"
            ) from error
        for (kind, body), (self._end, self._chain) in zip(frames, ends, strict=True):
            self._take(kind, body)
            self._mark()

    def _mark(self) -> None:
        """After each frame that was taken; the end of a run belongs to no record."""
        if not self.finished:
            self._marks[len(self) :] = [(self._end, self._chain)]

    def close(self) -> None:
        if self._file is not None:
            if self._lock is not None:
                self._lock.release()
            os.close(self._file)
            self._file = self._lock = None

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
