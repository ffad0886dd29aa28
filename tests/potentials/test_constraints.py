"""What each constraint means, by Python's own means; and what is refused."""

import json
import re

import pytest
import torch
from jsonschema import Draft202012Validator

from twistlm.core.errors import ConfigError, PotentialError
from twistlm.core.identity import digest
from twistlm.models.huggingface import load
from twistlm.potentials import JsonSchema, Length, Regex, Words, evaluate
from twistlm.potentials.base import Potential

TEXTS = [
    "", "a cat", "cat", "Cat!", "the cats sat", "concatenate", "cat_1", "a cat and a dog", "dog\ncat", "naïve cat", "é",
    "中文 cat",
    "One. Two!", "One... two?", "Three 3.5 points.", "no end", " spaced  out ", "a b c d e", "dog", "doggy cat.",
]  # fmt: skip


def has(word: str, text: str, flags: int = 0) -> bool:
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, flags) is not None


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (Words(("cat",)), lambda text: has("cat", text)),
        (Words(("cat", "dog")), lambda text: has("cat", text) and has("dog", text)),
        (Words(any_of=("cat", "dog")), lambda text: has("cat", text) or has("dog", text)),
        (Words(none_of=("cat", "dog")), lambda text: not has("cat", text) and not has("dog", text)),
        (Words("cat", match_case=False), lambda text: has("cat", text, re.IGNORECASE)),
        (Words(("a cat",), none_of=("dog",)), lambda text: has("a cat", text) and not has("dog", text)),
        (Words(("3.5",)), lambda text: has("3.5", text)),
    ],
)
def test_words(words: Words, expected) -> None:  # type: ignore[no-untyped-def]
    automaton = words.automaton()
    assert [automaton.accepts(text) for text in TEXTS] == [expected(text) for text in TEXTS]


def sentences(text: str) -> int | None:
    """How many there are; None where the text does not end with one."""
    found = re.findall(r"[^.!?]+[.!?]+", text)
    return len(found) if "".join(found) == text.rstrip() and found else None


@pytest.mark.parametrize(("least", "most"), [(1, 2), (2, None), (3, 3), (1, None)])
def test_lengths(least: int, most: int | None) -> None:
    words, whole = Length(least, most).automaton(), Length(least, most, "sentences").automaton()
    high = float("inf") if most is None else most
    for text in TEXTS:
        assert words.accepts(text) == (least <= len(text.split()) <= high), text
        count = sentences(text)
        assert whole.accepts(text) == (count is not None and least <= count <= high), text
    assert Length(least, most, "tokens").lengths == (least, high)


SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 4}, "age": {"type": "integer"}, "ok": {"type": "boolean"}},
    "required": ["name", "age", "ok"],
}


def test_json_schema() -> None:
    automaton = JsonSchema(SCHEMA).automaton()  # type: ignore[arg-type]
    for text, valid in [
        ('{"name":"Ann","age":3,"ok":true}', True),
        (' {"name": "Ann", "age": -30, "ok": false}', True),
        ('{\n  "name": "Ann",\n\t"age":  3,\n  "ok": true\n}', True),
        ('{"name":"é\\n","age":0,"ok":true}', True),
        ('{"name":"Annette","age":3,"ok":true}', False),
        ('{"name":"Ann","age":3.5,"ok":true}', False),
        ('{"name":"Ann","age":03,"ok":true}', False),
        ('{"name":"Ann","age":3}', False),
        ('{"name":"Ann","age":3,"ok":true} ', False),
    ]:
        assert automaton.accepts(text) == valid, text
        if valid:
            json.loads(text)
    assert JsonSchema(SCHEMA) == JsonSchema(json.dumps(SCHEMA))  # type: ignore[arg-type]


def an_object(**properties: object) -> dict[str, object]:
    return {"type": "object", "properties": properties, "required": list(properties)}


INTEGER = {"type": "integer"}
KINDS = [an_object(kind={"const": "a"}, x=INTEGER), an_object(kind={"const": "b"})]


