"""The recall language: documents, questions and answers that measure what a KV cache still remembers."""

from __future__ import annotations

from .client import Reply, ask
from .document import Document
from .evaluation import EvaluationResult, Exchange, default_entries, evaluate
from .language import Language
from .question import Question
from .sampler import Sample, Sampler
from .scoring import Score, score
from .session import Session, Turn

__all__ = [
    "Document",
    "EvaluationResult",
    "Exchange",
    "Language",
    "Question",
    "Reply",
    "Sample",
    "Sampler",
    "Score",
    "Session",
    "Turn",
    "ask",
    "default_entries",
    "evaluate",
    "score",
]
