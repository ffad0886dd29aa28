"""Strings as JSON writes them, by patterns of what they say."""

import re

from twistlm.automata.automaton import Automaton
from twistlm.automata.patterns import check_states
from twistlm.core.errors import ConfigError
from twistlm.core.storage import shortened

# Letters that stand for themselves between the quotation marks, and those that a backslash and one letter write.
PLAIN = r'[^"\\\x00-\x1F]'
ESCAPED = {'"': '"', "\\": "\\", "/": "/", "\b": "b", "\f": "f", "\n": "n", "\r": "r", "\t": "t"}
# A letter by its four digits, or by twice four; half of such a pair is no letter.
HEX = "[0-9A-Fa-f]"
CODE = rf"u(?:[0-9A-Ca-cE-Fe-f]{HEX}{{3}}|[Dd](?:[0-7]{HEX}{{2}}|[89ABab]{HEX}{{2}}\\u[Dd][C-Fc-f]{HEX}{{2}}))"
LETTER = rf'(?:{PLAIN}|\\(?:["\\/bfnrt]|{CODE}))'

DATE = "[0-9]{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12][0-9]|3[01])"
TIME = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]+)?(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
LABEL = "[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
# By their shape (a 31st of February is a date), in RFC 3339's and RFC 3986's letters.
FORMATS = {
    "date": DATE,
    "time": TIME,
    "date-time": f"{DATE}T{TIME}",
    "uuid": f"{HEX}{{8}}-{HEX}{{4}}-{HEX}{{4}}-{HEX}{{4}}-{HEX}{{12}}",
    "email": rf"[A-Za-z0-9_+-]+(?:\.[A-Za-z0-9_+-]+)*@(?:{LABEL}\.)+{LABEL}",
    "uri": rf"(?:https?|ftp)://(?:{LABEL}\.)*{LABEL}(?::[0-9]+)?(?:/[A-Za-z0-9._~!$&'()*+,;=:@/-]*)?"
    r"(?:\?[A-Za-z0-9._~!$&'()*+,;=:@/?-]*)?(?:#[A-Za-z0-9._~!$&'()*+,;=:@/?-]*)?",
}

ANY = r"[^\n\r\u2028\u2029]"
# What a pattern is made of: ECMA 262's, as far as Rust's engine has it too.
ATOM = re.compile(
    r"(?P<escape>\\(?:x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4}|[pP]\{\w+\}|.))|(?P<set>\[\^?(?:\\.|[^\]\\])*\])"
    r"|(?P<open>\((?:\?(?::|P?<[A-Za-z_]\w*>))?)|(?P<close>\))|(?P<times>[*+?]|\{[0-9]+(?:,[0-9]*)?\})"
    r"|(?P<either>\|)|(?P<edge>[\^$])|(?P<letter>.)",
    re.DOTALL,
)
# ECMA 262's; Rust's engine takes all letters and digits of Unicode, and other white space.
SPACES = r"\t\n\x0B\f\r \xA0\u1680\u2000-\u200A\u2028\u2029\u202F\u205F\u3000\uFEFF"
CLASSES = {r"\d": "[0-9]", r"\D": "[^0-9]", r"\w": "[0-9A-Za-z_]", r"\W": "[^0-9A-Za-z_]"}
CLASSES |= {r"\s": f"[{SPACES}]", r"\S": f"[^{SPACES}]"}


def said(text: str) -> str:
    """The pattern of a string that says a text: printable ASCII as it is, other letters by their digits, too."""
    return f'"{"".join(map(_spelled, text))}"'


def _spelled(letter: str) -> str:
    ways = [re.escape(letter)] if letter >= " " and letter not in '"\\' else []
    if letter in ESCAPED:
        ways.append(rf"\\{re.escape(ESCAPED[letter])}")
    if not " " <= letter <= "~":
        units = re.findall("....", letter.encode("utf-16-be").hex())
        ways.append("".join(rf"\\u{re.sub('[a-f]', _either_case, unit)}" for unit in units))
    return ways[0] if len(ways) == 1 else f"(?:{'|'.join(ways)})"


def _either_case(digit: re.Match[str]) -> str:
    return f"[{digit[0]}{digit[0].upper()}]"


def searched(pattern: str) -> str:
    """What may stand between the quotation marks of a string in which a schema's `pattern` is found.

    Raises:
        ConfigError: it does not compile, or asks for what is beside a letter other than the beginning and the end.
    """
    alternatives: list[str] = []
    body, depth, begins, ends = "", 0, False, False
    for atom in [*ATOM.finditer(pattern), None]:
        kind = "either" if atom is None else str(atom.lastgroup)
        if kind == "either" and depth == 0:
            before, after = ("" if begins else f"{LETTER}*"), ("" if ends else f"{LETTER}*")
            alternatives.append(f"{before}(?:{body}){after}")
            body, begins, ends = "", False, False
            continue
        text = atom[0] if atom is not None else ""
        depth += (kind == "open") - (kind == "close")
        if depth < 0 or ends:
            raise _refused(pattern, f"{text} stands where it cannot")
        if kind == "edge":
            if depth > 0 or (text == "^" and (body or begins)):
                raise _refused(pattern, f"{text} must stand at an end of the whole, or of one of its alternatives")
            begins, ends = begins or text == "^", text == "$"
        elif kind == "open":
            if text == "(" and pattern[atom.end() : atom.end() + 1] == "?":  # type: ignore[union-attr]
                raise _refused(pattern, "look-around and flags are not supported")
            body += "(?:"
        else:
            body += _written(pattern, kind, text) if kind in ("escape", "set", "letter") else text
    if depth:
        raise _refused(pattern, "a bracket is open")
    found = f"(?:{'|'.join(alternatives)})"
    check_states(found, f"pattern {shortened(pattern)}")
    try:
        Automaton.of_pattern(f'"{found}"')
    except ConfigError as error:
        raise _refused(pattern, "it does not compile") from error
    return found


def _written(pattern: str, kind: str, text: str) -> str:
    """One letter of a pattern, a class or a dot, as JSON writes the letters that it may be."""
    if kind == "escape" and re.fullmatch(r"\\[0-9a-zA-Z]", text) and text[1] not in "dDwWsSnrtf":
        raise _refused(pattern, f"{text} is not supported")
    if text.startswith("[") and "--" in text:
        raise _refused(pattern, f"{text} has two hyphens, of which one must be written \\-")
    if kind == "letter":
        text = ANY if text == "." else re.escape(text)
    elif kind == "set":
        # A bracket in another is a letter here, and doubled marks are no algebra.
        text = "[" + re.sub(r"\\.|[\[&~|]", lambda found: found[0].rjust(2, "\\"), text[1:], flags=re.DOTALL)
    among = "".join(said for letter, said in ESCAPED.items() if _matches(text, letter))
    plain = re.sub(r"\\.", lambda found: CLASSES.get(found[0], found[0]), text, flags=re.DOTALL)
    return rf"(?:[{plain}&&{PLAIN}]|\\[{re.escape(among)}])" if among else f"[{plain}&&{PLAIN}]"


def _matches(text: str, letter: str) -> bool:
    try:
        return re.fullmatch(text, letter) is not None
    except re.error:
        # A class of Unicode's by name, which has none of these letters; if it is one that has, they are left out.
        return False


def _refused(pattern: str, reason: str) -> ConfigError:
    return ConfigError(f"pattern {pattern!r}: {reason}")