@pytest.mark.parametrize(
    ("schema", "allowed", "forbidden"),
    [
        # A pattern is found anywhere in what the string says, unless it says where.
        ({"type": "string", "pattern": "cat|dog"}, ['"cat"', '"a dog"', r'"\"cat"'], ['"cat', 'cat"', '"ca"']),
        ({"type": "string", "pattern": r"\d{3}$"}, ['"123"', '"x\\n123"'], ['"123x"', '"12"', '"٣٣٣"']),
        ({"type": "string", "pattern": "^a|b$"}, ['"ax"', '"xb"', '"a"'], ['"xa"', '"bx"', '"x"']),
        ({"type": "string", "pattern": "^[^a].b$"}, ['"xxb"', r'"\"\\b"', '"é b"'], ['"axb"', '""xb"', '"x"b"']),
        ({"type": "string", "pattern": r'^\[["&&\d]+"$'}, [r'"[\"1&\""', r'"[1\""'], ['"[1""', '"[|"']),
        ({"type": "string", "pattern": "^\\s\t\\\\$"}, [r'" \t\\"', r'"\n\t\\"'], ['"  \\"', '"\n\t\\\\"']),
        (an_object(**{'a b"': INTEGER, "é.": INTEGER}), [r'{"a b\"":1,"é.":2}'], ['{"a b"":1,"é.":2}']),
        ({"type": "array", "items": INTEGER, "maxItems": 2}, ["[]", "[1]", "[1 , 2]"], ["[1,]", "[1,2,3]", "[1", "1"]),
        ({"prefixItems": [INTEGER, {"type": "null"}], "minItems": 2}, ["[1,null]"], ["[1]", "[null,1]", "[1,null,1]"]),
        ({"type": ["integer", "null"], "enum": [1, "a", None, True]}, ["1", "null"], ['"a"', "true", "11"]),
        ({"const": {"a": [1, {}]}}, ['{"a":[1,{}]}', '{ "a": [1, {} ]}'], ['{"a":[1]}', '{"a":[1,{]}']),
        ({"oneOf": KINDS}, ['{"kind":"a","x":1}', '{"kind":"b"}'], ['{"kind":"b","x":1}', '{"kind":"c"}']),
        ({"allOf": [{"$ref": "#/$defs/a~1b"}], "$defs": {"a/b": INTEGER}, "title": "one"}, ["1"], ["1.5", "null"]),
        # What only looks like another base.
        ({"$id": "https://a.b/c", "items": {"$id": "#one", **INTEGER}}, ["[1]"], ["[null]"]),
        (an_object(**{"$id": INTEGER}), ['{"$id":1}'], ['{"$id":"a"}']),
        ({"additionalProperties": INTEGER, "x-mine": 1}, ["{}", '{"a":1,"é":2}'], ['{"a":null}', '{"a":1,}']),
        ({"properties": {"a": INTEGER, "b": INTEGER}, "additionalProperties": False}, ["{}", '{"b":1}'], ['{,"b":1}']),
        (
            {"type": "string", "format": "date-time"},
            ['"2020-01-31T10:00:00.5Z"'],
            ['"2020-01-31"', '"2020-1-31T10:00Z"'],
        ),
        ({"type": "string", "format": "email"}, ['"a.b@c.de"'], ['""a"@c.de"', '"a@b@c.de"']),
        # Its quotation marks may begin another match: that took minutes for each letter more.
        ({"type": "string", "minLength": 2, "maxLength": 40}, ['"aé"', f'"{"a" * 40}"'], ['"a"', f'"{"a" * 41}"']),
    ],
)
def test_json_by_a_schema(schema: dict, allowed: list[str], forbidden: list[str]) -> None:  # type: ignore[type-arg]
    automaton = JsonSchema(schema).automaton()  # type: ignore[arg-type]
    for text in allowed:
        json.loads(text)
    assert [text for text in allowed if not automaton.accepts(text)] == []
    assert [text for text in forbidden if automaton.accepts(text)] == []


