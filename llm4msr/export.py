"""Publish the bundle of one trained model: everything that serving needs, and a card that says what it is."""

import safetensors.torch
from upath import UPath

from llm4msr import bundle, codes, popularity, prompts, session, storage
from llm4msr.config import Config
from llm4msr.errors import ConfigError
from llm4msr.fit import Data
from llm4msr.storage import Built, StageOutput
from llm4msr.text import markdown, masked, shortened
from llm4msr.train import WEIGHTS, inputs, trained

_CARD = """# {name}: a multi-scenario ranker{knowing}

- Backbone `{backbone}`, knowledge `{variant}`, seed {seed}; {parameters:,} parameters.
- Trained on {rows:,} rows, the best of {epochs} epochs by {by} on validation rows (epoch {best}).
- On validation rows: {metrics}. Beside it, {baselines}.
{warnings}- Frozen LLM: {llm}.
- Load it: `from llm4msr import Ranker; Ranker.load("THIS FOLDER").rank(request)`, or serve it: `llm4msr serve`.
- Scores are probabilities of a like as far as the training rows were representative; they are not calibrated further.
- Made by LLM4MSR (CIKM 2024, arXiv 2406.12529) as implemented in llm4msr {version}.
"""


@session.own_errors
def export(config: Config) -> StageOutput:
    """Publish the bundle.

    Raises:
        ConfigError: the model is not trained yet, or is a control, which nobody would serve.
    """
    check_servable(config)
    model = trained(config)
    prepared, knowledge = inputs(config)
    card = _card(config, model, knowledge)

    def build(folder: UPath) -> Built:
        data = Data.open(config, prepared, knowledge)
        net = data.new_net(config)
        net.load_state_dict(safetensors.torch.load(model.read(WEIGHTS)))
        encoded = codes.encoded(knowledge, net.eval().user_code) if knowledge is not None and net.uses_users else ()
        llm = {} if knowledge is None else llm_of(config, knowledge)
        return bundle.write(config, net, data, encoded, llm, card, folder)

    settings = config.model_dump(include={"model"})
    return storage.publish(_folder(config, model), "export", config.seed, settings, {"train": model.folder.name}, build)


def check_servable(config: Config) -> None:
    """Raise a ConfigError if the model is a control, which nobody would serve."""
    if config.model.control != "none":
        raise ConfigError(f"model.control = '{config.model.control}': wrong vectors are for measuring, not for serving")


def llm_of(config: Config, knowledge: StageOutput) -> dict[str, str]:
    """What decides whether two extractions' vectors mean the same to a net."""
    e = config.extract
    found = {
        "model": masked(e.model),
        "revision": knowledge.manifest.inputs["revision"],
        "pooling": e.pooling,
        "dtype": e.dtype,
    }
    if e.reads == "items":  # their principal components are those of one extraction
        return found | {"items": knowledge.manifest.fingerprint}
    return found | {"template": storage.digest(prompts.template("user", e.user_template).template)}


def exported(config: Config) -> StageOutput:
    """The finished bundle for this config.

    Raises:
        ConfigError: there is none yet.
    """
    folder = _folder(config, trained(config))
    found = storage.open_output(folder)
    if found is None:
        raise ConfigError(f"{folder}: no bundle for this config yet; run `llm4msr export` first")
    return found


def _folder(config: Config, model: StageOutput) -> UPath:
    name = storage.digest_of([bundle.VERSION, config.name, model.folder.name, model.manifest.files[WEIGHTS].digest])
    return storage.path(config.root) / "export" / name[:12]


def _card(config: Config, model: StageOutput, knowledge: StageOutput | None) -> str:
    info = model.manifest.info
    llm = "none"
    if knowledge is not None:
        asked = knowledge.manifest.inputs
        revision = markdown(asked["revision"])
        llm = f"{markdown(asked['model'], 200)} (revision {revision}), pooling {config.extract.pooling}"
    return _CARD.format(
        name=config.name,
        knowing="" if knowledge is None else " with LLM knowledge",
        backbone=shortened(config.model.backbone).replace("`", ""),
        variant=config.model.variant,
        seed=config.seed,
        parameters=info["parameters"],
        rows=model.manifest.rows,
        epochs=info["epochs"],
        metrics=popularity.phrase(info["metrics"]["overall"]),
        baselines="; ".join(f"{name}: {popularity.phrase(one)}" for name, one in info["baselines"].items()),
        warnings="".join(f"- **Warning**: {line}.\n" for line in info["warnings"]),
        best=info["best_epoch"],
        by="AUC" if info["metrics"]["overall"]["auc"] is not None else "logloss",
        llm=llm,
        version=model.manifest.libraries.get("llm4msr", ""),
    )
