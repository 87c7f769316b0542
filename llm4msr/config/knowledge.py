"""The frozen LLM and how it is asked."""

from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from llm4msr.config.section import Key, Section

ItemVectors = Literal["llm", "encoder", "words", "random", "shuffled"]


class ExtractConfig(Section):
    """The frozen LLM and how it is asked."""

    reads: Literal["items", "users"] = "items"
    """Each item alone, once, and a user's vector is pooled from those of the items in the history; or each user's
    history in one prompt (`users`), as in the paper. Items cost LLM time once, and new rows of old ones none; users
    cost it whenever they take something new."""
    item_vectors: ItemVectors | Annotated[tuple[ItemVectors, ...], Field(min_length=1)] = "llm"
    """For `reads = "items"`: where their vectors come from. The LLM (`llm`); a sentence `encoder`; counts of the
    `words` in titles and features, which need no model at all and are what one has to beat; or a control: `random`
    numbers show what the histories bring without any text, and with `shuffled` each item has what the LLM says of
    another one. A list, such as `["llm", "words"]`, sets them side by side: `pool_dim` components of each, or so many
    of all where a `projection` is trained."""
    items: Literal["all", "trained"] = "all"
    """For `reads = "items"`: which are read. `all` that are described, so that a new one is known by what it is before
    anybody took it; or those of training rows alone (`trained`), where a catalogue is long and few of it are taken."""
    encoder: str = ""
    """For `item_vectors = "encoder"`: a sentence encoder in Hugging Face's layout, named as `model` is. It reads an
    item's title and features, and their vector is the mean over all tokens."""
    pool_dim: int = Field(64, ge=1)
    """How many numbers of the items' vectors are kept and pooled, of each source; see `projection`."""
    projection: Literal["principal", "contrastive"] = "principal"
    """For `reads = "items"`: which numbers these are. The `principal` components; or those of a projection that is
    trained, from eight times as many components of each source, until items that the same user liked in training rows
    lie close together (`contrastive`). That takes seconds, and the LLM stays as it is; of a training row's label, but
    of none of validation and test, a little is then in the items' vectors."""
    point_in_time: bool = True
    """For `reads = "items"`: a row sees its user's vector as it was before that row, so that no vector knows the label
    of its row. Serving sees the whole history, and so do rows of validation and test with `model.past = "stale"`. With
    `reads = "users"` it is false, and `snapshots` do that."""
    snapshots: int = Field(1, ge=1, le=32)
    """For `reads = "users"`: how often the LLM reads a user's training rows, at most. Once, as of the training cut, is
    the published form: a training row sees a vector that knows its label. More often, it also reads the user's first 1,
    2, 4, 8 ... rows (the longest of these), and a training row sees the last such snapshot that is older, or nothing; a
    test row sees one that knows the rows of validation too, unless `model.past = "stale"`. Serving sees what the
    training rows tell. Each costs the time of a prompt, once: new rows leave it as it is."""
    engine: Annotated[Literal["auto", "vllm", "transformers", "http"], Key.HOW] = "auto"
    """What runs the LLM: `vllm` (extra `gpu` or `cpu`), `transformers`, or `auto`, which is vLLM where it is installed
    and can give the `layer`. These give the same vectors but for rounding. `http` asks the endpoint at `http_url`,
    which runs a model of its own."""
    model: str = "smollm2-135m"
    """`smollm2-135m`, a local folder, a URI, or an id of the Hugging Face hub (`owner/name`, `owner/name@revision`).
    With `engine = "http"` the name by which the endpoint knows the model that gives vectors."""
    pooling: Literal["mean", "last", "answer"] = "mean"
    """Which hidden states of the LLM become a prompt's vector: the mean over all its tokens (`mean`), the last token's
    (`last`, the default of `reads = "users"`), or the last token's after the LLM has also written and read its own
    answer (`answer`), for which it writes up to `answer_tokens` for each row. With `mean` and `reads = "items"`, the
    LLM reads of an item what data says and nothing else, neither a question nor a chat template: that is short, and
    every token the item's own. An endpoint (`engine = "http"`) pools as it does: `mean` or `last` then say how, and so
    what it reads; `answer` it cannot give."""
    layer: int = Field(0, ge=0)
    """The LLM layer whose hidden states become vectors, counted from 1; 0 = the last one, after its final norm. Middle
    layers can say more of what a text is about. `transformers` gives any, vLLM the last one alone."""
    answers: Literal["scenarios", "none", "all"] = "scenarios"
    """Texts that the LLM writes for people to read: its answer about each scenario (`scenarios`), none at all (`none`),
    or also about each user or item (`all`), which takes far longer than reading the prompts. They change vectors
    only with `pooling = "answer"`, which has every row answered anyway."""
    answer_tokens: int = Field(96, ge=1, le=4096)
    """Most tokens of an answer; longer ones are cut off there."""
    actors: Annotated[Annotated[int, Field(ge=1)] | Literal["auto"], Key.HOW] = "auto"
    """Engines in parallel; `auto` is `engines_per_gpu` for each GPU (or one for `tensor_parallel` of them), else one
    for each machine, since engines that share a machine's cores gain nothing and each needs memory for another copy of
    the model. Where machines have GPUs, or about the same number of cores, those that come while a pass runs get
    engines too."""
    device: Annotated[Literal["auto", "gpu"], Key.HOW] = "auto"
    """What an engine runs on: GPUs if any machine has some, else CPUs. `gpu` waits for machines with GPUs that an
    autoscaler starts; `actors` must then be a number."""
    tensor_parallel: Annotated[int, Key.HOW] = Field(1, ge=1)
    """vLLM: GPUs that one engine's weights are spread over."""
    engines_per_gpu: Annotated[int, Key.HOW] = Field(1, ge=1, le=16)
    """Engines that share a GPU, where a small model leaves most of it idle: each has its part of the memory."""
    quantization: str = ""
    """vLLM: how the weights are quantised, such as `fp8`; it decides vectors too."""
    tokens_per_second: Annotated[float, Key.HOW] = Field(0, ge=0)
    """Tokens that an actor reads a second, those from the prefix cache not counted: for `--dry-run` alone. 0 = as an
    earlier version measured, or estimated from this machine."""
    actor_cost_per_hour: Annotated[float, Key.HOW] = Field(0, ge=0)
    """What an actor costs an hour, in any currency: for `--dry-run` and progress."""
    rows_per_shard: Annotated[Annotated[int, Field(ge=1, le=1 << 16)] | Literal["auto"], Key.HOW] = "auto"
    """Prompts that an actor reads at a time and writes as one file. An interrupted run loses the shards in flight:
    fewer rows lose less, more rows make fewer files. `auto` is 4,096 on GPUs, which is a minute or more of one, 256 on
    CPUs, and 1,024 for an endpoint."""
    max_users: int = Field(0, ge=0)
    """How many users get knowledge, the most active first; 0 = all. The ranker treats the others as users without
    knowledge. With `reads = "users"` it bounds the LLM's time."""
    titles_per_scenario: int = Field(4, ge=1, le=50)
    """For `reads = "users"`: how many of the latest titles that a user liked in a scenario the prompt shows."""
    max_prompt_tokens: int = Field(1024, ge=16)
    """Most tokens of a prompt, chat template included. A scenario's prompt names fewer titles and scenarios to fit; a
    user's or an item's that is longer fails. This and `answer_tokens` together must be within what the model can
    read."""
    scenario_tolerance: float = Field(0.1, ge=0, le=1)
    """How far a scenario's statistics may move before the LLM is asked about it again: counts by this fraction of those
    in its prompt, shares by this much, and half of the titles and categories. 0 = whenever they move at all."""
    max_failed_fraction: Annotated[float, Key.HOW] = Field(0.01, ge=0, le=1)
    """The share of rows that may fail, of the users, the items and the scenarios separately. More end the run with exit
    code 3; all other rows are kept."""
    forget: Annotated[str, Key.URI] = ""
    """URI of a file with one raw user id a line, exactly as the source has it: they get no knowledge, and `knowledge
    prune` deletes what older versions hold of them."""
    user_template: Annotated[str, Key.URI] = ""
    """For `reads = "users"`: URI of your own template, with `$history`; empty = `user.txt` in
    llm4msr/knowledge/prompts."""
    scenario_template: Annotated[str, Key.URI] = ""
    """URI of your own template for scenarios, with `$scenario`, statistics such as `$titles`, or both; empty =
    `scenario.txt` in llm4msr/knowledge/prompts."""
    item_template: Annotated[str, Key.URI] = ""
    """For `reads = "items"`: URI of your own template, with `$title` and, if you like, `$categories`; empty =
    `item.txt` in llm4msr/knowledge/prompts."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of the LLM's weights and arithmetic. `auto` is what the storage's vectors of this model were made
    in; for the first ones `bfloat16` where all machines that ask have a GPU, or a CPU with avx512_bf16 or AMX, else
    `float32`. The 16-bit formats halve time and memory there and change vectors a little, so another format asks about
    all rows again."""

    http_url: str = ""
    """For `engine = "http"`: address of an OpenAI-style endpoint with `/embeddings`, such as
    `http://127.0.0.1:8000/v1`, without a user, a password or a query."""
    http_revision: str = ""
    """For `engine = "http"`: raise it whenever the model behind the URL changes, which cannot be seen from here. All
    rows are then asked again."""
    http_tokenizer: str = ""
    """For `engine = "http"`: the model's tokenizer (`smollm2-135m`, a folder, a URI or a hub id), if the endpoint takes
    token ids, as vLLM's does. Prompts then get the chat template, and vectors are those that the engine `vllm` gives.
    Empty = the endpoint gets plain text, and four characters count as a token."""
    http_dimensions: int = Field(0, ge=0, le=1 << 16)
    """For `engine = "http"`: numbers of a vector, for models that can shorten it; 0 = as many as the model has."""
    http_chat_model: str = ""
    """For `engine = "http"`: the name of the model that writes `answers`, at `/chat/completions`."""
    http_chat_url: str = ""
    """For `engine = "http"`: where that model is asked, if not at `http_url`: a vLLM server either embeds or writes."""
    http_key_variable: Annotated[str, Key.HOW] = Field("", pattern=r"^([A-Za-z_][A-Za-z0-9_]*)?$")
    """For `engine = "http"`: name of the environment variable that holds the endpoint's key, on every machine that
    asks. Empty = no key is sent."""
    http_requests: Annotated[int, Key.HOW] = Field(16, ge=1, le=1024)
    """For `engine = "http"`: requests at once, of each actor."""
    http_prompts: Annotated[int, Key.HOW] = Field(32, ge=1, le=2048)
    """For `engine = "http"`: prompts in one request for vectors."""
    http_timeout_s: Annotated[float, Key.HOW] = Field(120, gt=0)
    """For `engine = "http"`: how long one try of a request may take, until its answer is there as a whole."""
    http_retries: Annotated[int, Key.HOW] = Field(6, ge=0, le=100)
    """For `engine = "http"`: how often a request is sent again that met no endpoint, 429 or 5xx, or whose answer broke
    off; after the time that the endpoint names, else after half a second and each time up to twice as long."""
    http_price: Annotated[float, Key.HOW] = Field(0, ge=0)
    """For `engine = "http"`: cost of a million tokens of prompts, in any currency, for `--dry-run` and progress."""
    http_answer_price: Annotated[float, Key.HOW] = Field(0, ge=0)
    """For `engine = "http"`: cost of a million tokens of answers, likewise."""

    @property
    def width_before(self) -> int:
        """How many principal components of the items' vectors a projection starts from."""
        return self.pool_dim * (8 if self.projection == "contrastive" else 1)

    @property
    def sources(self) -> tuple[str, ...]:
        """Where items' vectors come from, one beside the other."""
        return (self.item_vectors,) if isinstance(self.item_vectors, str) else self.item_vectors

    @model_validator(mode="before")
    @classmethod
    def _fill_in_for_users(cls, given: Any) -> Any:
        """Of what is not given, what goes with a prompt for each user."""
        if isinstance(given, dict) and given.get("reads") == "users":
            return {"pooling": "last", "point_in_time": False} | given
        return given

    @model_validator(mode="after")
    def _check_points_in_time(self) -> Self:
        if self.point_in_time and self.reads != "items":
            raise ValueError("point_in_time is for reads = 'items'; for reads = 'users' there are snapshots")
        if self.snapshots > 1 and self.reads != "users":
            raise ValueError("snapshots is for reads = 'users'; for reads = 'items' there is point_in_time")
        return self

    @model_validator(mode="after")
    def _check_sources(self) -> Self:
        if len({*self.sources}) < len(self.sources):
            raise ValueError(f"item_vectors = {list(self.sources)}: each only once")
        if self.reads == "users" and self.item_vectors != "llm":
            raise ValueError(f"item_vectors = {self.item_vectors!r} is for reads = 'items'")
        if self.reads == "users" and self.projection != "principal":
            raise ValueError(f"projection = {self.projection!r} is for reads = 'items'")
        if "encoder" in self.sources and not self.encoder:
            raise ValueError("item_vectors = 'encoder' needs a model in extract.encoder: a folder, a URI or a hub id")
        return self

    @model_validator(mode="after")
    def _check_layer(self) -> Self:
        if self.layer and self.engine == "vllm":
            raise ValueError(
                f"layer = {self.layer}: vLLM gives the hidden states of the last layer alone (layer = 0); for another "
                "one set engine = 'transformers'"
            )
        return self

    @model_validator(mode="after")
    def _check_gpus(self) -> Self:
        if self.tensor_parallel > 1 and self.engines_per_gpu > 1:
            raise ValueError("an engine has a part of a GPU (engines_per_gpu), or several (tensor_parallel): not both")
        return self

    @model_validator(mode="after")
    def _check_endpoint(self) -> Self:
        if self.engine != "http":
            if self.http_url:
                raise ValueError(f"http_url is for engine = 'http'; engine is {self.engine!r}")
            return self
        for key, url in (("http_url", self.http_url), ("http_chat_url", self.http_chat_url or self.http_url)):
            if problem := _problem_of_url(url):
                raise ValueError(f"{key} for engine = 'http': {problem}")
        local = {"layer": 0, "dtype": "auto", "quantization": "", "device": "auto"}
        local |= {"tensor_parallel": 1, "engines_per_gpu": 1}
        if wrong := [key for key, value in local.items() if getattr(self, key) != value]:
            raise ValueError(f"{wrong[0]} is up to the endpoint with engine = 'http'; leave it out")
        if self.pooling == "answer":
            raise ValueError(
                "pooling = 'answer' needs the LLM itself, which an endpoint does not show; with engine = 'http' choose "
                "'last' or 'mean', whichever the endpoint pools by"
            )
        if self.answers != "none" and not self.http_chat_model:
            raise ValueError(
                f"answers = {self.answers!r} with engine = 'http' needs the name of a model that writes in "
                "http_chat_model; or set answers = 'none'"
            )
        return self

    @model_validator(mode="after")
    def _check_items_are_asked(self) -> Self:
        if self.reads == "items" and self.pooling == "mean" and self.answers == "all":
            raise ValueError(
                "answers = 'all' asks about each item, and with pooling = 'mean' the LLM reads an item's own text "
                "without a question; choose answers = 'scenarios', another pooling, or reads = 'users'"
            )
        return self


def _problem_of_url(url: str) -> str:
    """What is wrong with an endpoint's address; empty if nothing is. Never shows the address, which may hold a key."""
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good or not url.isprintable() or " " in url:
        return "give the endpoint's address, such as http://127.0.0.1:8000/v1"
    if "@" in parts.netloc or parts.query or parts.fragment:
        return "an address without user, password, query and fragment; a key belongs in http_key_variable's variable"
    return ""
