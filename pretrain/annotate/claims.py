"""What a sentence claims, read by a closed vocabulary.

A sentence is read in three steps: names of hands and things become tokens, the forms of `FORMS` are found and taken out,
and every word that is left must come from the narration or say nothing. So a sentence is either understood whole or refused.

Tokens: ``@L @R @B`` the left, right, both hands; ``@x0 @x1 ...`` things by their place in `Vocabulary.names`; ``@c`` the
wearer or the camera; ``@first @last`` the start and the end of the clip; ``@n`` the narration itself.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

from pretrain.annotate.surfaces import narration_objects


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One statement of a sentence.

    Attributes:
        type: "contact", "motion", "displacement", "relation", "acting hand", "handover" or "one hand".
        hands: sides; of a handover from and to. Empty = the sentence does not say which.
        subjects: names of what it is about; of an acting hand any of them.
        said: direction or relation, in the vocabulary of the facts.
        other: the second thing of a relation.
        amount: of a displacement, metres (radians of "turned"); None = not said.
        when: "first" or "last" frame, "" = not said (a relation that does not say is one of the start).
    """

    type: str
    hands: tuple[str, ...] = ()
    subjects: tuple[str, ...] = ()
    said: str = ""
    other: str = ""
    amount: float | None = None
    when: str = ""


class Unreadable(Exception):
    """The sentence is not understood whole. args: (kind of reason, what it was)."""


_SIDES = {"L": ("left",), "R": ("right",), "B": ("left", "right")}

_RELATIONS = {
    "left of": r"(?:(?:to|on) the )?left of",
    "right of": r"(?:(?:to|on) the )?right of",
    "nearer than": r"(?:nearer|closer)(?: to @c)? than|in front of",
    "farther than": r"(?:farther|further)(?: away)?(?: from @c)? than|behind",
    "above": r"above",
    "below": r"below|underneath|under",
    "beside": r"beside|next to",
}
_DIRECTIONS = {
    "up": r"up(?:wards?)?",
    "down": r"down(?:wards?)?",
    "left": r"(?:to the )?left(?:wards?)?",
    "right": r"(?:to the )?right(?:wards?)?",
    "away": r"away(?: from @c)?",
    "nearer": r"towards? @c|(?:nearer|closer)(?: to @c)?",
}
_TOUCH = r"(?:touch|hold|grasp|grip)(?:es|s|ping|ing|)|in contact with|makes contact with|(?:takes|taking) hold of"
_APPROACH = (
    r"approach(?:es|ing)|near(?:s|ing)|mov(?:es|ing) (?:closer to|towards?|to)|(?:comes|coming|gets|getting) closer to"
)
_RETREAT = r"retreat(?:s|ing) from|mov(?:es|ing) away from|withdraw(?:s|ing) from|back(?:s|ing) away from"
_BE = r"(?:is|are|lies|sits|stands|ends up)"
_MOVE = r"mov(?:es|ed|ing)|goes|going|travel(?:s|led|ling)|shift(?:s|ed|ing)|is moved|slid(?:es|ing)"
_LIFT = r"lift(?:s|ed|ing)|is lifted|rais(?:es|ed|ing)|is raised|ris(?:es|ing)"
_LOWER = r"lower(?:s|ed|ing)|is lowered|sink(?:s|ing)"
_AMOUNT = r"(?:(?:by )?(?:about |around |roughly )?(\d+(?:\.\d+)?) ?(?:cm|centimet(?:re|er)s?) )?"
_HANDS = r"@[LRB]"
_THING = r"@x\d+"
_ANY = rf"(?:{_HANDS}|{_THING})"
_DIRECTION = "(?:" + "|".join(_DIRECTIONS.values()) + ")"
_RELATION = "(?:" + "|".join(_RELATIONS.values()) + ")"
_PATH = rf"{_AMOUNT}{_DIRECTION}(?:(?: and|,) {_AMOUNT}{_DIRECTION})*"
_WHEN_BEFORE, _WHEN_AFTER = r"(?:@(?P<before>first|last) )?", r"(?: @(?P<after>first|last))?"
_THEN = r"(?:(?:then|also|still|already) )?"