# By the standard a list of nulls.
BASED = {
    "$id": "https://example.com/outer",
    "$ref": "#/$defs/a",
    "$defs": {
        "a": {"$id": "inner", "type": "array", "items": {"$ref": "#/$defs/b"}, "$defs": {"b": {"type": "null"}}},
        "b": INTEGER,
    },
}


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        (
            {"properties": {"a/b": {"type": "number", "minimum": 0.5}}},
            r"minimum 0.5 of a number \(bounds must be whole, .*\) at #/properties/a~1b; Grammar.* takes it",
        ),
        ({"type": "array", "items": INTEGER, "uniqueItems": True}, "uniqueItems at #; leave it out"),
        ({"type": "integer", "minimun": 1}, "minimun at #"),
        ({"type": "string", "minimum": 1}, "minimum at #"),
        ({"type": "number", "multipleOf": 0.01}, "multipleOf 0.01 of a number"),
        ({"type": ["integer", "number"], "maximum": 0.5}, "maximum 0.5 of a number"),
        ({"type": "integer", "multipleOf": 0.5}, r"multipleOf 0.5 \(must be a whole number, at least 1\) at #"),
        ({"type": "integer", "multipleOf": 7, "minimum": 1}, "multipleOf 7 .* a maximum that are close"),
        ({"type": "integer", "minimum": 1, "exclusiveMaximum": 2, "multipleOf": 2}, "no number is allowed at #"),
        ({"type": "number", "exclusiveMinimum": 1, "maximum": 1}, "no number is allowed at #"),
        ({"type": "integer", "minimum": 3, "exclusiveMinimum": True}, "exclusiveMinimum at # is true, not a number"),
        ({"type": "integer", "minimum": 1e40}, "a bound of more than 40 digits at #"),
        ({"type": "string", "pattern": "a", "minLength": 3}, "minLength beside pattern at #"),
        ({"allOf": [INTEGER, {"enum": [1, 2]}]}, "allOf of 2 schemas at #"),
        ({**an_object(a=INTEGER), "anyOf": [{"required": ["b"]}]}, "properties beside anyOf"),
        ({"properties": {"a": INTEGER}, "required": ["a", "z"]}, 'required at # names "z"'),
        ({"oneOf": [INTEGER, {"type": "number"}]}, "oneOf at #, two of whose schemas may allow the same"),
        ({"oneOf": [{"items": INTEGER}, {"type": "object", "properties": {}}]}, "oneOf at #, two of whose"),
        ({"properties": {"a": {"$ref": "#"}}}, 'leads back to "#"'),
        ({"$ref": "#/$defs/a"}, "which is not in this schema"),
        # Its "#" is no longer the whole.
        (
            BASED,
            '\\$id "inner" within the schema, at #/\\$defs/a, which changes what \\$ref means there; Grammar.* takes',
        ),
        ({**BASED, "$ref": "#/$defs/a/items"}, '\\$id "inner" within the schema, at #/\\$defs/a'),
        ({"type": "string", "format": "ipv4"}, 'format "ipv4" at #, which is none of date'),
        ({"type": "string", "maxLength": "3"}, 'maxLength at # is "3", not a whole number'),
        ({"type": "integer", "enum": ["a"]}, "no value is allowed at #"),
        # What these allow is any JSON.
        ({}, "# names no type"),
        ({"type": "array"}, "an array without items at #"),
        ({"type": "object"}, "an object without properties at #"),
        ({"properties": {"a": True}}, "#/properties/a is true, not an object"),
        # What takes too long.
        ({"type": "array", "items": {"type": "string", "maxLength": 500}, "maxItems": 500}, "more than 20,000 states"),
        ({"properties": {str(at): INTEGER for at in range(90)}}, "# is too large for an automaton"),
        # A message speaks of what the schema says.
        ({"type": "string", "pattern": "a$b"}, r"at #, pattern 'a\$b'"),
        ({"type": "string", "pattern": "(^a)"}, r"pattern '\(\^a\)': \^ must stand at an end"),
        ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
        ({"type": "string", "pattern": r"a\b"}, r"\\b is not supported"),
        ({"type": "string", "pattern": "a)(b"}, "stands where it cannot"),
        ({"type": "string", "pattern": "(a"}, "a bracket is open"),
        ({"type": "string", "pattern": "*a"}, "it does not compile"),
        ({"type": "string", "pattern": "[+--]"}, "two hyphens"),
    ],
)
def test_what_a_schema_cannot_say_is_refused(schema: dict, message: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(ConfigError, match=f"schema is not supported: .*{message}"):
        JsonSchema(schema)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "bounds",
    [
        {"minimum": 0}, {"maximum": 0}, {"exclusiveMinimum": 0}, {"exclusiveMaximum": 0}, {"minimum": 0, "maximum": 0},
        {"minimum": -17, "maximum": 123}, {"exclusiveMinimum": 9, "exclusiveMaximum": 101}, {"maximum": -5},
        {"minimum": 99, "maximum": 1000}, {"minimum": -1000, "maximum": -99}, {"minimum": 457, "maximum": 461},
        {"minimum": 5, "exclusiveMinimum": 5, "maximum": 9, "exclusiveMaximum": 9}, {"minimum": -7.5, "maximum": 3.5},
        {"exclusiveMinimum": -7.5, "exclusiveMaximum": 3.5}, {"minimum": 10**18 + 7},
        {"minimum": -(2**63), "maximum": 2**63 - 1},
        {"multipleOf": 1}, {"multipleOf": 5}, {"multipleOf": 4, "minimum": -10}, {"multipleOf": 25, "maximum": 1230},
        {"multipleOf": 7, "minimum": -50, "maximum": 300},
        {"multipleOf": 100, "minimum": 1, "maximum": 10**9},
    ],
)  # fmt: skip
def test_integers_within_bounds(bounds: dict[str, float]) -> None:
    """Every integer about the bounds, and about powers of ten, as jsonschema has it."""
    schema = {"type": "integer", **bounds}
    automaton, oracle = JsonSchema(schema).automaton(), Draft202012Validator(schema)  # type: ignore[arg-type]
    middles = [
        0,
        *(round(bound) for bound in bounds.values()),
        *(sign * 10**n for n in range(3, 22) for sign in (1, -1)),
    ]
    for number in {middle + off for middle in middles for off in range(-130, 131)}:
        assert automaton.accepts(str(number)) == oracle.is_valid(number), number
    assert automaton.accepts("-0") == oracle.is_valid(0)
    assert not any(automaton.accepts(text) for text in ("", "-", "+1", "00", "01", "-01", "007", "1.5", "5.", "null"))


