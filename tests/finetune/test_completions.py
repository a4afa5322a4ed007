"""Prompts with written answers and conversations: what is read, which tokens count, and what is refused."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from blockzo.finetune import Settings
from blockzo.finetune.data.columns import parse_columns
from blockzo.finetune.data.completion_task import CompletionTask
from blockzo.finetune.data.completions import CompletionEncoder, Completions
from blockzo.finetune.data.rows import read_rows, text_lines
from blockzo.finetune.data.tasks import find_written_task
from blockzo.finetune.data.written import read_written
from blockzo.finetune.errors import UserError
from blockzo.finetune.models.loading import load
from blockzo.finetune.prepare import prepare
from blockzo.finetune.scoring import Scorer

Tiny = Callable[[str], Path]
SFT = CompletionTask("sft")
TEMPLATE = (
    "{% for m in messages %}<s>{{ m['role'] }}\n{{ m['content'] | trim }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)


@pytest.fixture
def tokenizer(tiny: Tiny) -> Any:
    from tokenizers.decoders import ByteLevel
    from transformers import AutoTokenizer

    found = AutoTokenizer.from_pretrained(tiny("llama"))
    found.chat_template = TEMPLATE
    found.backend_tokenizer.decoder = ByteLevel()
    return found


def rows(path: Path, *objects: Any) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in objects), encoding="utf-8")
    return path


def encoded(tokenizer: Any, path: Path, task: CompletionTask = SFT, limit: int = 60, **more: Any) -> Completions:
    return CompletionEncoder(tokenizer, task, limit, **more).encode(read_written(path, task, {}))


def counted(tokenizer: Any, data: Completions, row: int) -> list[str]:
    return [tokenizer.decode(data.ids[row][start:end]) for start, end in data.spans[row]]


def test_the_answer_alone_counts_and_ends_with_the_end_token(tokenizer: Any, tmp_path: Path) -> None:
    path = rows(tmp_path / "a.jsonl", {"prompt": "the story is", "completion": " very good"})
    data = encoded(tokenizer, path)
    assert counted(tokenizer, data, 0) == [" very good</s>"]
    assert tokenizer.decode(data.prompt(0)) == "the story is" and data.answers == [(" very good",)]


def test_a_template_a_stop_and_several_right_answers(tokenizer: Any, tmp_path: Path) -> None:
    task = find_written_task("squad")
    assert task is not None
    path = rows(tmp_path / "a.jsonl", {"context": "a film", "query": "what ?", "answers": {"text": ["film", "a film"]}})
    data = encoded(tokenizer, path, task)
    assert tokenizer.decode(data.prompt(0)) == "a film\nQuestion: what ?\nAnswer:"
    assert counted(tokenizer, data, 0) == [" film\n"] and data.answers == [("film", "a film")]


def test_of_a_conversation_the_assistants_messages_count(tokenizer: Any, tmp_path: Path) -> None:
    said = [("system", "be good"), ("user", "this ?"), ("assistant", "yes"), ("user", "that ?"), ("assistant", " no ")]
    path = rows(
        tmp_path / "a.jsonl",
        {"messages": [{"role": role, "content": text} for role, text in said]},
        {"conversations": [{"from": "human", "value": "this ?"}, {"from": "gpt", "value": "yes"}]},
        {
            "prompt": [{"role": "assistant", "content": "no"}, {"role": "user", "content": "this ?"}],
            "completion": [{"role": "assistant", "content": "yes"}],
        },
    )
    data = encoded(tokenizer, path, limit=200)
    assert counted(tokenizer, data, 0) == ["yes</s>\n", "no</s>\n"]
    assert counted(tokenizer, data, 1) == counted(tokenizer, data, 2) == ["yes</s>\n"]
    assert tokenizer.decode(data.prompt(1)) == "<s>user\nthis ?</s>\n<s>assistant\n"
    plain = tokenizer.decode(data.ids[0])
    assert plain == tokenizer.apply_chat_template([{"role": r, "content": t} for r, t in said], tokenize=False)
    assert tokenizer.convert_tokens_to_ids("</s>") in data.ids[0]


def test_control_tokens_in_messages_stay_text(tokenizer: Any, tmp_path: Path) -> None:
    path = rows(
        tmp_path / "a.jsonl",
        {"messages": [{"role": "user", "content": "this </s> ?"}, {"role": "assistant", "content": "yes"}]},
    )
    end = tokenizer.convert_tokens_to_ids("</s>")
    data, other = encoded(tokenizer, path, limit=99), encoded(tokenizer, path, limit=99, control_tokens=True)
    assert data.ids[0].count(end) == 2 and other.ids[0].count(end) == 3
    assert tokenizer.decode(data.ids[0]) == tokenizer.decode(other.ids[0])


def test_a_chat_template_that_rewrites_earlier_turns_leaves_the_last_answer(tokenizer: Any, tmp_path: Path) -> None:
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'assistant' and not loop.last %}<s>...{% else %}"
        "<s>{{ m['role'] }}\n{{ m['content'] }}{% endif %}</s>{% endfor %}{% if add_generation_prompt %}<s>assistant\n{% endif %}"
    )
    said = [("user", "this ?"), ("assistant", "yes"), ("user", "that ?"), ("assistant", "no")]
    path = rows(tmp_path / "a.jsonl", {"messages": [{"role": role, "content": text} for role, text in said]})
    assert counted(tokenizer, encoded(tokenizer, path, limit=200), 0) == ["no</s>"]


def test_long_prompts_are_cut_and_answers_are_not(tokenizer: Any, tmp_path: Path) -> None:
    path = rows(tmp_path / "a.jsonl", {"prompt": "the story " * 30, "completion": " very good"})
    data = encoded(tokenizer, path, limit=20)
    assert len(data.ids[0]) <= 20 and data.truncated == 1 and counted(tokenizer, data, 0) == [" very good</s>"]
    with pytest.raises(UserError, match="line 1: .* tokens with the answer, the limit is 20"):
        encoded(tokenizer, path, limit=20, overflow="error")
    with pytest.raises(UserError, match="more than 3 tokens even without most of 'prompt'"):
        encoded(tokenizer, path, limit=3)


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"messages": [{"role": "user", "content": "a"}]}, "no message of the role 'assistant'.*roles here: user"),
        ({"messages": ["a"]}, "message 1 of 'messages' is no object"),
        ({"messages": [{"role": "user"}]}, "has no text as its content"),
        ({"messages": [{"content": "a"}]}, "has no text as its role"),
        ({"prompt": "a"}, "no column 'completion' .*--columns"),
        ({"completion": "a"}, "no column 'prompt'"),
        ({"prompt": "a", "completion": " "}, "the answer .'completion'. is empty"),
        ({"prompt": " ", "completion": "a"}, "the prompt is empty"),
        ({"prompt": "a", "completion": {"x": 1}}, "completion is an object"),
    ],
)
def test_rows_that_cannot_be_trained_on_are_named(tmp_path: Path, row: Any, told: str) -> None:
    with pytest.raises(UserError, match=f"a.jsonl, line 1.*{told}"):
        read_written(rows(tmp_path / "a.jsonl", row), SFT, {})


def test_a_tokenizer_without_chat_template_is_refused(tokenizer: Any, tmp_path: Path) -> None:
    path = rows(tmp_path / "a.jsonl", {"messages": [{"role": "assistant", "content": "a"}]})
    tokenizer.chat_template = None
    with pytest.raises(
        UserError, match="no chat template; use a model with one, or write columns prompt and completion"
    ):
        encoded(tokenizer, path)
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(UserError, match="refuses the conversation .roles must alternate"):
        encoded(tokenizer, path)


def test_columns_by_other_names(tmp_path: Path) -> None:
    path = rows(tmp_path / "a.jsonl", {"q": "this ?", "reply": "yes"})
    (found,) = read_written(path, SFT, parse_columns("prompt=q, completion=reply"))
    assert found.columns == {"prompt": "this ?"} and found.answers == ("yes",)
    with pytest.raises(UserError, match="no column 'x' .columns here: q, reply.*--columns"):
        read_written(path, SFT, {"prompt": "x"})
    for wrong in ("prompt", "=a", "a=", "a=b,a=c", ""):
        with pytest.raises(UserError, match="--columns has .*expected NAME=COLUMN"):
            parse_columns(wrong)


def test_parquet_files_are_rows_as_jsonl_is(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "a.parquet"
    table = {
        "text": ["one", "two"],
        "label": [0, 1],
        "answers": [{"text": ["x"]}, {"text": ["y", "z"]}],
        "no": [None, None],
    }
    parquet.write_table(pyarrow.table(table), path)
    assert [row for _, row in read_rows(path)] == [
        {"text": "one", "label": "0", "answers": {"text": ["x"]}, "answers.text": ["x"]},
        {"text": "two", "label": "1", "answers": {"text": ["y", "z"]}, "answers.text": ["y", "z"]},
    ]
    assert text_lines(path) == ["one", "two"]
    path.write_bytes(b"no parquet")
    with pytest.raises(UserError, match="is no Parquet file that pyarrow reads"):
        list(read_rows(path))
    with pytest.raises(UserError, match="gone.parquet does not exist"):
        list(read_rows(tmp_path / "gone.parquet"))


def test_a_data_set_of_the_hub(monkeypatch: Any) -> None:
    asked: list[Any] = []

    def load_dataset(*names: str, split: str) -> list[dict[str, Any]]:
        asked.append((*names, split))
        if names[0] == "gone":
            raise ConnectionError("no network\nmore")
        return [{"question": "q", "label": 1, "score": 0.5}]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    assert list(read_rows(Path("hub:a/b:main:train"))) == [(1, {"question": "q", "label": "1", "score": "0.5"})]
    assert text_lines(Path("hub:a/b:train"), "question") == ["q"]
    assert asked == [("a/b", "main", "train"), ("a/b", "train")]
    with pytest.raises(UserError, match="hub:gone:train cannot be loaded .no network."):
        list(read_rows(Path("hub:gone:train")))
    for wrong in ("hub:a/b", "hub:", "hub:a:b:c:d", "hub:a::b"):
        with pytest.raises(UserError, match="is no data set of the hub; expected hub:OWNER/NAME:SPLIT"):
            list(read_rows(Path(wrong)))
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match="need `datasets`"):
        list(read_rows(Path("hub:a/b:train")))


@torch.no_grad()
@pytest.mark.parametrize("name", ["llama", "opt"])
def test_the_loss_is_the_models_own_on_the_answers(tiny: Tiny, name: str, tmp_path: Path) -> None:
    loaded = load(str(tiny(name)), "float32")
    path = rows(
        tmp_path / "a.jsonl",
        {"prompt": "the story is", "completion": " very good"},
        {"prompt": "this", "completion": " is not a good film"},
    )
    data = encoded(loaded.tokenizer, path)
    scorer = Scorer("completion", pad=1)
    scorer.settle(loaded.model, data)
    batch = scorer.batch(data, [0, 1])
    targets = torch.full_like(batch["ids"], -100)
    for row in (0, 1):
        for place in data.predicted(row):
            targets[row, place] = batch["ids"][row, place]
    own = loaded.model(input_ids=batch["ids"], attention_mask=batch["mask"], labels=targets).loss
    torch.testing.assert_close(scorer.loss(loaded.model, batch), own, rtol=1e-5, atol=1e-6)
    assert (
        scorer.terms(batch) == int((targets != -100).sum()) == int(scorer.token_losses(loaded.model, batch)[:, 1].sum())
    )


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"task": "squad", "labels": "0=a,1=b"}, "--labels belongs to classification tasks, and --task squad is none"),
        ({"task": "sst2", "metrics": "f1"}, "--metrics belongs to tasks with written answers"),
        ({"task": "sft", "metrics": "bleu"}, "--metrics has 'bleu'; expected some of f1, exact_match, rouge_l"),
        ({"task": "sft"}, "the task sft has no data of its own"),
    ],
)
def test_options_of_the_other_kind_are_refused_before_a_model_is_loaded(options: Any, told: str) -> None:
    with pytest.raises(UserError, match=told):
        prepare(Settings("no/such/model", **options))
