"""Where objects are kept, told by one string: a path, or a URL."""

import re
from pathlib import Path
from urllib.request import url2pathname

from pmemx.core.errors import ConfigError
from pmemx.core.objects import Objects
from pmemx.store.local_objects import LocalObjects
from pmemx.store.remote_objects import RemoteObjects


def open_objects(place: str | Path) -> Objects:
    """A path or file:///path is a local folder, any other scheme://... a remote place. Nothing is made or reached yet.

    A scheme has two letters or more: C:\\bank is a path. Raises ConfigError for what is neither.
    """
    if isinstance(place, Path):
        return LocalObjects(place)
    url = re.fullmatch(r"([A-Za-z][A-Za-z0-9+.-]+)://(.*)", place, re.DOTALL)
    if not url:
        if not place.strip() or "://" in place:
            raise ConfigError(f"{place!r} is neither a path nor scheme://...; give one of them")
        return LocalObjects(Path(place))
    scheme, rest = url[1].lower(), url[2]
    if scheme != "file":
        return RemoteObjects(f"{scheme}://{rest}")
    host, slash, path = rest.partition("/")
    if host not in ("", "localhost") or not path:
        raise ConfigError(f"{place!r} names no folder of this machine; write file:///path, with three slashes")
    return LocalObjects(Path(url2pathname(slash + path)))