@pytest.mark.parametrize(
    "bounds",
    [
        {"minimum": 0, "maximum": 1}, {"exclusiveMinimum": 0, "exclusiveMaximum": 1},
        {"minimum": -2, "exclusiveMaximum": 3},
        {"exclusiveMinimum": -2}, {"exclusiveMaximum": -1}, {"minimum": 0}, {"minimum": 5, "maximum": 5.0},
        {"minimum": 1, "exclusiveMinimum": 1, "maximum": 4}, {"maximum": 2, "exclusiveMaximum": 2},
    ],
)  # fmt: skip
def test_numbers_within_bounds(bounds: dict[str, float]) -> None:
    schema = {"type": "number", **bounds}
    automaton, oracle = JsonSchema(schema).automaton(), Draft202012Validator(schema)  # type: ignore[arg-type]
    whole = [str(number) for number in range(-12, 13)] + ["-0"]
    for text in [before + after for before in whole for after in ("", ".0", ".00", ".5", ".001", ".10", ".999")]:
        assert automaton.accepts(text) == oracle.is_valid(json.loads(text)), text
    assert not any(automaton.accepts(text) for text in ("", "-", "+1", "00", "01.5", "1.", ".5"))


def test_bounds_are_what_is_written() -> None:
    """10²³ is no float; what is whole may be written as one."""
    automaton = JsonSchema('{"type": "integer", "minimum": 1e23}').automaton()
    assert automaton.accepts("1" + "0" * 23)
    assert not automaton.accepts(str(int(1e23)))
    even = JsonSchema('{"type": "integer", "multipleOf": 2.0}').automaton()
    assert [even.accepts(str(number)) for number in (2**63, 2**63 + 1)] == [True, False]


