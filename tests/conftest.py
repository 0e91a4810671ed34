"""What every test may ask for."""

import pytest


@pytest.fixture
def anyio_backend() -> str:
    """Asyncio is what uvicorn, redis-py and our workers run on; trio is not promised."""
    return "asyncio"
