"""kopf's requests are counted, and each of its lists causes a list of ours, which finds deleted jobs."""

import asyncio
from types import SimpleNamespace

import pytest
from aiohttp import web

from hftitan_operator.kube import handlers
from hftitan_operator.kube.api import Configuration, KubeApi
from hftitan_operator.kube.reflector import Timing

JOBS = "/apis/hftitan.io/v1alpha1/hftitanjobs"


@pytest.mark.parametrize(
    ("path", "status", "lists"),
    [
        (f"{JOBS}?limit=500", 200, 1),
        ("/apis/hftitan.io/v1alpha1/namespaces/team/hftitanjobs?limit=500", 200, 1),
        (f"{JOBS}?limit=500&continue=x", 200, 0),
        (f"{JOBS}?watch=true&resourceVersion=5", 200, 0),
        (f"{JOBS}?limit=500", 503, 0),
        ("/apis/hftitan.io/v1alpha1", 200, 0),
    ],
)
def test_lists_of_kopf(path, status, lists):
    counted, asked = [], []

    async def answer(_):
        return web.json_response({}, status=status)

    async def run():
        app = web.Application()
        app.router.add_get("/{path:.*}", answer)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        async with KubeApi(Configuration(host=f"http://127.0.0.1:{port}")) as api:
            api.observe_request = lambda method, status: counted.append((method, status))
            cluster = SimpleNamespace(list_jobs_soon=lambda: asked.append(path))
            async with api.new_session(traces=[handlers._trace(api, cluster)]) as session:
                await session.get(api.server + path)
        await runner.cleanup()

    asyncio.run(run())
    assert counted == [("GET", status)]
    assert len(asked) == lists


def test_kopf_uses_the_same_intervals():
    watching = handlers.settings(Timing(check=(7, 7), silence=3)).watching
    assert (watching.server_timeout, watching.inactivity_timeout, watching.chunk_size) == (7, 3, 500)
