"""The recall language: documents, questions and answers that measure what a KV cache still remembers."""

from __future__ import annotations

from .chain_question import (
    ChainQuestion,
    ask_chain,
    ask_updated,
    chain_answer,
    chain_answer_ids,
    chain_entries,
    chain_question,
)
from .client import SPARE_TOKENS, Reply, ask
from .document import Document
from .evaluation import EvaluationResult, Exchange, default_entries, evaluate
from .language import Language
from .long_question import ask_long, long_question
from .mix import Mix
from .mixed_document import MixedDocument, chain_document, mixed_document, updated_document
from .mixed_sampler import MixedSample, MixedSampler
from .question import Question
from .sampler import Sample, Sampler
from .scoring import Score, score, score_chain
from .session import Session, Turn

__all__ = [
    "SPARE_TOKENS",
    "ChainQuestion",
    "Document",
    "EvaluationResult",
    "Exchange",
    "Language",
    "Mix",
    "MixedDocument",
    "MixedSample",
    "MixedSampler",
    "Question",
    "Reply",
    "Sample",
    "Sampler",
    "Score",
    "Session",
    "Turn",
    "ask",
    "ask_chain",
    "ask_long",
    "ask_updated",
    "chain_answer",
    "chain_answer_ids",
    "chain_document",
    "chain_entries",
    "chain_question",
    "default_entries",
    "evaluate",
    "long_question",
    "mixed_document",
    "score",
    "score_chain",
    "updated_document",
]
