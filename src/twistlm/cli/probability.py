"""`twistlm probability`."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import MinLen
from tyro.conf import Positional, arg

from twistlm.cli.options import (
    OR_URL,
    AnyPlace,
    Count,
    EngineOptions,
    FilePath,
    Group,
    IfExists,
    Positive,
    Seed,
    Text,
)
from twistlm.core.errors import ConfigError

if TYPE_CHECKING:
    from twistlm.potentials.protocol import Potential
    from twistlm.sampling.prompts import Prompts


# How an event may be given.
WAYS = ("potential", "classifier", "regex", "pattern", "json_schema", "grammar", "function")


@dataclass(frozen=True)
class OfEvent:
    """What is to happen: a score by one of several ways, and how high it is to be."""

    potential: Annotated[
        Text | None,
        arg(help="The score is this potential, NAME or NAME:key=value,…: `twistlm list potential`, e.g. jigsaw."),
    ] = None
    classifier: Annotated[
        Text | None, arg(help="The score is its probability of --label: bundled name, hub name or folder.")
    ] = None
    label: Annotated[Text | None, arg(help="Label of the classifier.")] = None
    logit_means: Annotated[
        Literal["label", "not label"] | None, arg(help="What a high logit of a classifier with a single one means.")
    ] = None
    regex: Annotated[Text | None, arg(help="The event is that the text matches; the score is 0 or 1.")] = None
    pattern: Annotated[
        Text | None,
        arg(help='The answer, from beginning to end, matches: " [0-9]{4}". Draws keep to it, however rare it is.'),
    ] = None
    json_schema: Annotated[
        Text | None, arg(help="The answer is JSON by this schema: a file, or the schema itself. Draws keep to it.")
    ] = None
    grammar: Annotated[
        Text | None,
        arg(help="The answer is of this grammar: a file in Lark's syntax with a rule start. Draws keep to it."),
    ] = None
    function: Annotated[
        Text | None, arg(help="module:function of a list of texts that returns log φ of each (φ is the score).")
    ] = None
    thresholds: Annotated[
        Annotated[tuple[Positive, ...], MinLen(1)],
        arg(help="The event: the score is at least so much. Several go from easy to hard."),
    ] = (0.5,)

    def score(self) -> "Potential":
        """The score.

        Raises:
            ConfigError: not just one of them is given, or what belongs to another.
        """
        from twistlm.potentials import from_spec, named

        ways = {name: getattr(self, name) for name in WAYS}
        wanted = [name for name, value in ways.items() if value is not None]
        if len(wanted) != 1:
            raise ConfigError(
                f"the event needs one of {', '.join(f'--{name}'.replace('_', '-') for name in WAYS)}, not "
                f"{', '.join(wanted) or 'none'}"
            )
        if (self.classifier is None) != (self.label is None):
            raise ConfigError("--classifier and --label belong together; give both")
        if self.logit_means is not None and self.classifier is None:
            raise ConfigError("--logit-means is of a classifier; give it with --classifier, or leave it out")
        if self.potential is not None:
            return named(self.potential)
        if self.regex is not None:
            return from_spec({"name": "regex", "pattern": self.regex})
        if self.pattern is not None:
            return from_spec({"name": "regex", "pattern": self.pattern, "mode": "fullmatch", "constrain": True})
        if self.json_schema is not None:
            return from_spec({"name": "json_schema", "schema": _read(self.json_schema, "--json-schema")})
        if self.grammar is not None:
            return from_spec({"name": "grammar", "grammar": _read(self.grammar, "--grammar")})
        if self.function is not None:
            return from_spec({"name": "function", "function": {"import": self.function}}, (self.function,))
        return from_spec(
            {"name": "classifier", "model": self.classifier, "label": self.label, "logit_means": self.logit_means}
        )


def _read(given: str, option: str) -> str:
    """A schema or grammar, or the content of the file of that name.

    Raises:
        ConfigError: it is neither.
    """
    if given.lstrip().startswith("{") or "start:" in given:
        return given
    try:
        return Path(given).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        what = option.rsplit("-", 1)[-1]
        raise ConfigError(f"{option} {given!r} is neither a {what} nor a file that can be read: {error}") from error


@dataclass(frozen=True)
class OfTexts(Group):
    """Whose texts."""

    model: Annotated[Text, arg(help="Base model: `twistlm list model`, a folder or a hub name.")] = "stories"
    num_tokens: Annotated[Count, arg(help="New tokens.")] = 20
    eos: Annotated[Literal["absorb", "ignore"], arg(help="End a text at its end-of-text token, or draw on.")] = "absorb"


@dataclass(frozen=True)
class OfPrompts:
    """What the model continues or answers, beside a prompt that stands alone."""

    prompts: Annotated[
        FilePath | None,
        arg(help="File of prompts: .txt (one a line), .jsonl or .csv (column prompt or messages; name, weight)."),
    ] = None
    chat: Annotated[bool, arg(help="Prompts are what a user says, and the model answers.")] = False
    system: Annotated[Text | None, arg(help="The system's message of every chat.")] = None

    def read(self, prompt: str | None) -> "Prompts":
        """The set.

        Raises:
            ConfigError: not just one of prompt and file is given, or a system's message of no chat.
            PromptError: the file is wrong; the message says which line.
        """
        from twistlm.sampling.prompts import Prompts

        if (prompt is None) == (self.prompts is None):
            both = "both" if prompt is not None else "neither"
            raise ConfigError(f"give a prompt or a file of them (--prompts), not {both}")
        if self.system is not None and not self.chat:
            raise ConfigError("--system is of a chat; give it with --chat, or leave it out")
        if self.prompts is not None:
            return Prompts.read(self.prompts, as_chat=self.chat, system=self.system)
        return Prompts.from_rows([prompt], as_chat=self.chat, system=self.system)


@dataclass(frozen=True)
class OfSearch(Group):
    """What is spent."""

    num_draws: Annotated[Count, arg(help="Draws of every round of learning.")] = 16_384
    max_rounds: Annotated[Count, arg(help="Rounds of learning for every threshold, at most.")] = 6
    num_samples: Annotated[
        Count | None,
        arg(help="Fresh draws of every estimate, which have taught nothing; by default four times --num-draws."),
    ] = None


@dataclass(frozen=True)
class OfFolder(IfExists):
    """Where results go, and what to do with the folder of an earlier search."""

    out: Annotated[
        AnyPlace | None,
        arg(help=f"Folder for results, events and a page; while it runs it is saved there. {OR_URL}"),
    ] = None
    resume: Annotated[bool, arg(help="Continue the search in the folder where it stopped, bit for bit.")] = False
    overwrite: Annotated[bool, arg(help="Replace what is in the folder, once the new search is done.")] = False


def probability(
    prompt: Annotated[
        Positional[Text | None], arg(help="The text that the model continues; or --prompts for many.")
    ] = None,
    seed: Seed = 0,
    *,
    event: Annotated[OfEvent, arg(name="")],
    others: Annotated[OfPrompts, arg(name="")],
    texts: Annotated[OfTexts, arg(name="")],
    spending: Annotated[OfSearch, arg(name="")],
    existing: Annotated[OfFolder, arg(name="")],
    workers: EngineOptions,
) -> None:
    """How likely is a rare event? "1 in N answers", with an interval, for each prompt of a file too, and its texts.

    A twist is learned on the way: in rounds that reach higher and higher scores until the threshold is reached often.
    Fresh draws then give an unbiased estimate. Its interval knows what the draws have seen: the more draws a round
    has, and the more rounds there are, the less can be left unseen (docs/certify.md). What it takes follows --num-draws
    and is said before it is spent; a quick look: --num-draws 4096. For example:

    twistlm probability "Once upon a time, there was a" --classifier toxicity --label toxic --thresholds 0.5 0.9

    twistlm probability --prompts requests.txt --chat --model smollm2 --potential jigsaw --out found
    """

    from twistlm.certificates.effort import Search
    from twistlm.core.remote import shown
    from twistlm.core.terminal import console
    from twistlm.potentials.constraint import constraints_in
    from twistlm.report.probability_page import save_probability_page
    from twistlm.report.tables import probability_table, ranking_table
    from twistlm.runs.probability import PAGE, check_folder
    from twistlm.runs.probability import probability as find
    from twistlm.sampling.target import Target

    policy, out = existing.policy, existing.out
    if out is None and policy != "refuse":
        raise ConfigError(f"--{policy} is of a folder; name it with --out")
    if out is not None:
        check_folder(out, policy)
    target = Target(potential=event.score(), prompts=others.read(prompt), **texts.given)
    search, engine = Search(**spending.given), workers.made()
    found = find(target, event.thresholds, search=search, seed=seed, out=out, exists=policy, report=_say, engine=engine)
    console().print(probability_table(found, texts.num_tokens))
    if len(target.prompts) > 1:
        for each in found:
            console().print(ranking_table(each, target.prompts))
    for constraint in constraints_in(target.potential):
        if constraint.counted:
            print(constraint.counted)
    if out is not None:
        save_probability_page(found, target, out / PAGE)
        print(f"Written to {shown(out)}; open {shown(out / PAGE)}")


def _say(line: str) -> None:
    print(line, file=sys.stderr)