NUMBERS = [
    "0",
    "-0",
    "0.0",
    "1",
    "1.0",
    "1.00",
    "1e0",
    "10",
    "1e1",
    "1E+1",
    "1.0e1",
    "-3.0",
    "-3",
    "1.5",
    "1.50",
    "15e2",
    "3e-1",
]
WRONG = ["1.", "1e", "01.0", "1.0.0", "e1", "1e1.0"]


@pytest.mark.parametrize(
    ("schema", "left_out"),
    [
        (INTEGER, []),
        ({"type": "number"}, []),
        # With bounds or as values, numbers have no exponent.
        ({"type": "integer", "minimum": 1}, ["1e0", "1e1", "1E+1", "1.0e1", "15e2"]),
        ({"type": "number", "minimum": 1}, ["1e0", "1e1", "1E+1", "1.0e1", "15e2"]),
        ({"enum": [0, 1.5, -3.0]}, []),
        ({"const": 1}, ["1e0"]),
        ({"const": 10.0}, ["1e1", "1E+1", "1.0e1"]),
    ],
)
def test_how_numbers_may_be_written(schema: dict, left_out: list[str]) -> None:  # type: ignore[type-arg]
    """As jsonschema has it, but for what the page says is left out."""
    automaton, oracle = JsonSchema(schema).automaton(), Draft202012Validator(schema)  # type: ignore[arg-type]
    for text in NUMBERS:
        valid = oracle.is_valid(json.loads(text))
        assert not (text in left_out and not valid), text
        assert automaton.accepts(text) == (valid and text not in left_out), text
    assert not any(automaton.accepts(text) for text in WRONG)


def test_numbers_that_python_writes_with_an_exponent() -> None:
    small, large = JsonSchema('{"const": 1e-7}').automaton(), JsonSchema('{"const": -1.5e22}').automaton()
    assert all(small.accepts(text) for text in ("1e-07", "1E-7", "0.0000001", "0.00000010"))
    assert all(large.accepts(text) for text in ("-1.5e22", "-1.5E+22", "-15" + "0" * 21, "-15" + "0" * 21 + ".0"))
    assert not any(small.accepts(text) for text in ("1e7", "-1e-7", "0.000001", "1e-70"))


LETTERS = ["a", '"', "\\", "/", "\n", "\x01", "\x7f", "\x85", "é", "\u2028", "中", "\ufffe", "😀"]


def written(letter: str) -> set[str]:
    """Every way in which JSON may write it."""
    code = json.dumps("é" + letter)[7:-1] if letter > "~" else f"\\u{ord(letter):04x}"
    plain = {letter} if letter >= " " and letter not in '"\\' else set()
    short = {escape for escape in (r"\/", r"\n", r"\"", r"\\") if json.loads(f'"{escape}"') == letter}
    return plain | short | {code, code.upper().replace("\\U", "\\u")}


@pytest.mark.parametrize(
    ("schema", "by_digits"),
    [
        ({"type": "string"}, lambda letter: True),
        ({"type": "string", "minLength": 1, "maxLength": 1}, lambda letter: True),
        # Printable ASCII is not written by its digits here, and nothing is that a pattern matches.
        ({"enum": LETTERS[:6]}, lambda letter: not " " <= letter <= "~"),
        ({"const": "é"}, lambda letter: True),
        ({"const": "😀"}, lambda letter: True),
        ({"type": "string", "pattern": r"^[^a\n]$"}, lambda letter: False),
        ({"type": "string", "pattern": r'^["/é-\u4fff]$'}, lambda letter: False),
        ({"type": "string", "pattern": r"^\s$"}, lambda letter: False),
    ],
)
def test_how_letters_may_be_written(schema: dict, by_digits) -> None:  # type: ignore[no-untyped-def, type-arg]
    automaton, oracle = JsonSchema(schema).automaton(), Draft202012Validator(schema)  # type: ignore[arg-type]
    for letter in LETTERS:
        # ECMA 262 has no white space at U+0085, Python has.
        valid = oracle.is_valid(letter) and not (letter == "\x85" and schema.get("pattern") == r"^\s$")
        for spelled in written(letter):
            assert json.loads(f'"{spelled}"') == letter
            counts = by_digits(letter) or not spelled.startswith("\\u")
            assert automaton.accepts(f'"{spelled}"') == (valid and counts), spelled
    # Half of a pair is no letter.
    assert not any(
        automaton.accepts(text) for text in (r'"\ud83d"', r'"\ude00\ud83d"', r'"\u00g0"', '"\x01"', '"\n"', r'"\a"')
    )


