"""Runs as repositories of the hub: what is in one, its card, and how it is opened again::

    config.json          the target and the settings, with what identifies the target's content
    twist.safetensors    the twist
    certificate.json     bounds and divergences, if it was certified
    README.md            the card, written from them
    custom_generate/     `model.generate(custom_generate="this repository")`

There is nothing of the training in it, and no code that `from_pretrained` would run.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import ModelCard, ModelCardData, ModelHubMixin, snapshot_download

from twistlm.core.errors import RunError
from twistlm.core.folders import is_occupied, writing
from twistlm.runs.folder import AskedRun, RunFolder, versions
from twistlm.runs.folder.place import check_own
from twistlm.runs.folder.run_folder import NAMES
from twistlm.runs.seen import seen_by
from twistlm.sampling.prompts import quoted

if TYPE_CHECKING:
    from twistlm.runs.run import Run

TEMPLATE = Path(__file__).with_name("card.md")
CODE = "custom_generate"
# Prompts that a card quotes.
MOST_PROMPTS = 5
# transformers runs this with `trust_remote_code=True`, and never otherwise.
GENERATE = '''"""Samples of the posterior of this repository's run, for `generate` of transformers."""

from functools import lru_cache


@lru_cache(1)
def opened(place):
    import twistlm

    return twistlm.Run.from_pretrained(place)


def generate(model, run=None, **given):
    from twistlm.integrations import generate as posterior

    run = opened({place!r}) if run is None else run
    return type(model).generate(model, custom_generate=posterior, run=run, **given)
'''


def save(run: "Run", folder: str | Path, *, overwrite: bool = False) -> Path:
    """As `Run.save_pretrained`."""
    place = Path(folder)
    if is_occupied(place):
        replaceable = RunFolder.is_ours(place)
        if not (replaceable and overwrite):
            says, remedy = ("holds a run", ", or overwrite=True") if replaceable else ("is not a run folder", "")
            raise RunError(f"{place} {says}, so it is left alone; choose another folder{remedy}")
        # A file of that name may be anybody's where no run was published.
        card = ("README.md",) if (place / CODE).is_dir() else ()
        check_own(place, (*NAMES, *card, f"{CODE}/*"), "a run folder")
    with writing(place, replace=overwrite) as draft:
        _Repository(run, str(place.resolve())).save_pretrained(draft.path)
        draft.take_place()
    return place


def push(run: "Run", repo_id: str, **options: Any) -> str:
    """As `Run.push_to_hub`."""
    return str(_Repository(run, repo_id).push_to_hub(repo_id, **options))


def fetched(name: str | Path, **options: Any) -> str | Path:
    """A run's folder: one of this machine, or what `huggingface_hub.snapshot_download` makes of a repository."""
    path: str | Path = name if Path(name).is_dir() else snapshot_download(str(name), **options)
    return path


class _Repository(ModelHubMixin):
    """A run on its way to a folder; `place` is how it will be asked for."""

    def __init__(self, run: "Run", place: str) -> None:
        self.run, self.place = run, place

    def _save_pretrained(self, save_directory: Path) -> None:
        run, target = self.run, self.run.target
        asked = AskedRun(target.spec(), run.config, fingerprint=target.known_fingerprint)
        twist, about = run.model.twist, {} if run.informed is None else {"informed": run.informed.as_dict()}
        assert twist is not None
        folder = RunFolder.keep(save_directory, asked, twist.module.state_dict(), about, seen_by(run).origins)
        if (known := run.evaluated) is not None:
            folder.evaluations.publish(known.certificate, known.settings, **known.more)
        code = save_directory / CODE
        code.mkdir(exist_ok=True)
        (code / "generate.py").write_text(GENERATE.replace("{place!r}", repr(self.place)), encoding="utf-8")
        (code / "requirements.txt").write_text("twistlm\n", encoding="utf-8")

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """From what is known of the run."""
        run, certificate = self.run, self.run.certificate
        described, prompts = run.target.spec(), run.target.prompts
        model = run.target.model_name
        data = ModelCardData(
            library_name="twistlm",
            pipeline_tag="text-generation",
            tags=["twisted-smc", "posterior-sampling"],
            # A name of the hub, and no folder nor what the package brings.
            base_model=model if "/" in model and not Path(model).exists() else None,
        )
        estimates = {} if certificate is None else certificate.estimates
        card: ModelCard = ModelCard.from_template(
            data,
            template_path=str(TEMPLATE),
            title=self.place.rstrip("/").rpartition("/")[2],
            place=self.place,
            model=model,
            **{name: described[name] for name in ("potential", "num_tokens", "eos")},
            twist=run.config.twist,
            loss=run.config.training.loss,
            seed=run.config.seed,
            num_prompts=len(prompts),
            prompts=[f"`{quoted(entry)}`" for entry in prompts.entries[:MOST_PROMPTS]],
            certificate=certificate,
            summary="" if certificate is None else certificate.summary(),
            estimates=[(name, str(each)) for name, each in estimates.items() if each is not None],
            versions=", ".join(f"{name} {version}" for name, version in versions().items()),
        )
        return card
