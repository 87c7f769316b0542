"""The frozen LLM and how it is asked."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from llm4msr.config.section import Key, Section


class ExtractConfig(Section):
    """The frozen LLM and how it is asked."""

    reads: Literal["users", "items"] = "users"
    """Each user's history in one prompt, as in the paper; or each item alone, once, and a user's vector is pooled from
    those of the items in the history. That costs LLM time per item, and new rows of old items cost none."""
    item_vectors: Literal["llm", "random"] = "llm"
    """`random` is a control for `reads = "items"`: what the histories bring without the LLM."""
    pool_dim: int = Field(64, ge=1)
    """How many principal components of the items' vectors are pooled."""
    point_in_time: bool = False
    """For `reads = "items"`: a training row sees its user's vector as it was before that row, so that no vector knows
    the label of its row. Later rows, and serving, see the whole history."""
    engine: Annotated[Literal["auto", "vllm", "transformers"], Key.HOW] = "auto"
    model: str = "smollm2-135m"
    """`smollm2-135m`, a local folder, a URI, or an id of the Hugging Face hub (`owner/name`, `owner/name@revision`)."""
    pooling: Literal["last", "mean", "answer"] = "last"
    answers: Literal["scenarios", "none", "all"] = "scenarios"
    answer_tokens: int = Field(96, ge=1, le=4096)
    actors: Annotated[Annotated[int, Field(ge=1)] | Literal["auto"], Key.HOW] = "auto"
    """Engines in parallel; `auto` is one for each GPU (or `tensor_parallel` of them), else one for each machine, since
    engines that share a machine's cores gain nothing and each needs memory for another copy of the model."""
    device: Annotated[Literal["auto", "gpu"], Key.HOW] = "auto"
    """What an engine runs on: GPUs if any machine has some, else CPUs. `gpu` waits for machines with GPUs that an
    autoscaler starts; `actors` must then be a number."""
    tensor_parallel: Annotated[int, Key.HOW] = Field(1, ge=1)
    """vLLM: GPUs that one engine's weights are spread over."""
    quantization: str = ""
    """vLLM: how the weights are quantised, such as `fp8`; it decides vectors too."""
    tokens_per_second: Annotated[float, Key.HOW] = Field(0, ge=0)
    """Of one actor, without tokens from the prefix cache: for `--dry-run` alone. 0 = as an earlier version measured, or
    estimated from this machine."""
    actor_cost_per_hour: Annotated[float, Key.HOW] = Field(0, ge=0)
    """In whatever currency: for `--dry-run` alone."""
    rows_per_shard: Annotated[int, Key.HOW] = Field(256, ge=1)
    max_users: int = Field(0, ge=0)
    titles_per_scenario: int = Field(4, ge=1, le=50)
    max_prompt_tokens: int = Field(1024, ge=16)
    scenario_tolerance: float = Field(0.1, ge=0, le=1)
    """How far a scenario's statistics may move before the LLM is asked about it again: counts by this fraction of those
    in its prompt, shares by this much, and half of the titles and categories. 0 = whenever they move at all."""
    max_failed_fraction: Annotated[float, Key.HOW] = Field(0.01, ge=0, le=1)
    """Of the users, of the items and of the scenarios separately."""
    forget: Annotated[str, Key.URI] = ""
    """URI of a file with one raw user id a line, exactly as the source has it: they get no knowledge, and `knowledge
    prune` deletes what older versions hold of them."""
    user_template: Annotated[str, Key.URI] = ""
    scenario_template: Annotated[str, Key.URI] = ""
    item_template: Annotated[str, Key.URI] = ""
    """URIs of your own templates; empty = the ones in llm4msr/knowledge/prompts."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"

    @model_validator(mode="after")
    def _check_points_in_time_are_pooled(self) -> Self:
        if self.point_in_time and self.reads != "items":
            raise ValueError("point_in_time is for reads = 'items'; a prompt for each training row would be asked")
        return self
