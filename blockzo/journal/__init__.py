"""A run as a file: records of steps, their format, the file that is written to, and what reads bytes from outside within bounds.

`record` is one step; `format` its bytes; `file` appends and reads; `reader` finds what a crash left; `outside` parses and
bounds whatever others wrote.
"""

from blockzo.journal.file import Journal, JournalError
from blockzo.journal.record import BlockUpdate, Record

__all__ = ["BlockUpdate", "Journal", "JournalError", "Record"]
