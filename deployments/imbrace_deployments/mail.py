"""How e-mail is sent; without Prefect, so that a command can read its options before it imports Prefect."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal
from urllib.parse import quote, urlencode


@dataclass(frozen=True, slots=True)
class Mail:
    """How e-mail is sent: recipients, sender and SMTP server; without a user, there is no login."""

    recipients: Sequence[str]
    sender: str
    host: str
    port: int
    encryption: Literal["starttls", "ssl", "none"] = "starttls"
    user: str | None = None

    def url(self, password: str | None) -> str:
        """Return the address that the library apprise takes; it contains the password."""
        login = f"{quote(self.user, safe='')}:{quote(password or '', safe='')}@" if self.user else ""
        options = {
            "smtp": self.host,
            "from": self.sender,
            "to": ",".join(self.recipients),
            "mode": "insecure" if self.encryption == "none" else self.encryption,
            "format": "text",
        }
        scheme = "mailto" if self.encryption == "none" else "mailtos"
        # Apprise rejects an IPv6 address in this position, and connects to that of the options.
        host = "localhost" if ":" in self.host else self.host
        return f"{scheme}://{login}{host}:{self.port}/?{urlencode(options)}"

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"to {', '.join(self.recipients)} by {host}:{self.port}"
