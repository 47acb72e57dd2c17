"""What can go wrong on the way to an object store: what is worth another try, and how the rest is told.

s3fs and gcsfs raise what lies below them (botocore, aiohttp, google.auth, requests), wrapped or not. Kinds are found by
the names of classes along the chain of causes, so that none of those packages has to be imported here.
"""

import random
import time
from collections.abc import Callable, Iterator

from data_pipelines.errors import BadInput

TRIES = {"s3": 5, "gs": 2}  # of one action; gcsfs makes six of each request by itself, and cannot be told otherwise
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 16.0  # seconds; doubled from try to try

EXTRAS = {"s3": ("s3fs", "s3"), "gs": ("gcsfs", "gcs")}  # scheme -> package, extra

_CREDENTIALS = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or AWS_PROFILE, or run where a role is attached; the role "
    "needs the right to list, read and write there",
    "gs": "run `gcloud auth application-default login`, set GOOGLE_APPLICATION_CREDENTIALS, or run where a service "
    "account is attached; it needs the right to list, read and write there",
}
_NO_CREDENTIALS = {
    "NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "TokenRetrievalError",
    "ProfileNotFound", "DefaultCredentialsError", "RefreshError", "UnauthorizedSSOTokenError", "SSOTokenLoadError",
}  # fmt: skip
_TRANSIENT = {
    "ConnectionError", "TimeoutError", "HTTPClientError", "ClientConnectionError", "ClientPayloadError",
    "IncompleteRead", "IncompleteReadError", "ResponseParserError", "ResponseStreamingError", "ChecksumError",
    "TransportError", "ChunkedEncodingError", "Timeout", "ProxyError",
}  # fmt: skip
_CLOSED = "Connection closed."  # a RuntimeError of aiohttp, where the peer went away between two reads
_REFUSED_CODES = {"ExpiredToken", "InvalidToken", "TokenRefreshRequired", "AccessDenied", "InvalidAccessKeyId"}
_TRANSIENT_CODES = {"RequestTimeout", "ConditionalRequestConflict"}  # of a status 400, 409


class Missing(BadInput):
    """Nothing lies at the path that was to be read."""

    def __reduce__(self):
        return (Missing, (self.where, self.found, self.expected, self.remedy))


def attempt(path: str, action: Callable, *args, **options):
    """Calls `action(*args, **options)`, again where a connection, a time limit, 429 or 5xx was the reason it failed.

    Pauses double from try to try and are drawn at random, so that the hosts of a run do not come back in step.

    Args:
        path: what the error names.

    Raises:
        Missing: there is no such object (404). BadInput: no right or no credentials (401, 403: at once), or still
            failing after `TRIES` tries. FileExistsError: something is there that must not be (412). OSError: of the
            local file concerned, as it was.
    """
    tries = TRIES[path.partition(":")[0]]
    for number in range(tries):
        try:
            return action(*args, **options)
        except BadInput:
            raise
        except Exception as error:
            if _of_local_file(error):
                raise
            if isinstance(error, FileExistsError) or _status(error) == 412:
                raise FileExistsError(path) from error
            if not is_transient(error) or number == tries - 1:
                raise _told(path, error) from error
        pause(min(FIRST_PAUSE * 2**number, LONGEST_PAUSE) * random.uniform(0.5, 1.0))


def pause(seconds: float) -> None:
    time.sleep(seconds)


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed a moment later."""
    if status := _status(error):
        return status in (408, 429) or status >= 500 or _code(error) in _TRANSIENT_CODES
    names = _names(error)
    if names & (_NO_CREDENTIALS | {"FileNotFoundError", "PermissionError"}):
        return False
    return bool(names & _TRANSIENT) or any(str(each) == _CLOSED for each in _chain(error))


def missing_package(path: str, scheme: str) -> BadInput:
    package, extra = EXTRAS[scheme]
    return BadInput(path, f"no package {package}", f"the extra [{extra}]", f"pip install 'csfm_jax[{extra}]'")


def _told(path, error) -> BadInput:
    """The BadInput for a failure; the server's own words are left out, as they may hold keys of the request."""
    scheme, names, status = path.partition(":")[0], _names(error), _status(error)
    if status == 404 or (status is None and "FileNotFoundError" in names):
        return Missing(path, "no such object or bucket", "an object that exists", "correct the path")
    if names & _NO_CREDENTIALS:
        return BadInput(path, "no usable credentials", "credentials for this bucket", _CREDENTIALS[scheme])
    if (
        status in (401, 403)
        or _code(error) in _REFUSED_CODES
        or names & {"PermissionError"}
        or "Forbidden" in str(error)
    ):
        found = f"access refused (HTTP {status or 403})"
        return BadInput(path, found, "credentials with the right to do this", _CREDENTIALS[scheme])
    what = f"HTTP {status}" if status else type(_chain(error)[-1]).__name__
    if is_transient(error):
        remedy = "check the network and the service's state, then give the same command again"
        return BadInput(path, f"{what}, {TRIES[scheme]} times in a row", "an answer", remedy)
    code = f" ({code})" if (code := _code(error)) else ""
    return BadInput(path, f"{what}{code}", "an answer", "check the path, the bucket's region and its rules")


def _chain(error) -> list[BaseException]:
    found = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return found


def _names(error) -> set[str]:
    return {kind.__name__ for each in _chain(error) for kind in type(each).__mro__}


def _responses(error) -> Iterator[dict]:
    for each in _chain(error):
        if isinstance(response := getattr(each, "response", None), dict):
            yield response


def _status(error) -> int | None:
    """The HTTP status: botocore keeps it in a dict, gcsfs as `code`, aiohttp as `status`."""
    for response in _responses(error):
        if status := response.get("ResponseMetadata", {}).get("HTTPStatusCode"):
            return int(status)
    for each in _chain(error):
        # by name: aiohttp gives what its parser raises at a connection that was cut a `code` of its own
        value = getattr(each, {"HttpError": "code", "ClientResponseError": "status"}.get(type(each).__name__, ""), None)
        if str(value).isdigit():
            return int(value)
    return None


def _code(error) -> str | None:
    return next((r["Error"]["Code"] for r in _responses(error) if r.get("Error", {}).get("Code")), None)


def _of_local_file(error) -> bool:
    """An error of the local disk has a number and, from `open`, a file's name; those of the stores have no file."""
    return isinstance(error, OSError) and getattr(error, "filename", None) is not None
