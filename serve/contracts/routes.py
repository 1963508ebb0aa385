"""All routes of the service."""

from mcbeit.serve.contracts import cohere, kserve, native, openai, operations, tei, voyage, weaviate
from mcbeit.serve.endpoint import TEXT
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
    Route("GET", ("/v2",), kserve.server, "kserve", TEXT, works=False),
    Route("GET", ("/v2/health/live",), kserve.live, "kserve", TEXT, public=True, works=False),
    Route("GET", ("/v2/health/ready",), kserve.ready, "kserve", TEXT, public=True, works=False),
    Route("GET", ("/v2/models/stats", "/v2/models/{name}/stats", "/v2/models/{name}/versions/{version}/stats"),
          kserve.statistics, "kserve", TEXT, works=False),
    Route("GET", ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"), kserve.model, "kserve", TEXT,
          works=False),
    Route("GET", ("/v2/models/{name}/ready", "/v2/models/{name}/versions/{version}/ready"), kserve.model_ready,
          "kserve", TEXT, works=False),
    Route("GET", ("/v2/models/{name}/config", "/v2/models/{name}/versions/{version}/config"), kserve.config, "kserve",
          TEXT, works=False),
    Route("POST", ("/v2/repository/index",), kserve.repository, "kserve", TEXT, works=False),
    Route(
        "POST", ("/v2/models/{name}/infer", "/v2/models/{name}/versions/{version}/infer"), kserve.infer, "kserve",
        TEXT, form=kserve.InferRequest, example=kserve.EXAMPLE,
        bodies={"application/octet-stream": BINARY}, answers=("application/json", "application/octet-stream"),
    ),
    Route(
        "POST", ("/vectors", "/vectors/"), weaviate.vectors, "weaviate", TEXT, form=weaviate.VectorsRequest,
        example={"id": "a", "image": openai.PIXEL}, answer={"id": "a", "vector": [0.1], "dim": 1},
    ),
    Route(
        "POST", ("/vectorize", "/vectorize/"), weaviate.vectorize, "weaviate", TEXT,
        form=weaviate.VectorizeRequest, example={"images": [openai.PIXEL]},
        answer={"textVectors": [], "imageVectors": [[0.1]]},
    ),
    Route("GET", ("/.well-known/ready", "/.well-known/live"), weaviate.well_known, "weaviate", TEXT, public=True,
          works=False),
    Route("GET", ("/meta", "/meta/"), weaviate.meta, "weaviate", TEXT, works=False),
    Route("POST", ("/embed", "/invocations"), tei.embed, "tei", tei.ERRORS, form=tei.EmbedRequest,
          example={"inputs": openai.PIXEL}, answer=[[0.1]]),
    Route("POST", ("/embed_all",), tei.embed_all, "tei", tei.ERRORS, form=tei.EmbedRequest,
          example={"inputs": openai.PIXEL}, answer=[[[0.1]]]),
    Route("GET", ("/info",), tei.info, "tei", tei.ERRORS, works=False),
    Route("GET", ("/health", "/ping"), tei.health, "tei", tei.ERRORS, public=True, works=False),
    Route(
        "POST", ("/v2/embed",), cohere.embed, "cohere", cohere.ERRORS, form=cohere.CohereRequest,
        example={"images": [f"data:image/png;base64,{openai.PIXEL}"], "embedding_types": ["float"]},
        answer={"id": "a", "response_type": "embeddings_by_type", "embeddings": {"float": [[0.1]]}},
    ),
    Route(
        "POST", ("/v1/multimodalembeddings",), voyage.multimodal, "voyage", form=voyage.VoyageRequest,
        example={"inputs": [{"content": [{"type": "image_base64", "image_base64": openai.PIXEL}]}]},
        answer={"object": "list", "data": [{"object": "embedding", "index": 0, "embedding": [0.1]}]},
    ),
    Route(
        "POST", ("/v1/multi-vector",), voyage.multi_vector, "jina", form=voyage.MultiVectorRequest,
        example={"input": [{"image": openai.PIXEL}]},
        answer={"object": "list", "data": [{"object": "embeddings", "index": 0, "embeddings": [[0.1]]}]},
    ),
    Route("GET", ("/health/live",), operations.live, "operations", public=True, works=False),
    Route("GET", ("/health/ready",), operations.ready, "operations", public=True, works=False),
    Route("GET", ("/metrics",), operations.metrics, "operations", works=False, answers=("text/plain",)),
)  # fmt: skip
