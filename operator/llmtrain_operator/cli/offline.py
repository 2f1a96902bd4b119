"""`llmtrain validate` and `llmtrain crd`: what needs no cluster."""

from __future__ import annotations

import sys
from typing import IO, Any

import click
import yaml

from llmtrain_operator.api.crd import as_yaml
from llmtrain_operator.api.validation import Problem, parse
from llmtrain_operator.contract import names


@click.command()
@click.argument("file", type=click.File("r", encoding="utf-8"))
def validate(file: IO[str]) -> None:
    """Check the jobs in FILE (- for standard input) as the operator would. Exit code 1 if there are problems."""
    verdicts = [_judge(job) for job in jobs_in(file)]
    if not all(verdicts):
        sys.exit(1)


def jobs_in(file: IO[str]) -> list[dict[str, Any]]:
    """The jobs in a file, at least one, also those in lists; other objects are passed over. Raises
    `click.ClickException`, also for one without a name."""
    try:
        objects = [each for each in yaml.safe_load_all(file) if isinstance(each, dict)]
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise click.ClickException(f"{file.name}: not YAML: {' '.join(str(error).split())}") from error
    listed = [item for each in objects for item in _items(each)]
    jobs = [each for each in listed if isinstance(each, dict) and each.get("kind") == names.KIND]
    if not jobs:
        raise click.ClickException(f"{file.name}: there is no {names.KIND} in it")
    for job in jobs:
        metadata = job.get("metadata")
        name = metadata.get("name") if isinstance(metadata, dict) else None
        if not isinstance(name, str):
            raise click.ClickException(
                f"{file.name}: metadata.name: a job needs a name that is a string (is {name!r}); quote a number"
            )
    return jobs


def problems_of(job: dict[str, Any]) -> list[Problem]:
    """Everything wrong with a job of `jobs_in`."""
    version, spec = job.get("apiVersion"), job.get("spec") or {}
    if version != names.API_VERSION:
        return [Problem("apiVersion", version, "it is another version", f"Write {names.API_VERSION}")]
    if not isinstance(spec, dict):
        return [Problem("spec", spec, "it is no object", "kubectl explain ltj.spec says what may stand here")]
    return list(parse(job["metadata"]["name"], spec)[1])


def _items(found: dict[str, Any]) -> list[Any]:
    items = found.get("items")
    return items if isinstance(items, list) and str(found.get("kind", "")).endswith("List") else [found]


@click.command()
def crd() -> None:
    """Print the CustomResourceDefinition, for `kubectl apply -f -`."""
    click.echo(as_yaml(), nl=False)


def _judge(job: dict[str, Any]) -> bool:
    name, problems = job["metadata"]["name"], problems_of(job)
    for problem in problems:
        click.echo(f"{name}: {problem.path}: {problem.message} (is {problem.value!r}). {problem.remedy}")
    if not problems:
        click.echo(f"{name}: valid")
    return not problems
