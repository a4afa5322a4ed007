"""What must start fast: a server that needs no model, a client's shim, and the reader of a journal run without torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

import blockzo


def loaded(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint(' '.join(sys.modules))"
    return set(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split())


@pytest.mark.parametrize(
    "statement", ["import blockzo", "from blockzo.journal.file import Journal", "import blockzo.cli.main"]
)
def test_no_torch_before_it_is_needed(statement: str) -> None:
    assert not {"torch", "numpy", "transformers", "triton"} & loaded(statement)


SLOW = {"torch", "numpy", "transformers", "safetensors", "matplotlib", "triton", "flwr", "cryptography"}


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--version"], 0),
        (["--help"], 0),
        ([], 2),
        (["--nothing"], 2),
        (["nothing"], 2),
        *(([command, "--help"], 0) for command in "finetune evaluate replay simulate env bench".split()),
        (["finetune", "--nothing"], 2),
        (["finetune", "--steps", "none"], 2),
        (["simulate", "--clients", "none"], 2),
        (["evaluate"], 2),
        (["replay", "base"], 2),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_the_command_line_answers_before_it_loads_torch(arguments: list[str], code: int) -> None:
    statement = f"""
import sys
from blockzo.cli import main as cli
sys.argv = ["blockzo", *{arguments!r}]
try:
    cli.main()
except SystemExit as end:
    left = end.code
print()
print("left", left)"""
    found = loaded(statement)
    assert not SLOW & found and {"left", str(code)} <= found, SLOW & found


def test_a_server_loads_what_sums_need_with_the_first_run_that_has_them() -> None:
    statement = "import blockzo.federated.server.server, blockzo.federated.client.client"
    assert not {"torch", "numpy", "cryptography"} & loaded(statement)


def test_every_public_name_is_found() -> None:
    for name in blockzo.__all__:
        assert getattr(blockzo, name) is not None
    assert set(blockzo.__all__) <= set(dir(blockzo))


def test_an_unknown_name_says_what_there_is() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Mezo'; expected one of .*MeZO"):
        blockzo.Mezo  # noqa: B018
