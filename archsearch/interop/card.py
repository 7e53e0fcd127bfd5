"""README.md of an exported model: what it is, how it was trained, how it scored, how to load it."""

from __future__ import annotations

from archsearch.interop.origin import Origin
from archsearch.spec.cost import model_cost
from archsearch.spec.loading import to_yaml
from archsearch.spec.quantities import count_text


def model_card(origin: Origin, class_name: str, native: bool, license: str) -> str:
    """The card's text. native: whether transformers knows the class by itself."""
    spec = origin.model.spec
    params = count_text(model_cost(spec, context=1).total.params)
    front = {"license": license, "library_name": "transformers", "pipeline_tag": "text-generation"}
    trust = "" if native else ", trust_remote_code=True"
    code = "a class of transformers" if native else "its code is in this folder, and needs no archsearch"
    parts = [
        f"---\n{to_yaml(front | {'tags': ['archsearch', *sorted(_families(origin))]})}---\n",
        f"# {spec.name}\n",
        f"A language model of {params} parameters, described and built with archsearch, as `{class_name}`\n"
        f"({code}).\n",
        "```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f'model = AutoModelForCausalLM.from_pretrained("FOLDER"{trust})\n'
        + ('tokenizer = AutoTokenizer.from_pretrained("FOLDER")\n' if spec.tokenizer else "")
        + "```\n",
        "" if spec.tokenizer else "It came without a tokenizer: token ids go in and come out.\n",
        *_training(origin),
        *_scores(origin),
        f"## Specification\n\nHash `{spec.hash}`.\n\n```yaml\n{to_yaml(spec)}```\n",
    ]
    return "\n".join(part for part in parts if part)


def _families(origin: Origin) -> set[str]:
    """Kinds of layers, as tags."""
    nodes = [inner for node in origin.model.spec.nodes for inner in node.walk()]
    return {node.kind for node in nodes if not node.branches}


def _training(origin: Origin) -> list[str]:
    experiment = origin.experiment
    if experiment is None:
        return []
    training, data = experiment.training, experiment.data
    tokens, whole = origin.steps * training.tokens_per_step, training.steps
    how_far = "" if origin.steps >= whole else f" (stopped at {origin.steps:,} of {whole:,})"
    shares = ", ".join(f"{name} {share:.2f}" for name, share in data.weights.items() if share > 0)
    return [
        "## Training\n",
        f"{tokens:,} tokens in {origin.steps:,} steps{how_far}, contexts of {training.context}, "
        f"peak learning rate {training.lr:g}, seed {training.seed}.\n"
        f"Mixture, by share of the loss: {shares}.\n",
    ]


def _scores(origin: Origin) -> list[str]:
    if not origin.metrics or origin.experiment is None:
        return []
    rows = [f"| {name} | {value:.4f} |" for name, value in sorted(origin.metrics.items())]
    split = origin.experiment.evaluation.split
    head = f"## Scores\n\nOn archsearch's held-out data, the {split} split.\n\n| metric | value |\n|---|---:|"
    return ["\n".join([head, *rows, ""])]