def test_names_of_properties_may_be_written_by_digits() -> None:
    automaton = JsonSchema(an_object(**{"é/": INTEGER})).automaton()  # type: ignore[arg-type]
    assert all(automaton.accepts(text) for text in ('{"é/":1}', r'{"\u00e9/":1}', r'{"\u00E9\/":1}'))
    assert not automaton.accepts(r'{"\u00e8/":1}')


def test_a_uuid_has_either_case() -> None:
    automaton = JsonSchema({"type": "string", "format": "uuid"}).automaton()  # type: ignore[arg-type]
    name = "123e4567-e89b-12d3-a456-426614174000"
    assert automaton.accepts(f'"{name}"')
    assert automaton.accepts(f'"{name.upper()}"')
    assert not automaton.accepts(f'"{name[:-1]}g"')


def test_white_space_is_one_part() -> None:
    automaton = JsonSchema(an_object(a=INTEGER), whitespace=" |\n").automaton()  # type: ignore[arg-type]
    assert automaton.accepts('{ "a" : 1\n}')
    assert not automaton.accepts("{ ")


@pytest.mark.parametrize(
    ("pattern", "how", "texts"),
    [
        ("ca+t", {"mode": "search"}, {"a caat b": 0, "ct": 1}),
        ("ca+t", {"mode": "fullmatch"}, {"caat": 0, "a cat": 1}),
        ("ca+t", {"mode": "search", "negate": True}, {"caat": 1, "dog": 0}),
        ("ca+t", {"mode": "fullmatch", "flags": re.IGNORECASE}, {"CAT": 0, "dog": 1}),
        ("a.b", {"mode": "fullmatch", "flags": re.DOTALL}, {"a\nb": 0}),
        ("a.b", {"mode": "fullmatch"}, {"a\nb": 1, "axb": 0}),
        ("a b # costs $5", {"mode": "search", "flags": re.VERBOSE}, {"xab": 0, "a b": 1}),
        ("(?x)a b # (hi", {"mode": "search"}, {"xab": 0, "a b": 1}),
    ],
)
def test_patterns(pattern: str, how: dict, texts: dict[str, int]) -> None:  # type: ignore[type-arg]
    potential = Regex(pattern, constrain=True, **how)
    plain = Regex(pattern, of="continuation", **how)
    for text, impossible in texts.items():
        assert potential.automaton().accepts(text) == (not impossible)
        # Python's own reading of the text is the same.
        assert float(plain.log_phi_texts([text])[0]) == (-torch.inf if impossible else 0.0)


