"""Who is telling."""

from forebay_server.telemetry.resource import INSTANCE, resource


def test_who_is_telling(monkeypatch):
    """What the variables say is kept; what they do not, is ours; spans and metrics say the same."""
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.version=9,deployment.environment=test")
    monkeypatch.delenv("OTEL_SERVICE_NAME", raising=False)
    found = dict(resource().attributes)
    assert (found["service.name"], found["service.version"], found["deployment.environment"]) == (
        "forebay",
        "9",
        "test",
    )
    assert found["service.instance.id"] == resource().attributes["service.instance.id"] == INSTANCE

    monkeypatch.setenv("OTEL_SERVICE_NAME", "pool")
    assert resource().attributes["service.name"] == "pool"
    monkeypatch.delenv("OTEL_SERVICE_NAME")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.name=group,service.instance.id=7")
    found = dict(resource().attributes)
    assert (found["service.name"], found["service.instance.id"]) == ("group", "7")
