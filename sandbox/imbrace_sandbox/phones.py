"""Made-up phone numbers and their conversations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from random import Random

import phonenumbers
from phonenumbers import PhoneNumberFormat

# Prefix of a country's mobile numbers with its country code, and the number of digits that follow.
_SHAPES = (
    ("8869", 8),
    ("8526", 7),
    ("659", 7),
    ("8190", 8),
    ("447400", 6),
    ("1415", 7),
    ("49151", 8),
    ("55119", 8),
    ("919", 9),
    ("8498", 7),
    ("668", 8),
    ("614", 8),
)
_SHARE_WITHOUT = 0.15
_SHARE_WITH_SEVERAL = 0.2
_SHARE_OF_SHARED_CONVERSATIONS = 0.06
_UNUSABLE = ("12", "call me maybe", "+999 12 34", "")


def _iter_numbers(rng: Random) -> Iterator[str]:
    seen: set[str] = set()
    while True:
        prefix, digits = rng.choice(_SHAPES)
        # North American exchanges start at 2; elsewhere any first digit is valid.
        first = str(rng.randint(2, 9))
        number = f"+{prefix}{first}{rng.randrange(10 ** (digits - 1)):0{digits - 1}d}"
        if number not in seen and phonenumbers.is_valid_number(phonenumbers.parse(number)):
            seen.add(number)
            yield number


def link_phones(seed: int, conversations: Mapping[str, str | None]) -> dict[str, list[str]]:
    """Give every conversation a phone; some phones get none, some several, some conversations two.

    Args:
        seed: Decides everything.
        conversations: Each id with the phone that its file names, if any.

    Returns:
        Conversation ids by phone, in E.164 with `+`.
    """
    rng = Random(f"{seed}/phones")
    numbers = _iter_numbers(rng)
    links: dict[str, list[str]] = {next(numbers): []}
    waiting = [each for each, phone in conversations.items() if phone is None]
    for conversation_id, phone in conversations.items():
        if phone is not None:
            links.setdefault(phone, []).append(conversation_id)
    index = 0
    while index < len(waiting):
        roll = rng.random()
        if roll < _SHARE_WITHOUT:
            links[next(numbers)] = []
            continue
        many = rng.randint(2, 4) if roll > 1 - _SHARE_WITH_SEVERAL else 1
        links[next(numbers)] = waiting[index : index + many]
        index += many
    _share(rng, links, waiting)
    return links


def _share(rng: Random, links: dict[str, list[str]], conversations: Sequence[str]) -> None:
    """Add a second phone to some conversations."""
    phones = [phone for phone, ids in links.items() if ids]
    if len(phones) < 2 or not conversations:
        return
    many = max(1, round(len(conversations) * _SHARE_OF_SHARED_CONVERSATIONS))
    for conversation_id in rng.sample(conversations, many):
        second = rng.choice(phones)
        while conversation_id in links[second] and len(phones) > 2:
            second = rng.choice(phones)
        if conversation_id not in links[second]:
            links[second].append(conversation_id)


def messy(seed: int, phones: Sequence[str], region: str | None = None) -> list[str]:
    """Write the phones as people do: spaces, dashes, brackets, repeats, and a few invalid ones.

    Args:
        seed: Decides the spelling.
        phones: In E.164 with `+`.
        region: Numbers of this region (such as `TW`) may be in national format.
    """
    rng = Random(f"{seed}/messy")
    lines: list[str] = []
    for phone in phones:
        # One in eight comes twice, usually in another spelling.
        lines += [_spell(rng, phone, region) for _ in range(2 if rng.random() < 0.125 else 1)]
    for unusable in _UNUSABLE:
        lines.insert(rng.randint(0, len(lines)), unusable)
    return lines


def _spell(rng: Random, phone: str, region: str | None) -> str:
    number = phonenumbers.parse(phone)
    if region and phonenumbers.region_code_for_number(number) == region and rng.random() < 0.5:
        return phonenumbers.format_number(number, PhoneNumberFormat.NATIONAL)
    international = phonenumbers.format_number(number, PhoneNumberFormat.INTERNATIONAL)
    code, _, rest = international.partition(" ")
    return rng.choice(
        [phone, international, international.replace(" ", "-"), f"  {code} ({rest}) ", f"{code}.{rest}"]
    )
