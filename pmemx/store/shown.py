"""Places and databases as messages and journals may tell of them."""

import re

_IN_FRONT = re.compile(r"(://[^/:@]*):[^@]*@")
_IN_QUERY = re.compile(r"([?&][^=&]*password[^=&]*=)[^&]*", re.IGNORECASE)


def shown(location: str) -> str:
    """A path, or a URL without its password, in front of the host or in the query."""
    return _IN_QUERY.sub(r"\1***", _IN_FRONT.sub(r"\1:***@", location))
