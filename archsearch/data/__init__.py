"""Text, recall tasks and mixtures of them: token ids in, training steps and held-out sets out."""

from archsearch.data.corpora import Domain, load_domain, open_domain
from archsearch.data.files import load_text
from archsearch.data.heldout import RECALL_TASKS, RecallSet, recall_examples, recall_spec, text_windows
from archsearch.data.mixture import Group, MixtureStream, StepBatch
from archsearch.data.random_streams import IGNORE, named_generator
from archsearch.data.sources import Source, open_source
from archsearch.data.spec import (
    BUILT_IN,
    DataSpec,
    DomainSpec,
    FactsSpec,
    MqarSpec,
    SourceSpec,
    TextSpec,
)
from archsearch.data.tokenizer import ByteTokenizer, get_tokenizer

__all__ = [
    "BUILT_IN",
    "IGNORE",
    "RECALL_TASKS",
    "ByteTokenizer",
    "DataSpec",
    "Domain",
    "DomainSpec",
    "FactsSpec",
    "Group",
    "MixtureStream",
    "MqarSpec",
    "RecallSet",
    "Source",
    "SourceSpec",
    "StepBatch",
    "TextSpec",
    "get_tokenizer",
    "load_domain",
    "load_text",
    "named_generator",
    "open_domain",
    "open_source",
    "recall_examples",
    "recall_spec",
    "text_windows",
]
