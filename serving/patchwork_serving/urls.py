"""URLs as they are given, asked and shown."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit, urlunsplit

import httpx

from patchwork_serving.errors import UsageError


def is_url(name: str) -> bool:
    """Not the name of an application."""
    return name.startswith(("http://", "https://"))


def checked(url: str) -> str:
    """``url``, when it can be asked; else UsageError, which shows nothing of it: where a password ends is not known."""
    try:
        host, _ = httpx.URL(url).host, urlsplit(url).port
    except (httpx.InvalidURL, ValueError):
        host = ""
    if not host:
        raise UsageError("the URL has no host, or no number as its port; write http://HOST:PORT/PATH")
    return url


def shown(url: str) -> str:
    """Without what may be a secret: user and password, query, fragment."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
