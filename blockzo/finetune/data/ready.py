"""The ready-made tasks: an entry each, with its prompt, label words and files.

Templates follow the published ones of MeZO (Malladi et al., NeurIPS 2023) and LM-BFF (Gao et al., ACL 2021) where these end or
can be made to end with the label word.
"""

from __future__ import annotations

from blockzo.finetune.data.completion_task import CompletionTask
from blockzo.finetune.data.task import PromptTask

_ENTAILMENT = {"entailment": "Yes", "not_entailment": "No"}
READY = (
    PromptTask(
        "sst2",
        "{text} It was {label}.",
        {"0": "terrible", "1": "great"},
        train="train.tsv.gz",
        validation="dev_glue.tsv.gz",
    ),
    PromptTask(
        "sst5",
        "{text} It was {label}.",
        {"0": "terrible", "1": "bad", "2": "okay", "3": "good", "4": "great"},
        train="train.tsv.gz",
        validation="dev.tsv.gz",
    ),
    PromptTask(
        "rte",
        '{premise}\nDoes this mean that "{hypothesis}" is true? Yes or No?\n{label}',
        _ENTAILMENT,
        masked_template="{premise}? {label}, {hypothesis}",
        train="train.jsonl.gz",
        validation="val.jsonl.gz",
    ),
    PromptTask(
        "trec",
        "Question: {text}\nThe answer is a {label}",
        {"0": "description", "1": "entity", "2": "abbreviation", "3": "person", "4": "location", "5": "number"},
        masked_template="{label}: {text}",
        train="train.tsv.gz",
        validation="test.tsv.gz",
    ),
    PromptTask(
        "boolq",
        "{passage} {question}?\n{label}",
        {"true": "Yes", "false": "No"},
        masked_template="{question}? {label}. {passage}",
        train="val.jsonl.gz",
        holdout=1000,
    ),
    PromptTask(
        "cb",
        'Suppose {premise} Can we infer that "{hypothesis}"? Yes, No, or Maybe?\n{label}',
        {"entailment": "Yes", "contradiction": "No", "neutral": "Maybe"},
        metrics=("macro_f1",),
        masked_template="{premise}? {label}, {hypothesis}",
        train="train.jsonl.gz",
        validation="val.jsonl.gz",
    ),
    PromptTask(
        "wic",
        'Does the word "{word}" have the same meaning in these two sentences? Yes, No?\n{sentence1}\n{sentence2}\n{label}',
        {"true": "Yes", "false": "No"},
        masked_template='{sentence1} {sentence2} Does "{word}" mean the same in both? {label}.',
        train="train.jsonl.gz",
        validation="val.jsonl.gz",
    ),
    PromptTask(
        "wsc",
        '{text}\nHere, does the pronoun "{target.span2_text}" refer to {target.span1_text}? Yes or No?\n{label}',
        {"false": "No", "true": "Yes"},
        masked_template='{text} Does "{target.span2_text}" stand for {target.span1_text} here? {label}.',
        train="train.jsonl.gz",
        validation="val.jsonl.gz",
    ),
    PromptTask(
        "agnews",
        "{description}\nTopic: {label}",
        {"0": "World", "1": "Sports", "2": "Business", "3": "Technology"},
        masked_template="{label} news: {description}",
        train="train_subset.tsv.gz",
        validation="test.tsv.gz",
    ),
)
WRITTEN = (
    CompletionTask(
        "squad",
        "{passage}\nQuestion: {question}\nAnswer:",
        answer="answer",
        stop="\n",
        metrics=("f1", "exact_match"),
        train="train.jsonl.gz",
        holdout=100,
        folder="squad_small",
    ),
    CompletionTask(
        "drop",
        "{passage}\nQuestion: {question}\nAnswer:",
        answer="answer",
        stop="\n",
        metrics=("f1", "exact_match"),
    ),
    CompletionTask("summary", "{document}\nIn short:", answer="summary", stop="\n", metrics=("rouge_l",)),
)
"""Tasks whose answer is written; `drop` and `summary` have no data of their own."""