def test_of_tokens_it_reads_the_new_text_alone() -> None:
    lm = load("stories")
    eos = lm.eos_token_id
    assert eos is not None
    prompt = lm.encode("The cat")
    rows = [lm.encode(text) for text in (" a cat", " a dog", " a cat")]
    rows[2] = torch.cat([rows[2], torch.tensor([eos, eos])])
    length = max(map(len, rows))
    tokens = torch.stack([torch.cat([row, torch.full((length - len(row),), eos)]) for row in rows])
    assert evaluate(Words(("cat",)).bind(lm), [prompt] * 3, tokens).tolist() == [0.0, -torch.inf, 0.0]
    # After EOS nothing else may come.
    tokens[0, -2], tokens[0, -1] = eos, 7
    assert evaluate(Words(("cat",)).bind(lm), [prompt], tokens[:1]).tolist() == [-torch.inf]
    with pytest.raises(PotentialError, match="not bound to a model"):
        Words(("cat",)).log_phi([prompt], tokens[:1])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Words(), "no word is given"),
        (lambda: Words(("a", " ")), "all_of holds an empty word"),
        (lambda: Length(0), "min must be at least 1"),
        (lambda: Length(3, 2), "max at least min"),
        (lambda: Length(1, 2, "letters"), "unit must be"),  # type: ignore[arg-type]
        (lambda: JsonSchema("{"), "schema is not JSON"),
        (lambda: JsonSchema('{"const": NaN}'), "schema is not JSON"),
        (lambda: JsonSchema('{"type": "null"}', whitespace="("), "invalid regular expression"),
        (lambda: JsonSchema('{"type": "strange"}'), "schema is not supported"),
        (lambda: JsonSchema('{"not": {"type": "string"}}'), "schema is not supported"),
        (lambda: Regex("a", constrain=True, eps=0.1), "eps must be 0"),
        (lambda: Regex("a", constrain=True, of="text"), "of must be 'continuation'"),
        (lambda: Regex("^a", constrain=True, flags=re.MULTILINE), "anchor"),
        (lambda: Regex("(?<=a)b", constrain=True), "look-around"),
        (lambda: Regex("a)(?:b", constrain=True), "invalid regular expression"),
    ],
)
def test_what_is_refused(make, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConfigError, match=message):
        make()


def test_identity() -> None:
    """How it is sampled is not what it is; who reads a pattern is."""

    def of(potential: Potential) -> str:
        return digest(potential)

    assert of(Words(("a",))) == of(Words(("a",), constrain=False))
    assert of(Regex("a", of="continuation")) != of(Regex("a", of="continuation", constrain=True))


CONTINUED = ["cat", " cat", "s cat.", "s", "_cat", ".cat", "é cat", "", " a dog and a cat", "cat cat"]


@pytest.mark.parametrize("words", [Words(("cat",)), Words(any_of=("cat", "dog")), Words(none_of=("cat",))])
def test_words_after_a_prompt_that_ends_inside_one(words: Words) -> None:
    """The text that a user sees counts: what a prompt's last word goes on with is not a word by itself."""
    lm = load("stories")
    for before in ("con", "I love my", "He said: ", "The 3", "!", "He said my\n", "my \n", "my\n\n"):
        bound, prompt = words.bind(lm), lm.encode(before)
        for text in CONTINUED:
            tokens = lm.encode(text) if text else torch.zeros(0, dtype=torch.long)
            padded = torch.cat([tokens, torch.tensor([lm.eos_token_id])]).unsqueeze(0)
            whole = before + text
            # Words of the prompt alone do not count.
            found = {
                word: any(each.start() >= len(before) for each in occurrences(word, whole)) for word in ("cat", "dog")
            }
            expected = (
                all(found[word] for word in words.all_of)
                and (not words.any_of or any(found[word] for word in words.any_of))
                and not any(found[word] for word in words.none_of)
            )
            assert bool(bound.log_phi([prompt], padded).isfinite()) == expected, (before, text)


@pytest.mark.parametrize(("before", "inside"), [("Cafe\u0301", True), ("में", True), ("a\u200d", True), ("x²", False)])
def test_a_prompt_ends_inside_a_word_by_what_the_text_is_read_by(before: str, inside: bool) -> None:
    """Marks and joiners are letters of a word, which Python's `re` does not say."""
    lm, words = load("stories"), Words(("cat",))
    tokens = lm.encode("cat").unsqueeze(0)
    assert words.automaton().accepts(before + "cat") == (not inside)
    assert bool(words.bind(lm).log_phi([lm.encode(before)], tokens).isfinite()) == (not inside)


def occurrences(word: str, text: str) -> list[re.Match[str]]:
    return list(re.finditer(rf"(?<!\w){re.escape(word)}(?!\w)", text))
