"""The models of specs/published/: their parameters against the published counts, and their memory by context.

Prints the README's table. Everything is computed from the specs, except what is published about the models,
which is in published_models.yaml with its sources.

    python benchmarks/published_table.py [--transformers]

With --transformers, transformers builds each model whose configuration is there too, on the meta device,
and its parameters are counted.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from archsearch.spec import load_spec, model_cost
from archsearch.spec.quantities import bytes_text, count_text, parse_count

ROOT = Path(__file__).resolve().parents[1]
SPECS = ROOT / "specs" / "published"
CONTEXTS = {"4k": 4096, "32k": 32768, "256k": 262144}
DTYPE = "bfloat16"
TOLERANCE = 0.001
"""How far a count may be from an exact published one, as a share of it."""


def published() -> dict[str, dict[str, Any]]:
    """What is published about each spec, by the spec's file name without `.yaml`."""
    return YAML(typ="safe").load((ROOT / "benchmarks" / "published_models.yaml").read_text())["models"]


def agrees(params: int, parameters: int | str) -> bool:
    """Whether a count is the published one: within 0.1 %, or a unit of the last digit of a rounded one."""
    if isinstance(parameters, int):
        return abs(params - parameters) <= TOLERANCE * parameters
    digits = parameters[:-1].partition(".")[2]
    unit = parse_count("1" + parameters[-1]) / 10 ** len(digits)
    return abs(params - parse_count(parameters)) < unit


def difference(params: int, parameters: int | str | None) -> str:
    """The count against the published one, in words for the table."""
    if parameters is None:
        return "-"
    if isinstance(parameters, str):
        return f"{parameters}, rounded"
    if params == parameters:
        return "equal"
    return f"{parameters:,} ({params / parameters - 1:+.4%})"


def transformers_count(fields: dict[str, Any]) -> int:
    """Parameters of the model that transformers makes of a configuration, without allocating it."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(transformers_config(fields))
    model.tie_weights()
    return sum(parameter.numel() for parameter in model.parameters())


def transformers_config(fields: dict[str, Any]) -> Any:
    """transformers' configuration object of a published configuration."""
    from transformers import CONFIG_MAPPING

    arguments = {name: _written_out(value) for name, value in fields.items()}
    return CONFIG_MAPPING[arguments.pop("model_type")](**arguments)


def _written_out(value: Any) -> Any:
    if isinstance(value, dict) and "stack" in value:
        return [value["letters"][letter] for letter in value["stack"]]
    return value


def rows(with_transformers: bool) -> Iterator[list[str]]:
    models = published()
    for path in sorted(SPECS.glob("*.yaml"), key=lambda path: model_cost(load_spec(path), 1).total.params):
        spec, model = load_spec(path), models[path.stem]
        costs = [model_cost(spec, context, DTYPE).total for context in CONTEXTS.values()]
        params, active = costs[0].params, costs[0].active_params
        row = [f"[{spec.name}](specs/published/{path.name})", f"{params:,}"]
        row.append(difference(params, model.get("parameters")))
        row.append("-" if active == params else count_text(active))
        row += [bytes_text(cost.state_bytes) for cost in costs]
        if with_transformers:
            fields = model.get("transformers")
            row.append("-" if fields is None else f"{transformers_count(fields):,}")
        yield row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--transformers", action="store_true")
    options = parser.parse_args()
    head = ["spec", "parameters", "published", "active", *(f"KV + state @ {name}" for name in CONTEXTS)]
    if options.transformers:
        head.append("in transformers")
    print("| " + " | ".join(head) + " |")
    print("|---" * len(head) + "|")
    for row in rows(options.transformers):
        print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
