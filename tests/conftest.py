"""What every test may ask for."""

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


@pytest.fixture
def anyio_backend() -> str:
    """Asyncio is what uvicorn, redis-py and our workers run on; trio is not promised."""
    return "asyncio"