# The forms of claims, tried in this order; named groups are read by `_claims_of`.
FORMS: dict[str, str] = {
    "relation": rf"(?P<subject>{_ANY})(?:,? (?:which )?{_BE})? (?P<relations>{_RELATION}(?: and {_RELATION})*) (?P<other>{_ANY})",
    "handover": r"from @(?P<giver>[LR]) (?:in)?to @(?P<taker>[LR])",
    "motion approaches": rf"@(?P<hand>[LR]) {_THEN}(?:is )?(?:{_APPROACH}) (?P<subject>{_THING})",
    "motion retreats from": rf"@(?P<hand>[LR]) {_THEN}(?:is )?(?:{_RETREAT}) (?P<subject>{_THING})",
    "contact": rf"(?:@(?P<hand>[LRB])|@c) {_THEN}(?:is |are |in )?(?:{_TOUCH}) (?P<subject>{_THING})(?! than)",
    "contact by": rf"(?P<subject>{_THING}) (?:is|are) {_THEN}(?:touched|held|grasped|gripped)(?: by @(?P<hand>[LRB]))?",
    "contact ends": rf"(?:@(?P<hand>[LRB])|@c) {_THEN}(?:lets go of|releases) (?P<subject>{_THING})",
    "moves": rf"(?P<subject>{_THING}) {_THEN}(?:{_MOVE}) (?P<path>{_PATH})",
    "moved": rf"(?:{_MOVE}) (?P<subject>{_THING}) (?P<path>{_PATH})",
    "lifted": rf"(?:(?:{_LIFT}) (?P<subject>{_THING})|(?P<subject2>{_THING}) {_THEN}(?:{_LIFT}))(?: (?P<path>{_AMOUNT}(?:{_DIRECTIONS['up']})))?(?: by (?:about )?(?P<up>\d+(?:\.\d+)?) ?cm)?",
    "lowered": rf"(?:(?:{_LOWER}) (?P<subject>{_THING})|(?P<subject2>{_THING}) {_THEN}(?:{_LOWER}))(?: (?P<path>{_AMOUNT}(?:{_DIRECTIONS['down']})))?(?: by (?:about )?(?P<up>\d+(?:\.\d+)?) ?cm)?",
    "state": rf"(?P<subject>{_THING}) (?:is|gets) {_THEN}(?P<state>opened|closed|tilted|pressed(?: down)?|turned(?: by (?:about )?(?P<angle>\d+(?:\.\d+)?) degrees)?)",
    "acting hand": r"(?:with|using|by) (?:only )?@(?P<hand>[LRB])",
    "one hand": r"(?:with|using) (?:only )?(?:one|a single) hand",
}  # fmt: skip
_COMPILED = {name: re.compile(rf"(?<![@\w]){_WHEN_BEFORE}{form}{_WHEN_AFTER}(?!\w)") for name, form in FORMS.items()}

_TIMES = (
    (r"(?:at|by|in) the (?:very )?end(?: of the clip)?,?|finally,?|in the last frame,?", "@last"),
    (r"at (?:the (?:start|beginning)(?: of the clip)?|first),?|in the beginning,?|initially,?|in the first frame,?", "@first"),
)  # fmt: skip
_WEARER = r"#?c c|(?:the )?(?:camera )?wearer|the (?:person|camera|viewer|user)|c|himself|herself|themselves"
_OWNER = r"(?:the|a|an|his|her|their|its|some)"
_NEUTRAL = frozenset({"and", "then", "while", "the", "a", "an", "as", "@c", "@n", "who", "he", "she", "they", "also"})
# Words that state something; where they are not part of a form, the sentence is not understood.
_STATING = frozenset(
    re.findall(
        r"\w+",
        "left right up down above below under over beside behind near nearer nearest far farther further close closer "
        "away towards toward touch touches touching hold holds holding grasp grasps grip grips approach approaches "
        "approaching retreat retreats moves moved lifts lifted raises lowers cm m metres meters centimetres degrees one "
        "two three four five both no not never without first last before after start end than front between it them",
    )
)


