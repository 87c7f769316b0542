"""The config of Ray Serve, in a file or in a RayService: Ray's own schema lets misspelt keys pass."""

from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from llm4msr.config import ServeConfig
from tests.support.manifests.base import At, Problem, unknown


def serve(config: Any, at: At) -> Iterator[Problem]:
    """What `serve deploy` and a RayService take: Ray's schema, which lets misspelt keys pass, and our own arguments."""
    from ray.serve.schema import ServeDeploySchema

    yield from misspelt(config, ServeDeploySchema, at)
    yield from refused(ServeDeploySchema, config, at)
    for i, application in enumerate(config.get("applications", [])):
        yield from refused(ServeConfig, application.get("args", {}), (*at, "applications", i, "args"))


def refused(model: type[BaseModel], value: Any, at: At) -> Iterator[Problem]:
    try:
        model.model_validate(value)
    except ValidationError as error:
        for each in error.errors():
            if each["type"] != "extra_forbidden":
                yield Problem((*at, *each["loc"]), each["msg"])
            elif model is ServeConfig:  # Ray's own were found by `misspelt`
                yield Problem((*at, *each["loc"]), unknown(str(each["loc"][-1]), model.model_fields))


def misspelt(value: Any, model: type[BaseModel], at: At) -> Iterator[Problem]:
    """Keys that the model does not have, at any depth."""
    for name, inner in value.items() if isinstance(value, dict) else ():
        if name not in model.model_fields:
            yield Problem((*at, name), unknown(name, model.model_fields))
            continue
        for part in models_in(model.model_fields[name].annotation):
            for i, each in enumerate(inner) if isinstance(inner, list) else [(None, inner)]:
                yield from misspelt(each, part, (*at, name) if i is None else (*at, name, i))


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """The one model of a field such as `list[Model]` or `Model | None`; none where plain mappings will do as well."""
    parts = [annotation, *get_args(annotation), *(part for outer in get_args(annotation) for part in get_args(outer))]
    return [part for part in parts if isinstance(part, type) and issubclass(part, BaseModel)]
