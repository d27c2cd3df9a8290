"""Personal data in texts: mail addresses, telephone numbers, network and postal addresses, identity numbers."""

import ipaddress
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any

from ablatio import NonNegative, filters
from ablatio.data.filters import Verdict
from ablatio.errors import UserError

_STREETS = "Street|St|Avenue|Ave|Road|Rd|Boulevard|Blvd|Lane|Ln|Drive|Dr|Court|Ct|Square|Sq|Way|Place|Pl"
PATTERNS: Mapping[str, str] = {
    "email": r"\b[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]+@[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
    r"(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?)+",
    "iban": r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b",
    # 13 to 19 digits; the check digit below tells a card from another number.
    "card": r"\b(?:\d[ -]?){12,18}\d\b",
    "ssn": r"\b(?!000|666|9\d\d)\d{3}-(?!00)\d{2}-(?!0000)\d{4}\b",
    "ip": r"(?<![\d.])(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(?:25[0-5]|2[0-4]\d|1?\d?\d)(?![\d]|\.\d)"
    r"|(?<![\w:.])(?=[0-9a-fA-F:]*:[0-9a-fA-F:]*:)[0-9a-fA-F:]{2,39}(?![\w:]|\.\d)",
    "phone": r"(?<![\w.+-])(?:\+\d{1,3}[ .-]?(?:\(\d{1,4}\)[ .-]?|\d{1,4}[ .-])(?:\d{2,4}[ .-]?){1,3}\d{2,4}"
    r"|\+\d{8,15}|\(\d{3}\) ?\d{3}[ .-]\d{4}|\d{3}[.-]\d{3}[.-]\d{4})(?![\w-])",
    "address": rf"\b\d{{1,5}}(?: [NSEW]\.?)?(?: [A-Z][a-z]+){{1,3}} (?:{_STREETS})\b(?! of\b)"
    r"(?:,? (?:Apt|Suite|Unit)\.? ?\w{1,5})?(?:,? [A-Z][a-z]+(?: [A-Z][a-z]+)?,? [A-Z]{2} \d{5}(?:-\d{4})?)?",
}


def luhn(text: str) -> bool:
    """True if the digits pass the Luhn check of payment cards (ISO/IEC 7812-1)."""
    digits = [int(c) for c in text if c.isdigit()][::-1]
    return sum(d if i % 2 == 0 else sum(divmod(2 * d, 10)) for i, d in enumerate(digits)) % 10 == 0


def iban(text: str) -> bool:
    """True if the number is 1 modulo 97 (ISO 13616)."""
    bare = text.replace(" ", "")
    # ISO 13616 moves the first four signs to the end and writes letters as 10 to 35.
    return int("".join(str(int(c, 36)) for c in bare[4:] + bare[:4])) % 97 == 1


def network_address(text: str) -> bool:
    """True for four numbers, and for an address of version 6 (RFC 4291): times and `::` in code have colons, too."""
    try:
        return ":" not in text or (ipaddress.ip_address(text).version == 6 and text != "::")
    except ValueError:
        return False


CHECKS: Mapping[str, Callable[[str], bool]] = {"card": luhn, "iban": iban, "ip": network_address}


@filters.register("pii", paper="arXiv:2406.17557")
class PersonalData:
    """Replaces personal data by tags: `<EMAIL>`, `<PHONE>`, `<IP>`, `<ADDRESS>`, `<SSN>`, `<IBAN>`, `<CARD>`.

    Mail and network addresses as in FineWeb; card numbers and IBANs only with valid check digits; telephone numbers in
    international or North American form; postal addresses and social security numbers of the United States.
    """

    changes_text = True

    def __init__(
        self,
        *,
        replace: Annotated[tuple[str, ...], "what is replaced: email iban card ssn ip phone address"] = tuple(PATTERNS),
        most: Annotated[int | None, NonNegative, "drop documents with more of it than that; null: none"] = None,
    ) -> None:
        if unknown := [name for name in replace if name not in PATTERNS]:
            raise UserError(f"filter.pii.replace: there is no {unknown[0]!r}; there are {', '.join(PATTERNS)}\n"
                            "    try: filter.pii.replace=[email,phone]")  # fmt: skip
        # In the order of PATTERNS: an IBAN or a card number would else be taken for a telephone number.
        self.names, self.most = [name for name in PATTERNS if name in replace], most

    def measure(self, text: str) -> tuple[str, dict[str, int]]:
        """(text with tags, counts)."""
        counts = dict[str, int]()
        for name in self.names:
            text = re.sub(PATTERNS[name], lambda found, name=name: self._tag(name, found[0], counts), text)
        return text, counts

    @staticmethod
    def _tag(name: str, found: str, counts: dict[str, int]) -> str:
        if name in CHECKS and not CHECKS[name](found):
            return found
        counts[name] = counts.get(name, 0) + 1
        return f"<{name.upper()}>"

    def judge(self, text: str, measure: tuple[Any, dict[str, int]]) -> Verdict:
        if self.most is not None and sum(measure[1].values()) > self.most:
            return Verdict(None, "too much personal data")
        return Verdict(measure[0], counts=measure[1])