class Vocabulary:
    """The names that a sentence may use: those of the facts, and the narration's noun phrases.

    A thing may be called by the last word of its name where only one name ends so.
    """

    def __init__(self, narration: str, facts: Sequence[Mapping[str, Any]]) -> None:
        in_facts = [str(fact[key]) for fact in facts for key in ("subject", "object") if key in fact]
        self.narration = _clean(narration)
        self.in_narration = narration_objects(narration)
        names = [name for name in (*in_facts, *self.in_narration) if not re.fullmatch(r"(left|right) hand", name)]
        self.names = tuple(dict.fromkeys(name.lower() for name in names))

    @cached_property
    def spoken(self) -> list[tuple[str, str]]:
        """(how it is said, token), the longest first."""
        said = {name: f"@x{index}" for index, name in enumerate(self.names)}
        heads = [name.split()[-1] for name in self.names]
        for name, head in zip(self.names, heads, strict=True):
            if heads.count(head) == 1:
                said.setdefault(head, said[name])
        return sorted(said.items(), key=lambda item: -len(item[0]))

    def name(self, token: str) -> str:
        """The name behind a token of a thing or a hand."""
        return self.names[int(token[2:])] if token.startswith("@x") else f"{_SIDES[token[1]][0]} hand"

    @cached_property
    def words(self) -> frozenset[str]:
        """Stems of the narration's words that name nothing."""
        return frozenset(_stem(word) for word in re.findall(r"[a-z']+", self.tokens(self.narration)))

    @cached_property
    def pairs(self) -> frozenset[tuple[str, str]]:
        """Each word of the narration with the stem of the one before: "up" belongs to "picks up", not to "moves up"."""
        words = self.tokens(self.narration).split()
        return frozenset((_stem(before), word) for before, word in pairwise(words))

    @cached_property
    def order(self) -> list[str]:
        """Tokens of the narration's things as they come."""
        return re.findall(_THING, self.tokens(self.narration))

    def tokens(self, text: str) -> str:
        """Clean text with its names as tokens."""
        for pattern, token in _TIMES:
            text = re.sub(rf"(?<!\w)(?:{pattern})(?!\w)", token, text)
        for side, token in (("left", "@L"), ("right", "@R")):
            text = re.sub(rf"(?<![@\w])(?:{_OWNER} )?{side} hand(?!\w)", token, text)
        text = re.sub(rf"(?<![@\w])(?:{_OWNER} )?(?:both|two) hands(?!\w)", "@B", text)
        for said, token in self.spoken:
            text = re.sub(rf"(?<![@\w-])(?:{_OWNER} )?{re.escape(said)}(?![\w-])", token, text)
        text = re.sub(rf"(?<![@\w])(?:{_WEARER})(?!\w)", "@c", text)
        return " ".join(text.split())


def read_claims(text: str, vocabulary: Vocabulary, *, skip_narration: bool = True) -> tuple[Claim, ...]:
    """All claims of a sentence; the narration, where it stands in it word by word, makes none unless `skip_narration` is
    False.

    Raises:
        Unreadable: a word, a name or a form outside the vocabulary.
    """
    clean = _clean(text)
    plain = vocabulary.narration
    if skip_narration and plain and plain in clean:
        clean = clean.replace(plain, "narration-as-given", 1)
    left = vocabulary.tokens(clean).replace("narration-as-given", " ".join(["@n", *dict.fromkeys(vocabulary.order)]))
    left = _repeat_hand(_resolve_it(left))
    claims: list[Claim] = []
    for name, pattern in _COMPILED.items():
        while match := pattern.search(left):
            claims += _claims_of(name, match, left, vocabulary)
            # What comes later may still lean on a thing that was named here.
            named = " ".join(re.findall(_THING, match[0])) if name != "relation" else ""
            left = f"{left[: match.start()]}<{named}>{left[match.end() :]}"
    _refuse_leftovers(re.sub(r"<[^>]*>", " ", left), vocabulary)
    return tuple(claims)


def _clean(text: str) -> str:
    text = unicodedata.normalize("NFKC", text).lower().strip()
    text = re.sub(r"^#\w+\s+", "#c ", text)
    text = re.sub(r"\s+", " ", text.replace("’", "'")).strip(" .")
    return re.sub(r"^#c \w+ ", "c ", text)


def _resolve_it(text: str) -> str:
    """ "it" becomes the one thing named before it; where there is none or several, the word stays and is refused."""
    while match := re.search(r"(?<![@\w])it(?!\w)", text):
        named = set(re.findall(_THING, text[: match.start()]))
        if len(named) != 1:
            raise Unreadable("not understood", "it")
        text = text[: match.start()] + named.pop() + text[match.end() :]
    return text


def _repeat_hand(text: str) -> str:
    """ "the right hand approaches and touches the can" becomes two whole statements about one hand and one thing."""
    verbs = rf"(?:{_APPROACH}|{_RETREAT}|{_TOUCH}|lets go of|releases)"
    text = re.sub(rf"({_HANDS}) ({verbs}) (and|then|and then) ({verbs}) ({_THING})", r"\1 \2 \5 \3 \1 \4 \5", text)
    for _ in range(4):
        text = re.sub(
            rf"({_HANDS}) ({verbs} {_THING})(,? (?:and then|and|then)) (?={verbs} {_THING})", r"\1 \2\3 \1 ", text
        )
    return text


