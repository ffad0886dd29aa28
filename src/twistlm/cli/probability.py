"""`twistlm probability`."""

import sys
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import MinLen
from tyro.conf import Positional, arg

from twistlm.cli.options import Count, FilePath, Group, Positive, Seed, Text, refuse_existing
from twistlm.core.errors import ConfigError


@dataclass(frozen=True)
class OfEvent:
    """What is to happen: a score by one of three ways, and how high it is to be."""

    classifier: Annotated[
        Text | None, arg(help="The score is its probability of --label: bundled name, hub name or folder.")
    ] = None
    label: Annotated[Text | None, arg(help="Label of the classifier.")] = None
    logit_means: Annotated[
        Literal["label", "not label"] | None, arg(help="What a high logit of a classifier with a single one means.")
    ] = None
    regex: Annotated[Text | None, arg(help="The event is that the text matches; the score is 0 or 1.")] = None
    function: Annotated[
        Text | None, arg(help="module:function of a list of texts that returns log φ of each (φ is the score).")
    ] = None
    thresholds: Annotated[
        Annotated[tuple[Positive, ...], MinLen(1)],
        arg(help="The event: the score is at least so much. Several go from easy to hard."),
    ] = (0.5,)

    def spec(self) -> dict[str, Any]:
        """The score as JSON values.

        Raises:
            ConfigError: not just one of the three is given, or what belongs to another.
        """
        ways = {"classifier": self.classifier, "regex": self.regex, "function": self.function}
        wanted = [name for name, value in ways.items() if value is not None]
        if len(wanted) != 1:
            raise ConfigError(
                f"the event needs one of --classifier, --regex and --function, not {', '.join(wanted) or 'none'}"
            )
        if (self.classifier is None) != (self.label is None):
            raise ConfigError("--classifier and --label belong together; give both")
        if self.logit_means is not None and self.classifier is None:
            raise ConfigError("--logit-means is of a classifier; give it with --classifier, or leave it out")
        if self.regex is not None:
            return {"name": "regex", "pattern": self.regex}
        if self.function is not None:
            return {"name": "function", "function": {"import": self.function}}
        return {"name": "classifier", "model": self.classifier, "label": self.label, "logit_means": self.logit_means}


@dataclass(frozen=True)
class OfTexts(Group):
    """Whose texts."""

    model: Annotated[Text, arg(help="Base model: `twistlm list model`, a folder or a hub name.")] = "stories"
    num_tokens: Annotated[Count, arg(help="New tokens.")] = 20
    eos: Annotated[Literal["absorb", "ignore"], arg(help="End a text at its end-of-text token, or draw on.")] = "absorb"


@dataclass(frozen=True)
class OfSearch(Group):
    """What is spent."""

    num_draws: Annotated[Count, arg(help="Draws of every round of learning.")] = 16_384
    max_rounds: Annotated[Count, arg(help="Rounds of learning for every threshold, at most.")] = 6
    num_samples: Annotated[
        Count | None,
        arg(help="Fresh draws of every estimate, which have taught nothing; by default four times --num-draws."),
    ] = None


def probability(
    prompt: Annotated[Positional[Text], arg(help="The text that the model continues.")],
    out: Annotated[FilePath | None, arg(help="JSON file for the result; an existing one is refused.")] = None,
    seed: Seed = 0,
    *,
    event: Annotated[OfEvent, arg(name="")],
    texts: Annotated[OfTexts, arg(name="")],
    spending: Annotated[OfSearch, arg(name="")],
) -> None:
    """How likely is a rare event? log10 of its probability with an interval, and what plain counting would need.

    A twist is learned on the way: in rounds that reach higher and higher scores until the threshold is reached often.
    Fresh draws then give an unbiased estimate. Its interval knows what the draws have seen: the more draws a round
    has, and the more rounds there are, the less can be left unseen (docs/certify.md). About ten minutes for the bundled
    models; a quicker look: --num-draws 4096 --num-samples 8192. For example:

    twistlm probability "Once upon a time, there was a" --classifier toxicity --label toxic --thresholds 0.5 0.9
    """

    from twistlm.certificates import effort, rare_events
    from twistlm.core.storage import save_json
    from twistlm.core.terminal import console
    from twistlm.potentials import from_spec
    from twistlm.report.tables import probability_table
    from twistlm.sampling.target import Target

    refuse_existing(out)
    score = from_spec(event.spec(), () if event.function is None else (event.function,))
    target = Target(potential=score, prompt=prompt, **texts.given)
    search = effort.Search(**spending.given)
    described = target.spec()
    estimates = rare_events.probability(target, event.thresholds, search=search, seed=seed, report=_say)
    if out is not None:
        save_json(out, {"seed": seed, "target": described, "found": [each.as_dict() for each in estimates]})
    console().print(probability_table(estimates, texts.num_tokens))
    if out is not None:
        print(f"Written to {out}")


def _say(line: str) -> None:
    print(line, file=sys.stderr)
