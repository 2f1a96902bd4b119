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
    """The jobs in a file, at least one; other objects are passed over. Raises `click.ClickException`."""
    try:
        objects = [each for each in yaml.safe_load_all(file) if each is not None]
    except yaml.YAMLError as error:
        raise click.ClickException(f"{file.name}: not YAML: {' '.join(str(error).split())}") from error
    jobs = [each for each in objects if isinstance(each, dict) and each.get("kind") == names.KIND]
    if not jobs:
        raise click.ClickException(f"{file.name}: there is no {names.KIND} in it")
    return jobs


@click.command()
def crd() -> None:
    """Print the CustomResourceDefinition, for `kubectl apply -f -`."""
    click.echo(as_yaml(), nl=False)


def _judge(job: dict[str, Any]) -> bool:
    name = (job.get("metadata") or {}).get("name") or ""
    problems = list(parse(name, job.get("spec") or {})[1])
    if job.get("apiVersion") != names.API_VERSION:
        version = job.get("apiVersion")
        problems.insert(0, Problem("apiVersion", version, "it is another version", f"Write {names.API_VERSION}"))
    for problem in problems:
        click.echo(f"{name}: {problem.path}: {problem.message} (is {problem.value!r}). {problem.remedy}")
    if not problems:
        click.echo(f"{name}: valid")
    return not problems
