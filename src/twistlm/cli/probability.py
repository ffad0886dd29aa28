"""`twistlm probability`."""

import sys
from typing import Annotated, Any, Literal

from annotated_types import MinLen
from tyro.conf import Positional, arg

from twistlm.cli.options import Count, FilePath, Positive, Seed, Text, given, refuse_existing
from twistlm.core.errors import ConfigError


def probability(
    prompt: Annotated[Positional[Text], arg(help="The text that the model continues.")],
    classifier: Annotated[
        Text | None, arg(help="The score is its probability of --label: bundled name, hub name or folder.")
    ] = None,
    label: Annotated[Text | None, arg(help="Label of the classifier.")] = None,
    logit_means: Annotated[
        Literal["label", "not label"] | None, arg(help="What a high logit of a classifier with a single one means.")
    ] = None,
    regex: Annotated[Text | None, arg(help="The event is that the text matches; the score is 0 or 1.")] = None,
    function: Annotated[
        Text | None, arg(help="module:function of a list of texts that returns log φ of each (φ is the score).")
    ] = None,
    thresholds: Annotated[
        Annotated[tuple[Positive, ...], MinLen(1)],
        arg(help="The event: the score is at least so much. Several go from easy to hard."),
    ] = (0.5,),
    model: Annotated[Text, arg(help="Base model: `twistlm list model`, a folder or a hub name.")] = "stories",
    num_tokens: Annotated[Count, arg(help="New tokens.")] = 20,
    eos: Annotated[
        Literal["absorb", "ignore"], arg(help="End a text at its end-of-text token, or draw on.")
    ] = "absorb",
    num_draws: Annotated[Count, arg(help="Draws of every round of learning.")] = 16_384,
    max_rounds: Annotated[Count, arg(help="Rounds of learning for every threshold, at most.")] = 6,
    num_samples: Annotated[Count, arg(help="Fresh draws of every estimate; they have taught nothing.")] = 65_536,
    out: Annotated[FilePath | None, arg(help="JSON file for the result; an existing one is refused.")] = None,
    seed: Seed = 0,
) -> None:
    """How likely is a rare event? log10 of its probability with an interval, and what plain counting would need.

    A twist is learned on the way: in rounds that reach higher and higher scores until the threshold is reached often.
    Fresh draws then give an unbiased estimate. Its interval knows what the draws have seen: the more draws a round
    has, and the more rounds there are, the less can be left unseen (docs/certify.md). About ten minutes for the bundled
    models; a quicker look: --num-draws 4096 --num-samples 8192. For example:

    twistlm probability "Once upon a time, there was a" --classifier toxicity --label toxic --thresholds 0.5 0.9
    """

    from twistlm.certificates import rare_events
    from twistlm.core.storage import save_json
    from twistlm.core.terminal import console
    from twistlm.potentials import from_spec
    from twistlm.report.tables import probability_table
    from twistlm.sampling.target import Target

    refuse_existing(out)
    wanted = given(classifier=classifier, regex=regex, function=function)
    if len(wanted) != 1:
        raise ConfigError(
            f"the event needs one of --classifier, --regex and --function, not {', '.join(wanted) or 'none'}"
        )
    if (classifier is None) != (label is None):
        raise ConfigError("--classifier and --label belong together; give both")
    if logit_means is not None and classifier is None:
        raise ConfigError("--logit-means is of a classifier; give it with --classifier, or leave it out")
    scores: dict[str, dict[str, Any]] = {
        "classifier": {"name": "classifier", "model": classifier, "label": label, "logit_means": logit_means},
        "regex": {"name": "regex", "pattern": regex},
        "function": {"name": "function", "function": {"import": function}},
    }
    (kind,) = wanted
    target = Target(
        model, from_spec(scores[kind], () if function is None else (function,)), prompt, num_tokens, eos=eos
    )
    search = rare_events.Search(num_draws=num_draws, max_rounds=max_rounds, num_samples=num_samples)
    described = target.spec()
    found = rare_events.probability(target, thresholds, search=search, seed=seed, report=_say)
    if out is not None:
        save_json(out, {"seed": seed, "target": described, "found": [each.as_dict() for each in found]})
    console().print(probability_table(found, num_tokens))
    if out is not None:
        print(f"Written to {out}")


def _say(line: str) -> None:
    print(line, file=sys.stderr)
