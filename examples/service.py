"""Answers over HTTP with the champion, whichever version that is: `uvicorn service:app`, beside the `refit.toml` of the model."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, HTTPException

import refit
from refit.errors import DataError, RefitError

MODEL = "penguins@champion"
SECONDS_BETWEEN_LOOKS = 10.0


async def follow_promotions(app: FastAPI) -> None:
    """Change to a new champion; after an error, the model that is there goes on answering."""
    while True:
        await asyncio.sleep(SECONDS_BETWEEN_LOOKS)
        try:
            app.state.model = await asyncio.to_thread(app.state.model.refresh)
        except RefitError as error:
            print(f"{app.state.model.reference} stays: {error}")


@contextlib.asynccontextmanager
async def serve(app: FastAPI) -> AsyncIterator[None]:
    """Load the model before the first request."""
    app.state.model = await asyncio.to_thread(refit.load_model, MODEL)
    following = asyncio.create_task(follow_promotions(app))
    yield
    following.cancel()


app = FastAPI(lifespan=serve)


@app.post("/predict")
def predict(rows: dict[str, list[Any]]) -> dict[str, Any]:
    """Predict rows that are given as lists by column; the answer names the version."""
    model: refit.Model = app.state.model
    try:
        return {"model": model.reference, "classes": model.predict(rows).tolist()}
    except DataError as error:
        raise HTTPException(422, str(error)) from error
