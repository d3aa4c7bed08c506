"""`gauntlet key`: make, show and end access keys."""

import re
from datetime import UTC, datetime, timedelta
from typing import Any

from flows.console import err, out, print_json, quiet_home, table
from models.errors import ConfigError
from models.section import length
from stacks import keys
from stacks.keys import Key


def add_key(name: str, role: str, expires: str | None, rate: int, why: str, as_json: bool) -> None:
    """Make a key and print it, alone on stdout.

    Raises:
        ConfigError: `expires` is no span of time, there is no such role, or the name is none or taken.
    """
    valid_for = parse_span(expires) if expires is not None else None
    quiet_home()
    key, secret = keys.add(name, role, valid_for=valid_for, rate=rate or None, why=why)
    if as_json:
        print_json({"key": secret, **_facts(key)})
        return
    out.print(secret, markup=False)
    until = f"until {key.expires:%Y-%m-%d %H:%M} UTC" if key.expires else "until it is revoked"
    err.print(f"Shown this once: only its hash is kept. '{name}' opens {role} {until}.", markup=False)
    err.print("Send it as `Authorization: Bearer gk_…`; from now on every client needs a key.", markup=False)


def print_keys(as_json: bool) -> None:
    """Print all keys there ever were, without what would open anything."""
    quiet_home()
    found = keys.listing()
    if as_json:
        print_json({"keys": [_facts(key) for key in found]})
        return
    if not found:
        out.print("No keys: services answer only their own machine. Make one: gauntlet key add NAME --role predict")
        return
    now = datetime.now(UTC)
    rows = [(key.name, key.role, _standing(key, now), key.rate or "", key.prefix) for key in found]
    table("Access keys", ("name", "role", "state (UTC)", "a minute", "begins with"), rows)


def revoke_key(name: str, why: str, as_json: bool) -> None:
    """End a key and say what that leaves.

    Raises:
        ConfigError: There is no such key.
    """
    quiet_home()
    key = keys.revoke(name, why=why)
    left = any(other.revoked is None for other in keys.listing())
    if as_json:
        print_json({**_facts(key), "keys_left": left})
        return
    out.print(f"'{key.name}' is revoked; running services refuse it within two seconds.", markup=False)
    if not left:
        out.print("It was the last one: services answer only their own machine now, without a key.")


def parse_span(text: str) -> timedelta:
    """A span of time from `90d`, `12h` or `30m`.

    Raises:
        ConfigError: It is written otherwise, or is nothing.
    """
    match = re.fullmatch(r"[1-9][0-9]{0,4}[dhm]", text)
    if match is None:
        raise ConfigError(f"--expires {text[:40]!r} is no span of time; write it like 90d, 12h or 30m")
    return length(text)


def _facts(key: Key) -> dict[str, Any]:
    times = {name: getattr(key, name) for name in ("created", "expires", "revoked")}
    told = {name: moment.isoformat(timespec="seconds") if moment else None for name, moment in times.items()}
    state = key.state(datetime.now(UTC))
    return {"name": key.name, "role": key.role, "state": state, "rate": key.rate, "prefix": key.prefix, **told}


def _standing(key: Key, now: datetime) -> str:
    state, moment = key.state(now), key.revoked or key.expires
    if moment is None:
        return state
    return f"{state} {'until ' if state == 'active' else ''}{moment:%Y-%m-%d %H:%M}"
