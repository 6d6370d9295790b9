"""LongBench's files: a context, a question about it, and right answers; each dataset is asked in its own way."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from hetero_sglang.errors import HeteroError

from .lines import Line
from .metrics import Metric, edit_similarity, exact_class, first_line, rouge_l, same_number, token_f1
from .prompt import Prompt, length_of


@dataclass(frozen=True)
class Dataset:
    """`template` has places for the context and, where the data asks one, the question."""

    template: str
    metric: Metric
    answer_tokens: int


def _question(about: str, style: str = "as briefly as you can, in a few words") -> str:
    return (
        f"Below is {about}, then a question about it. Answer {style}, from the text alone.\n\n"
        "{context}\n\nQuestion: {question}\nAnswer:"
    )


def _summary(about: str, wanted: str) -> str:
    return f"Below is {about}. {wanted}\n\n{{context}}\n\nSummary:"


_CODE = "Below is a part of a program. Write the line that comes next, and nothing else.\n\n{context}{question}"

DATASETS = {
    "narrativeqa": Dataset(_question("a story"), token_f1, 128),
    "qasper": Dataset(
        _question("a scientific paper", "briefly, or with yes, no or unanswerable where that is the answer"),
        token_f1,
        128,
    ),
    "multifieldqa_en": Dataset(_question("a text"), token_f1, 64),
    "hotpotqa": Dataset(_question("a set of passages"), token_f1, 32),
    "2wikimqa": Dataset(_question("a set of passages"), token_f1, 32),
    "musique": Dataset(_question("a set of passages"), token_f1, 32),
    "gov_report": Dataset(_summary("a government report", "Summarise it on one page."), rouge_l, 512),
    "multi_news": Dataset(_summary("several news articles", "Summarise all of them on one page."), rouge_l, 512),
    "qmsum": Dataset(
        "Below is the transcript of a meeting, then a request. Answer it in one or more sentences.\n\n"
        "{context}\n\nRequest: {question}\nAnswer:",
        rouge_l,
        512,
    ),
    "trec": Dataset(
        "Below are questions with their types. Give the type of the last one.\n\n{context}\n{question}",
        exact_class,
        64,
    ),
    "triviaqa": Dataset(
        "Below are passages with questions and answers. Answer the last question, with the answer alone.\n\n"
        "{context}\n\n{question}",
        first_line(token_f1),
        32,
    ),
    "samsum": Dataset(
        "Below are conversations with their summaries. Summarise the last one.\n\n{context}\n\n{question}",
        first_line(rouge_l),
        128,
    ),
    "passage_count": Dataset(
        "Below are numbered paragraphs, some of them more than once. How many different ones are there?\n\n"
        "{context}\n\nAnswer with the number alone:",
        same_number,
        32,
    ),
    "passage_retrieval_en": Dataset(
        "Below are numbered paragraphs, then a summary of one of them.\n\n{context}\n\nSummary: {question}\n\n"
        'Answer with its number, as in "Paragraph 1":',
        same_number,
        32,
    ),
    "lcc": Dataset(_CODE, edit_similarity, 64),
    "repobench-p": Dataset(_CODE, edit_similarity, 64),
}


def longbench_prompt(line: Line) -> Prompt:
    """`context`, `input` (the question, may be empty), `answers`, and `dataset` or else the file's name.

    Raises HeteroError for a dataset that has no template, or a line without one of these.
    """
    name = str(line.fields.get("dataset") or line.path.stem).removesuffix("_e")
    if name not in DATASETS:
        raise HeteroError(f"{line} is of dataset {name!r}: the known ones are {', '.join(DATASETS)}.")
    dataset = DATASETS[name]
    text = dataset.template.format(context=line.text("context"), question=line.text("input"))
    metric = dataset.metric
    if metric is exact_class:
        metric = partial(exact_class, classes=line.fields.get("all_classes") or ())
    answers = line.texts("answers")
    return Prompt(name, text, answers, metric, dataset.answer_tokens, length_of(line, text))
