"""What a request is refused for. Texts are ours, fixed, and name nothing of the machine."""


class RequestError(Exception):
    """One refusal: an HTTP status, a code for programs, a message for people.

    `param` is the part of the request at fault, such as `input[3]`; `retry_after` says after how many seconds it is
    worth to ask again.
    """

    def __init__(
        self, status: int, code: str, message: str, *, param: str | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(status, code, message)
        self.status, self.code, self.message = status, code, message
        self.param, self.retry_after = param, retry_after

    def __str__(self) -> str:
        return self.message

    def at(self, param: str) -> "RequestError":
        """The same refusal, of one part of a request."""
        if self.param is not None:
            return self
        told = f"{param}: {self.message}"
        return RequestError(self.status, self.code, told, param=param, retry_after=self.retry_after)


def too_large(message: str, *, code: str = "too_large") -> RequestError:
    """413: more than a limit allows."""
    return RequestError(413, code, message)


def invalid(message: str, *, code: str = "invalid_request", param: str | None = None) -> RequestError:
    """400: the request itself is wrong."""
    return RequestError(400, code, message, param=param)


def overloaded(message: str, seconds: float) -> RequestError:
    """429: more work is waiting than can be done in time."""
    return RequestError(429, "overloaded", message, retry_after=seconds)
