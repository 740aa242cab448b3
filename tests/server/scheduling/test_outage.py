"""Why a model runs nothing now, for those who would submit work for later."""

from forebay_server.errors import EngineUnavailable, ModelNotFound, VersionNotFound
from forebay_server.scheduling.core import Core
from forebay_server.scheduling.policy import ServerPolicy
from tests.server.scheduling.conftest import KEY, World


def test_outage():
    """Nothing while an instance works; the reason that admission would give, when none does or there is no model."""
    world = World()
    assert world.core.outage(KEY) is None
    assert type(world.core.outage(("m", 2))) is VersionNotFound
    assert type(world.core.outage(("other", 1))) is ModelNotFound
    assert type(Core(ServerPolicy()).outage(KEY)) is ModelNotFound

    (instance,) = world.instances
    world.core.lost(instance, 1.0)
    refusal = world.core.admit(world.request(), 1.0)

    outage = world.core.outage(KEY)
    assert type(outage) is type(refusal) is EngineUnavailable
    assert outage.message == refusal.message
