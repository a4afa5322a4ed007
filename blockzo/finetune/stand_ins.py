"""What a download may leave in the place of a file: a Git LFS pointer, or a page that says why there is no file."""

from __future__ import annotations

from pathlib import Path

from blockzo.finetune.errors import UserError


def check_start(path: Path, start: bytes, wanted: str, again: str = "fetch it again", page: bool = True) -> None:
    """By the first bytes of a file.

    Args:
        wanted: what was expected. again: what to do. page: a web page is none of that.

    Raises:
        UserError: it is one of these.
    """
    if start.startswith(b"version https://git-lfs"):
        raise UserError(f"{path} is a Git LFS pointer, not {wanted}: run `git lfs pull` in its repository, or {again}")
    if page and start.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        raise UserError(f"{path} is a web page, not {wanted}; {again}, by its download link")
