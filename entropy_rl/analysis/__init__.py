"""Entropy by behavior of tokens and sentences: the analysis of arXiv 2506.14758, section 2.

Pure functions of responses, without files or models, in NumPy and float64.
"""

from entropy_rl.analysis.analyze import Analysis, PlacedSentence, RareBehaviors, analyze, find_rare
from entropy_rl.analysis.behaviors import (
    Annotated,
    annotate,
)
from entropy_rl.analysis.contrasts import Contrast, Group, contrast
from entropy_rl.analysis.over_steps import Point, dynamics, point
from entropy_rl.analysis.rare import (
    mean_nearest_distance,
    principal_components,
    rare_sentences,
    tf_idf,
)
from entropy_rl.analysis.responses import Response, TokenSpans
from entropy_rl.analysis.sentences import REFLECTIVE, compile_patterns, split_sentences
from entropy_rl.analysis.words import (
    WORDS,
    WordLists,
    find_pivotal,
    most_entropic,
    word_patterns,
)

__all__ = [
    "REFLECTIVE",
    "WORDS",
    "Analysis",
    "Annotated",
    "Contrast",
    "Group",
    "PlacedSentence",
    "Point",
    "RareBehaviors",
    "Response",
    "TokenSpans",
    "WordLists",
    "analyze",
    "annotate",
    "compile_patterns",
    "contrast",
    "dynamics",
    "find_pivotal",
    "find_rare",
    "mean_nearest_distance",
    "most_entropic",
    "point",
    "principal_components",
    "rare_sentences",
    "split_sentences",
    "tf_idf",
    "word_patterns",
]
