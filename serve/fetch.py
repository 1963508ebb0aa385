"""Stand-in until the helper's is merged."""

from mcbeit.config import Config


class FetchConfig(Config):
    hosts: tuple[str, ...] = ()


class Fetcher:
    def __init__(self, config: FetchConfig) -> None: ...
    async def fetch(self, url: str) -> bytes:
        raise NotImplementedError

    async def close(self) -> None: ...
