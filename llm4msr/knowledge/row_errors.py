"""Rows that fail alone: whatever one row does, the others of its shard go on, and it carries its error as a text."""

from collections.abc import Callable, Sequence

from llm4msr.arrays import Array, Halves
from llm4msr.errors import EndpointError
from llm4msr.knowledge.engines import Tokenizer


def tokenize(tokenizer: Tokenizer, prompts: list[str], answers: list[str], errors: list[str]) -> list[list[int]]:
    """Token ids of each good row; a row that cannot be tokenised gets its error."""
    tokens: list[list[int]] = [[] for _ in prompts]
    good = _good_rows(errors)
    try:
        batch = tokenizer.encode_batch([prompts[row] for row in good], [answers[row] for row in good])
        together = dict(zip(good, batch, strict=True))
    except Exception:  # of one row, which shows itself below
        together = {}
    for row in good:
        try:
            ids = together.get(row)
            tokens[row] = tokenizer(prompts[row], answers[row]) if ids is None else tokenizer.check_length(ids)
        except Exception as error:
            errors[row] = _message(error)
    return tokens


def fill(out: Array, errors: list[str], ask: Callable[[list[int]], list[str] | Halves]) -> None:
    """Fill every good row; if they fail together, each is tried alone so that only the bad ones fail."""
    good = _good_rows(errors)
    try:
        if good:
            out[good] = ask(good)
    except EndpointError:
        raise  # no row's fault
    except Exception:
        for row in good:
            try:
                out[row] = ask([row])[0]
            except EndpointError:
                raise
            except Exception as error:
                errors[row] = _message(error)


def _good_rows(errors: Sequence[str]) -> list[int]:
    return [row for row, error in enumerate(errors) if not error]


def _message(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:500]
