"""The least that BentoML can do with a request: give the same JSON back."""

from typing import Any

import bentoml


@bentoml.service(name="Echo", http={"host": "127.0.0.1"}, workers=2)
class Echo:
    """Answers with what it was asked."""

    @bentoml.api
    def predict(self, features: dict[str, Any]) -> dict[str, Any]:
        """The features, as they came."""
        return features
