"""All routes of the service."""

from mcbeit.serve.contracts import native, openai, operations
from mcbeit.serve.routes import BINARY, Route

ROUTES = (
    Route(
        "POST", ("/v1/embeddings", "/embeddings", "/embeddings_image"), openai.embeddings, "openai",
        form=openai.EmbeddingsRequest, example=openai.EXAMPLE,
        answer={"object": "list", "model": "demo", "data": [{"object": "embedding", "index": 0, "embedding": [0.1]}],
                "usage": {"prompt_tokens": 50, "total_tokens": 50}},
    ),
    Route("GET", ("/v1/models", "/models"), openai.models, "openai", works=False),
    Route("GET", ("/v1/models/{name}",), openai.one_model, "openai", works=False),
    Route("POST", ("/v1/models/{name}/reload",), openai.reload, "operations", works=False),
    Route(
        "POST", ("/v1/embed",), native.embed, "native",
        bodies={
            "image/*": BINARY,
            native.MULTIPART: {"schema": {"type": "object", "properties": {
                "file": {"type": "array", "items": {"type": "string", "format": "binary"}}}}},
        },
        query=(
            ("model", "string", "One of /v1/models; default: the first."),
            ("patches", "boolean", "A vector per patch: [image, row, column, dim]."),
            ("pooling", "string", "The model's own, or patch."),
            ("dimensions", "integer", "Keep the first so many numbers, then scale to unit length."),
            ("normalize", "boolean", "To unit length; default: as the model says."),
        ),
        answer={"model": "demo", "shape": [1, 2], "embeddings": [[0.6, 0.8]]},
        answers=(native.JSON, native.NPY, native.FLOAT32),
    ),
    Route("GET", ("/health/live",), operations.live, "operations", public=True, works=False),
    Route("GET", ("/health/ready",), operations.ready, "operations", public=True, works=False),
    Route("GET", ("/metrics",), operations.metrics, "operations", works=False, answers=("text/plain",)),
)  # fmt: skip
