"""The public door to the clients of the service; they live in mcbeit, which may not import the service."""

from mcbeit.errors import ServiceError
from mcbeit.http_client import AsyncClient, Client
from mcbeit.served_encoder import ServedEncoder

__all__ = ["AsyncClient", "Client", "ServedEncoder", "ServiceError"]
