"""What to do when something goes wrong: a short code for each kind of warning and bad verdict, and what it means::

    logger.warning(coded("TW504", "out of memory while %s: …"), doing)

advice.toml beside this file is the table: by code, and for errors by class. `twistlm list TW203` prints an entry, and
docs/when-it-goes-wrong.md is all of them: python -m twistlm.core.advice > docs/when-it-goes-wrong.md
"""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import metadata, resources

# By the first digit of a code; what has no code is a class of errors.
SUBJECTS = {
    "1": "1xx: data and draws",
    "2": "2xx: training",
    "3": "3xx: certificates and probabilities",
    "4": "4xx: sequential Monte Carlo",
    "5": "5xx: files, stores and machines",
    "6": "6xx: reports and pictures",
    "": "Errors, by class",
}
PAGE = "when-it-goes-wrong.html"
LABEL = "Documentation"
CODE = re.compile(r"TW([1-6])\d\d")
ENDING = re.compile(rf"(?P<text>.*) \[(?P<code>{CODE.pattern})\]", re.DOTALL)


@dataclass(frozen=True)
class Advice:
    """What is known of one kind of trouble; plain sentences.

    Attributes:
        code: such as TW203, or the name of a class of errors.
        title: in a few words, without a full stop.
        means: what it says of the results that there are.
        cause: what it mostly comes from.
        remedy: what to do about it.
    """

    code: str
    title: str
    means: str
    cause: str
    remedy: str

    @property
    def subject(self) -> str:
        """The heading under which it stands."""
        found = CODE.fullmatch(self.code)
        return SUBJECTS[found[1] if found else ""]

    @property
    def link(self) -> str | None:
        """Where it is explained on the documentation's site; None while there is no site."""
        return None if (place := site()) is None else f"{place.rstrip('/')}/{PAGE}#{self.code.lower()}"


@cache
def table() -> Mapping[str, Advice]:
    """Everything that is known, by its code, in order."""
    text = resources.files("twistlm.core").joinpath("advice.toml").read_text(encoding="utf-8")
    return {
        code: Advice(code, **{name: " ".join(value.split()) for name, value in fields.items()})
        for code, fields in tomllib.loads(text).items()
    }


@cache
def site() -> str | None:
    """The address of the documentation: `Documentation` of the package's project URLs, None if it has none."""
    try:
        urls = metadata.metadata("twistlm").get_all("Project-URL") or []
    except metadata.PackageNotFoundError:
        return None
    return dict(url.split(", ", 1) for url in urls).get(LABEL)


def coded(code: str, message: str) -> str:
    """The message with the code at its end, which is how every warning is given; a code that is not known is a bug."""
    return f"{message} [{table()[code].code}]"


def parted(message: str) -> tuple[str, Advice | None]:
    """A message without its code, and what is known of that; None if it has no code, or that of another version."""
    found = ENDING.fullmatch(message)
    advice = None if found is None else table().get(found["code"])
    return (message, None) if found is None or advice is None else (found["text"], advice)


def explained(code: str) -> Advice | None:
    """The entry of a code, however it is written, or of a class of errors; None if there is none."""
    named = {each.lower(): advice for each, advice in table().items()}
    return named.get(code.strip("[] ").lower())


def page() -> str:
    """docs/when-it-goes-wrong.md. A code's heading is the code alone, so that its anchor never changes."""
    parts = [
        "# When it goes wrong",
        "Every warning, and every verdict that something is wrong, ends with a code in brackets, such as `[TW203]`. "
        "Here is what each of them means for the results, where it comes from and what to do; `twistlm list TW203` "
        "prints the same. Errors have no code, since their messages say what to do; their classes stand at the end.",
        "This page is made from `src/twistlm/core/advice.toml`, which is where to change it: "
        "`python -m twistlm.core.advice > docs/when-it-goes-wrong.md`.",
        "\n".join(
            [
                "| code | what |",
                "|---|---|",
                *(f"| [{a.code}](#{a.code.lower()}) | {a.title} |" for a in table().values()),
            ]
        ),
    ]
    subject = ""
    for advice in table().values():
        if advice.subject != subject:
            subject = advice.subject
            parts.append(f"## {subject}")
        parts += [
            f"### {advice.code}",
            f"**{advice.title}.** {_linked(advice.means)}",
            f"*Cause:* {_linked(advice.cause)}",
            f"*Remedy:* {_linked(advice.remedy)}",
        ]
    return "\n\n".join(parts) + "\n"


def _linked(text: str) -> str:
    """The text in Markdown, with other codes and pages of docs/ as links."""
    text = CODE.sub(lambda found: f"[{found[0]}](#{found[0].lower()})", text)
    return re.sub(r"docs/([\w-]+\.md)", r"[docs/\1](\1)", text)


if __name__ == "__main__":
    print(page(), end="")
