"""What operators and orchestrators ask: is it alive, is it ready, what has it done."""

from starlette.responses import JSONResponse, Response

from mcbeit.serve.call import Call


async def live(call: Call) -> Response:
    """`GET /health/live`: 200 while the process answers at all."""
    return JSONResponse({"status": "live"})


async def ready(call: Call) -> Response:
    """`GET /health/ready`: 200 if requests should be sent here; 503, with the reason, if not."""
    reason = call.service.unready_because()
    models = {
        name: {"revision": model.revision, "last_inference_age_seconds": round(call.service.age(model), 3)}
        for name, model in call.service.models.items()
    }
    told = {"status": "ready" if reason is None else "not ready", "reason": reason, "models": models}
    return JSONResponse(told, 200 if reason is None else 503)


async def metrics(call: Call) -> Response:
    """`GET /metrics`: in the format of Prometheus."""
    return Response(call.service.measure(), media_type=call.service.metrics.content_type)
