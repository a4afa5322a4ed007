"""A run is continued and rebuilt with the model that it began with: not its weights alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from blockzo import Journal
from blockzo.finetune import UserError, finetune, resume
from blockzo.finetune.models.identity import Identity, identity_of
from blockzo.finetune.models.loading import load
from blockzo.finetune.progress import Reporter
from blockzo.finetune.rebuild import replay
from tests.finetune.test_resume import arguments, settings

Tiny = Callable[[str], Path]


def change_config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


MEANT: dict[str, Callable[[Path], None]] = {
    "hidden_act": lambda f: change_config(f, hidden_act="relu"),
    "rms_norm_eps": lambda f: change_config(f, rms_norm_eps=1e-3),
    "rope_parameters.rope_theta": lambda f: change_config(
        f, rope_parameters={"rope_type": "default", "rope_theta": 5e5}
    ),
    "attention_dropout": lambda f: change_config(f, attention_dropout=0.5),
    "tokenizer.json": lambda f: (f / "tokenizer.json").write_text((f / "tokenizer.json").read_text() + "\n"),
    "merges.txt": lambda f: (f / "merges.txt").write_text("a b\n"),
}
NEUTRAL: dict[str, Any] = {
    "_name_or_path": "elsewhere",
    "transformers_version": "4.0.0",
    "eos_token_id": 3,
    "temperature": 0.3,
    "use_cache": False,
    "output_attentions": False,
    "architectures": ["LlamaForCausalLM"],
}


class Heard(Reporter):
    def __init__(self) -> None:
        super().__init__()
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)


@pytest.fixture(scope="module")
def run(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, str]]:
    """Model folder, run folder and arguments of a run of two steps."""
    place = tmp_path_factory.mktemp("identity")

    def rows(count: int, name: str = "rows.tsv") -> Path:
        lines = [f"{('bad', 'good')[k % 2]} film {k}\t{k % 2}\n" for k in range(count)]
        (place / name).write_text("text\tlabel\n" + "".join(lines))
        return place / name

    model = shutil.copytree(tiny("llama"), place / "model")
    told = arguments(model, rows, steps=2)
    finetune(settings(told), place / "run")
    return model, place / "run", told


@pytest.mark.parametrize("name", list(MEANT))
def test_a_change_is_named_by_resume_and_replay(
    name: str, run: tuple[Path, Path, dict[str, str]], tmp_path: Path
) -> None:
    model, folder, told = run
    changed = shutil.copytree(model, tmp_path / "changed")
    MEANT[name](changed)
    with pytest.raises(UserError, match=f"not the same model: the (setting|file) {name} "):
        replay(str(changed), folder / "journal.bz", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    again = shutil.copytree(folder, tmp_path / "run")
    before = (again / "journal.bz").read_bytes()
    with pytest.raises(UserError, match=f"the (setting|file) {name} "):
        resume(again, {"model": str(changed)})
    assert (again / "journal.bz").read_bytes() == before


def test_what_no_loss_depends_on_may_differ(run: tuple[Path, Path, dict[str, str]], tmp_path: Path) -> None:
    model, folder, _ = run
    same = shutil.copytree(model, tmp_path / "same")
    change_config(same, **NEUTRAL)
    found = replay(str(same), folder / "journal.bz", tmp_path / "out")
    assert found["verified"] and found["checked"] == "weights, configuration and tokenizer"


def test_an_old_journal_opens_and_says_what_was_not_checked(
    run: tuple[Path, Path, dict[str, str]], tmp_path: Path
) -> None:
    model, folder, _ = run
    old = Journal.open(folder / "journal.bz")
    metadata = {name: value for name, value in old.metadata.items() if name != "identity"}
    with Journal.create(tmp_path / "old.bz", old.base_digest, old.layout, metadata) as journal:
        journal.extend(old.records())
        assert old.final_digest is not None
        journal.finish(old.final_digest)
    heard = Heard()
    found = replay(str(model), tmp_path / "old.bz", tmp_path / "out", reporter=heard)
    assert found["verified"] and found["checked"] == "weights"
    assert any("only the weights were compared" in text for text in heard.warnings)


def test_names_that_one_version_alone_knows_are_passed_over() -> None:
    old, new = Identity({"a": 1, "b": 2}, {}), Identity({"a": 1, "c": 3}, {})
    assert len(old.changes(new)) == 2 and old.changes(new, same_version=False) == []
    assert old.changes(Identity({"a": 2}, {}), same_version=False) == [
        "the setting a of config.json was 1, now it is 2"
    ]


def test_two_loads_are_one_identity(tiny: Tiny) -> None:
    for name in ("llama", "bert", "opt", "encoder"):
        found = [identity_of(load(str(tiny(name)), "float32", classes=2)) for _ in range(2)]
        assert (
            found[0] == found[1] and len(json.dumps(found[0].as_dict())) < 6000 and "tokenizer.json" in found[0].files
        )
