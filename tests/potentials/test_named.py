"""Potentials as they are written on a command line."""

import pytest

from twistlm.core.errors import ConfigError
from twistlm.core.registry import available
from twistlm.potentials import (
    Classes,
    Classifier,
    Continuation,
    Grammar,
    Infilling,
    Jigsaw,
    JsonSchema,
    Length,
    Power,
    Regex,
    Reward,
    Threshold,
    Words,
    named,
)

WRITTEN = [
    ("jigsaw", Jigsaw()),
    ("jigsaw:label=insult,beta=2", Jigsaw("insult", 2.0)),
    ("jigsaw: label=insult, of = continuation ,beta = 1", Jigsaw("insult", of="continuation")),
    ("jigsaw:of=none", Jigsaw()),
    ("classifier:model=toxicity,label=toxic", Classifier("toxicity", "toxic")),
    ("classifier:model=a/b:c,label=1", Classifier("a/b:c", 1)),
    ("classifier:model=stars,label=5 stars,logit_means=not label", Classifier("stars", "5 stars", 1.0, "not label")),
    ("reward:model=here,beta=-0.5,of=text,log_upper_bound=3", Reward("here", -0.5, "text", 3.0)),
    ("reward:model=here,log_upper_bound=None", Reward("here")),
    ("regex:pattern=a{1,2}=b,eps=0.1,negate=yes", Regex("a{1,2}=b", negate=True, eps=0.1)),
    (r"regex:pattern=x\,eps=1,mode=fullmatch", Regex("x,eps=1", mode="fullmatch")),
    ("classes:model=sentiment,labels=negative, positive", Classes("sentiment", ("negative", "positive"))),
    (r"continuation:continuation= and then\, he=x", Continuation(" and then, he=x")),
    ("infilling:num_condition=3", Infilling(3)),
    ("regex:pattern= [0-9]{4},mode=fullmatch,constrain=yes", Regex(" [0-9]{4}", mode="fullmatch", constrain=True)),
    ('grammar:grammar=start: "a" start "b" | "x"', Grammar('start: "a" start "b" | "x"')),
    (
        'json_schema:schema={"properties": {"a": {"type": "null"}, "b": {"enum": [1, 2]}}, "required": ["a", "b"]}',
        JsonSchema('{"properties": {"a": {"type": "null"}, "b": {"enum": [1, 2]}}, "required": ["a", "b"]}'),
    ),
    ("words:all_of=dragon,castle,none_of=knight", Words(("dragon", "castle"), none_of=("knight",))),
    ("length:min=3,max=5,unit=tokens", Length(3, 5, "tokens")),
    ("threshold:scorer=jigsaw,eta=0.5", Threshold(Jigsaw(), 0.5)),
    (
        "threshold:scorer=(classifier:model=toxicity,label=toxic,beta=2),eta=-5,on=logit,direction=<=",
        Threshold(Classifier("toxicity", "toxic", 2.0), -5.0, on="logit", direction="<="),
    ),
    ("power:beta=3,base=(power:base=(jigsaw),beta=2)", Power(Power(Jigsaw(), 2.0), 3.0)),
]


@pytest.mark.parametrize(("expression", "expected"), WRITTEN)
def test_what_is_written_is_what_is_meant(expression, expected) -> None:
    found = named(expression)
    assert found == expected
    fields = {name: type(value) for name, value in vars(found).items()}
    assert fields == {name: type(value) for name, value in vars(expected).items()}


def test_every_registered_potential_can_be_named_or_says_why_not() -> None:
    shown = {type(potential) for _, potential in WRITTEN}
    for name, entry in available("potential").items():
        if entry.value not in shown and entry.value.__module__.startswith("twistlm"):
            with pytest.raises(ConfigError, match="cannot be given as text; pass the potential in code"):
                named(name)


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("jigsw", "did you mean 'jigsaw'"),
        ("", "unknown potential ''"),
        ("jigsaw:gamma=1", "'jigsaw' has no 'gamma'.*it takes label, beta, of, batch_size"),
        ("jigsaw:label=insult,gamma=1", "has no 'gamma'"),
        ("jigsaw:insult", "has no 'insult'; write it as jigsaw:key=value"),
        ("jigsaw:beta=two", "beta = 'two' is not valid: Input should be a valid number"),
        ("jigsaw:beta=-1", "beta must be positive"),
        ("jigsaw:beta=1,beta=2", "beta is given twice"),
        ("jigsaw:label=rude", "unknown label 'rude'"),
        ("jigsaw:of=chat", "of must be 'text', 'continuation' or None"),
        ("jigsaw:of=all", "of = 'all' is not valid: Input should be 'text', 'continuation' or 'chat'"),
        ("jigsaw:batch_size=1.5", "batch_size = '1.5' is not valid"),
        ("classifier:model=toxicity", "'classifier' needs label: write classifier:label="),
        ("function:function=math:sin", "function cannot be given as text"),
        ("product:parts=jigsaw", "parts cannot be given as text"),
        ("threshold:scorer=(jigsaw,eta=1", "bracket that is not closed"),
        ("threshold:scorer=(jigsaw)eta=1", "follows the brackets"),
        ("threshold:scorer=rewards,eta=1", "did you mean 'reward'"),
    ],
)
def test_what_cannot_be_meant_is_one_line(expression, message) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        named(expression)
    assert "\n" not in str(caught.value)