def _claims_of(form: str, match: re.Match[str], text: str, vocabulary: Vocabulary) -> Iterator[Claim]:
    found = match.groupdict()
    when = found["before"] or found["after"] or ""
    hands = _SIDES[found["hand"]] if found.get("hand") else ()
    token = found.get("subject") or found.get("subject2")
    subjects = (vocabulary.name(token),) if token else ()
    if form == "relation":
        if "@B" in (token, found["other"]):
            raise Unreadable("not understood", "both hands in a relation")
        for relation in re.findall(_RELATION, found["relations"]):
            said = next(name for name, words in _RELATIONS.items() if re.fullmatch(words, relation))
            yield Claim(type="relation", subjects=subjects, said=said, other=vocabulary.name(found["other"]), when=when)
    elif form == "handover":
        about = _named_before(text[: match.start()], vocabulary)
        yield Claim(type="handover", hands=_SIDES[found["giver"]] + _SIDES[found["taker"]], subjects=about, when=when)
    elif form.startswith("motion"):
        yield Claim(type="motion", hands=hands, subjects=subjects, said=form.removeprefix("motion "), when=when)
    elif form.startswith("contact"):
        for side in hands or ("",):
            said = "ends" if form == "contact ends" else ""
            yield Claim(type="contact", hands=(side,) if side else (), subjects=subjects, said=said, when=when)
    elif form in ("acting hand", "one hand"):
        about = _named_before(text[: match.start()], vocabulary)
        for side in hands or ("",):
            yield Claim(type=form, hands=(side,) if side else (), subjects=about, when=when)
    elif form == "state":
        angle = math.radians(float(found["angle"])) if found["angle"] else None
        yield Claim(type="displacement", subjects=subjects, said=found["state"].split()[0], amount=angle, when=when)
    else:
        yield from _displacements_of(form, found, subjects, when)


def _displacements_of(
    form: str, found: Mapping[str, str | None], subjects: tuple[str, ...], when: str
) -> Iterator[Claim]:
    path = found.get("path") or ""
    parts = re.findall(rf"{_AMOUNT}({_DIRECTION})(?: and |, |$)", path)
    default = {"lifted": "up", "lowered": "down"}.get(form, "")
    for amount, words in parts or [(found.get("up") or "", default)]:
        said = next((name for name, pattern in _DIRECTIONS.items() if re.fullmatch(pattern, words)), default)
        amount = amount or found.get("up") or ""
        yield Claim(
            type="displacement", subjects=subjects, said=said, amount=float(amount) / 100 if amount else None, when=when
        )  # fmt: skip


def _named_before(text: str, vocabulary: Vocabulary) -> tuple[str, ...]:
    """Things named before in the same clause."""
    return tuple(vocabulary.name(token) for token in dict.fromkeys(re.findall(_THING, re.split(r"[;.]", text)[-1])))


def _refuse_leftovers(text: str, vocabulary: Vocabulary) -> None:
    """What no form has taken may repeat the narration, in its order, and nothing else."""
    found: list[tuple[str, str]] = []
    for clause in re.split(r"[;.,]", text):
        words = clause.split()
        for before, word in pairwise(["", *words]):
            if kind := _refused(before, word, vocabulary):
                found.append((kind, f"{word!r} in {clause.strip()!r}"))
        things = [word for word in words if re.fullmatch(_THING, word)]
        if "@n" not in words and not _in_order(things, vocabulary.order):
            found.append(("not understood", repr(clause.strip())))
    if found:
        # A wrong name often leaves the rest of its clause unread, so it is the better reason.
        raise Unreadable(*next((one for one in found if one[0] == "unknown object"), found[0]))


def _refused(before: str, word: str, vocabulary: Vocabulary) -> str:
    """Why a word that is left over is refused; "" = it may stay."""
    if re.fullmatch(rf"@[cn]|{_THING}", word):
        return ""
    bare = word.strip("'\"()")
    if re.fullmatch(r"@[LRB]|@first|@last", word) or bare in _STATING or re.search(r"\d", word):
        return "" if (_stem(before), word) in vocabulary.pairs and not word.startswith("@") else "not understood"
    if word in _NEUTRAL or _stem(word) in vocabulary.words:
        return ""
    in_a_name = any(bare in said.split() for said, _ in vocabulary.spoken)
    return "unknown object" if in_a_name or re.fullmatch(_OWNER, before) else "unknown word"


def _in_order(things: list[str], order: list[str]) -> bool:
    """Whether things are named as the narration names them: "puts the box on the can" is not "puts the can on the box"."""
    rest = iter(order)
    return all(thing in rest for thing in things)


def _stem(word: str) -> str:
    stem = re.sub(r"(?:ing|es|ed|s|d|e)$", "", word.strip("'\""))
    return re.sub(r"(.)\1$", r"\1", stem)
